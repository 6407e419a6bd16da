"""Commands that say how good models are: `tercet evaluate`, `compare`, `calibrate`, `serve`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tercet.cli.app import app, show
from tercet.errors import UserError


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder, a hub name, or 'embedded'.")],
    data: Annotated[list[Path] | None, typer.Option(help="A BEIR folder; may be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results"),
    split: Annotated[str, typer.Option(help="Which qrels/<split>.tsv.")] = "test",
    against: Annotated[
        list[str] | None, typer.Option(help="A model to compare with; may be repeated.")
    ] = None,
    mteb: Annotated[
        list[str] | None, typer.Option(help="A task of MTEB by name; may be repeated.")
    ] = None,
    sts: Annotated[
        list[Path] | None,
        typer.Option(help="A TSV with score, sentence1, sentence2; may be repeated."),
    ] = None,
    rerank: Annotated[
        str | None, typer.Option(help="A cross-encoder that reads the first documents again.")
    ] = None,
    rerank_depth: Annotated[
        int | None, typer.Option(min=1, help="How many of them; 100 if not said.")
    ] = None,
    trained_on: Annotated[
        list[str] | None,
        typer.Option(help="What MODEL was trained on (file, folder, config): counts leaks."),
    ] = None,
    query_prompt: Annotated[
        str | None, typer.Option(help="Text before each query, such as an instruction.")
    ] = None,
    document_prompt: Annotated[str | None, typer.Option(help="Text before each document.")] = None,
    skip_self: Annotated[
        bool, typer.Option(help="Leave out the document with the query's id (ArguAna, Quora).")
    ] = False,
    depth: Annotated[int, typer.Option(help="Documents of each query looked at.")] = 1000,
    search_memory: Annotated[
        str, typer.Option(help="What candidates may take while they are searched for.")
    ] = "540MB",
    predictions: Annotated[bool, typer.Option(help="Write MTEB's predictions too.")] = False,
    check_with_mteb: Annotated[
        bool, typer.Option(help="Also run --data through mteb: the numbers must be the same.")
    ] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the models.")] = False,
) -> None:
    """Quality with 95 % intervals on BEIR folders, MTEB tasks and STS, beside BM25 and others."""
    _refuse_absent(data or ())
    from tercet.configs import Prompts
    from tercet.models.housekeeping import read_bytes
    from tercet.progress import is_main_process
    from tercet.report import console_table, leak_line, model_table, prompt_lines
    from tercet.stages import Search, delta_lines, evaluate, name_of

    how = Search(
        depth=depth,
        skip_self=skip_self,
        memory=read_bytes(search_memory, "--search-memory"),
        predictions=predictions,
        rerank=rerank,
        rerank_depth=_rerank_depth(rerank, rerank_depth),
    )
    results = evaluate(
        model,
        data or (),
        out,
        split=split,
        against=against or (),
        prompts=Prompts(query=query_prompt, document=document_prompt),
        how=how,
        similarity=sts or (),
        official=mteb or (),
        trained_on=trained_on or (),
        check_with_mteb=check_with_mteb,
        trust_remote_code=trust_remote_code,
    )
    if not is_main_process():
        return
    for main in dict.fromkeys(result.main for result in results):
        show(console_table(model_table([result for result in results if result.main == main])))
    for line in prompt_lines({result.model: result.prompts for result in results}):
        print(line)
    for line in delta_lines(results, name_of(model), out):
        print(line)
    for result in results:
        if result.leakage is not None:
            print(leak_line(result))
    print(f"results: {out}")


@app.command()
def compare(
    models: Annotated[
        list[str], typer.Argument(help="Folders, hub names, 'embedded'; the first is the baseline.")
    ],
    data: Annotated[list[Path], typer.Option(help="A BEIR folder; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("comparison"),
    split: Annotated[str, typer.Option(help="Which qrels/<split>.tsv.")] = "test",
    dims: Annotated[
        str, typer.Option(help="Widths that vectors are cut to, with commas between.")
    ] = "256,128,64",
    index: Annotated[bool, typer.Option(help="Also study FAISS indexes: tercet\\[ann].")] = False,
    rerank: Annotated[
        str | None, typer.Option(help="A cross-encoder: a second row for each model.")
    ] = None,
    rerank_depth: Annotated[
        int | None, typer.Option(min=1, help="Documents that it reads again; 100 if not said.")
    ] = None,
    trained_on: Annotated[
        list[str] | None,
        typer.Option(help="What the models were trained on (file, folder, config): counts leaks."),
    ] = None,
    query_prompt: Annotated[
        list[str] | None, typer.Option(help="MODEL=TEXT: put before its queries; may be repeated.")
    ] = None,
    document_prompt: Annotated[
        list[str] | None, typer.Option(help="MODEL=TEXT: put before its documents; likewise.")
    ] = None,
    skip_self: Annotated[
        bool, typer.Option(help="Leave out the document with the query's id (ArguAna, Quora).")
    ] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the models.")] = False,
) -> None:
    """Models side by side: cost, quality with intervals, shorter vectors, and a page to read."""
    _refuse_absent(data)
    from tercet.configs import Prompts
    from tercet.progress import is_main_process
    from tercet.report import console_table, prompt_lines
    from tercet.report.comparison import leak_lines, summary_rows
    from tercet.stages import Search, compare

    queries = _by_model(query_prompt or (), "--query-prompt")
    documents = _by_model(document_prompt or (), "--document-prompt")
    found = compare(
        models,
        data,
        out,
        split=split,
        how=Search(
            skip_self=skip_self, rerank=rerank, rerank_depth=_rerank_depth(rerank, rerank_depth)
        ),
        prompts={
            name: Prompts(query=queries.get(name), document=documents.get(name))
            for name in (*queries, *documents)
        },
        trained_on=trained_on or (),
        dims=_widths(dims),
        index=index,
        trust_remote_code=trust_remote_code,
    )
    if not is_main_process():
        return
    show(console_table(summary_rows(found)))
    for line in prompt_lines({model["name"]: model["prompts"] for model in found["models"]}):
        print(line)
    for line in leak_lines(found):
        print(line)
    print(f"results: {out / 'results.json'}\npage: {out / 'report.html'}")


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="A model folder.")],
    data: Annotated[list[Path], typer.Option(help="Texts, or a BEIR folder; may be repeated.")],
    dims: Annotated[
        str, typer.Option(help="Widths that vectors are cut to, with commas between.")
    ] = "256,128,64",
    overwrite: Annotated[bool, typer.Option(help="Replace ranges of these weights.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the model.")] = False,
) -> None:
    """Store the ranges of int8 vectors with the model, so that they stay comparable."""
    from tercet.stages import calibrate_model

    path = calibrate_model(
        model,
        data,
        dims=_widths(dims),
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )
    print(f"ranges: {path}")


@app.command()
def serve(
    models: Annotated[list[str], typer.Argument(help="One model, or two side by side.")],
    data: Annotated[Path, typer.Option(help="A BEIR folder.")],
    split: Annotated[
        str | None, typer.Option(help="Whose queries are offered: qrels/<split>.tsv; else test.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the models.")] = False,
) -> None:
    """A page to try a model on a collection: type a query, see what it finds."""
    _refuse_absent([data])
    from tercet.stages import serve

    serve(models, data, split=split, host=host, port=port, trust_remote_code=trust_remote_code)


def _refuse_absent(folders: Sequence[Path]) -> None:
    """Raise UserError for a BEIR folder that is not there, before torch is imported.

    In a launch it is left to `read_task`: there a mistake of one process ends all of them.
    """
    for folder in folders:
        if not folder.is_dir() and "RANK" not in os.environ:
            raise UserError(
                f"--data: {folder}: no such folder; a BEIR folder holds corpus.jsonl, "
                "queries.jsonl and qrels/"
            )


def _widths(text: str) -> list[int]:
    """`256,128` as numbers."""
    try:
        widths = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        widths = [0]
    if any(width < 1 for width in widths):
        raise UserError(f"--dims: whole numbers above 0 with commas between, got {text!r}")
    return widths


def _rerank_depth(rerank: str | None, depth: int | None) -> int:
    """How many documents the cross-encoder reads, if there is one."""
    if rerank is None and depth is not None:
        raise UserError("--rerank-depth: is of --rerank; name a cross-encoder, or leave it out")
    return 100 if depth is None else depth


def _by_model(texts: Sequence[str], option: str) -> dict[str, str]:
    """`NAME=TEXT` of each model that is named."""
    parts = [text.partition("=") for text in texts]
    for name, equals, _ in parts:
        if not equals:
            raise UserError(f"{option}: MODEL=TEXT, the model as the table calls it; got {name!r}")
    return {name: text for name, _, text in parts}
