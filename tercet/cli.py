"""`tercet`: what users type. Each command reads its arguments, calls a stage, prints what came."""

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tercet import __version__
from tercet.errors import Stopped, UserError
from tercet.secret import masked

# Stages import torch and transformers, which takes seconds: they are loaded inside the commands,
# so that --help and a mistyped option answer at once.

app = typer.Typer(
    help="Train compact embedding models for retrieval, and know how good they are.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Look at training data, and build some.", no_args_is_help=True)
app.add_typer(data_app, name="data")
store_app = typer.Typer(
    help="Vectors, candidate lists and scores kept from earlier runs.", no_args_is_help=True
)
app.add_typer(store_app, name="store")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

ConfigPath = Annotated[str, typer.Argument(help="A YAML file, or a recipe's name: finetune")]
AllowChanged = Annotated[
    list[str] | None,
    typer.Option(
        help="Go on with an unfinished run although this differs: a key or a section of the "
        "config, data, or code; may be repeated."
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.sub=value, for example train.epochs=2")
]


def main() -> None:
    """Run the command line: a user's mistake is one line and exit status 2, a stop 75 or 69."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        status = app(args=arguments or ["--help"], prog_name="tercet", standalone_mode=False)
    except (UserError, Stopped) as error:
        if debug:
            raise
        _complain(str(error), error.status if isinstance(error, Stopped) else 2)
    except OSError as error:
        if debug or error.errno not in FULL:
            raise
        _complain(f"{error.filename or 'a disk'}: {error.strerror}; make room or choose another")
    except typer.TyperException as error:
        _complain(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        if isinstance(status, int):  # what an Exit inside a command carried, 130 after Ctrl-C
            sys.exit(status)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print it.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Train compact embedding models for retrieval, and know how good they are.

    Add --debug to any command to see the traceback of an error.
    """


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("runs/demo"),
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier demo.")] = False,
) -> None:
    """Code search, end to end, on this machine's own Python: nothing is downloaded."""
    from tercet.demo import run_demo

    run_demo(out, overwrite=overwrite)


@app.command()
def finetune(
    config: ConfigPath, overrides: Overrides = None, allow_changed: AllowChanged = None
) -> None:
    """Fine-tune a bi-encoder. Several processes: accelerate launch -m tercet finetune ..."""
    from tercet.configs import load
    from tercet.progress import is_main_process
    from tercet.stages import finetune

    model = finetune(load(config, overrides or ()), allow_changed or ())
    if is_main_process():
        print(f"model: {model}")


@app.command()
def distil(
    config: ConfigPath, overrides: Overrides = None, allow_changed: AllowChanged = None
) -> None:
    """Train a student on a teacher's vectors; cut it from a model first, if the config says so."""
    from tercet.configs import load
    from tercet.progress import is_main_process
    from tercet.stages import distil

    model = distil(load(config, overrides or ()), allow_changed or ())
    if is_main_process():
        print(f"model: {model}")


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    device: Annotated[
        str | None, typer.Option(help="Predict for machines that are not here: h100, a100, l4, ...")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="With --device: machines.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="With --device: of each machine.")] = 1,
    sharded: Annotated[bool, typer.Option(help="With --device: FSDP instead of DDP.")] = False,
) -> None:
    """A dry run: tokens per batch, memory, micro-batches and time of a fine-tuning run."""
    from tercet.configs import load
    from tercet.progress import is_main_process
    from tercet.report import console_table, forecast_table, predicted_table
    from tercet.train import forecast, predict

    settings = load(config, overrides or ())
    if device is not None:
        table = predicted_table(predict(settings, nodes, gpus, device, sharded))
    elif (nodes, gpus, sharded) != (1, 1, False):
        raise UserError("--nodes, --gpus and --sharded are for machines elsewhere: name --device")
    else:
        table = forecast_table(forecast(settings))
    if is_main_process():
        _show(console_table(table))


@app.command()
def mine(config: ConfigPath, overrides: Overrides = None) -> None:
    """Mine hard negatives for the training rows; train on them with data.mined=FILE."""
    from tercet.configs import load
    from tercet.progress import is_main_process
    from tercet.stages import mine

    mined = mine(load(config, overrides or ()))
    if not is_main_process():
        return
    counts = mined.counts
    dropped = ", ".join(f"{n:,} {rule}" for rule, n in counts.dropped.items() if n)
    print(f"{counts.kept:,} negatives for {counts.queries:,} queries ({counts.without:,} got none)")
    print(f"of {counts.candidates:,} candidates: {dropped or 'none dropped'}")
    print(f"page: {mined.page}")
    print(f"mined: {mined.path}  (train on it with data.mined={mined.path})")


@app.command()
def student(config: ConfigPath, overrides: Overrides = None) -> None:
    """Cut a model down: layers, vocabulary, width; or a static student, or a new small BERT."""
    from tercet.configs import load
    from tercet.progress import is_main_process
    from tercet.report import console_table, size_table
    from tercet.stages import student

    settings = load(config, overrides or ())
    if not is_main_process():
        return
    made = student(settings)
    _show(console_table(size_table(made.before, made.after)))
    if settings.student.vocabulary is not None:
        print(f"the vocabulary holds {made.covered:.2%} of the tokens of the texts")
    print(f"model: {Path(settings.output) / 'model'}")


@app.command()
def merge(
    models: Annotated[list[str], typer.Argument(help="Two or more models of one architecture.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    weights: Annotated[
        str | None, typer.Option(help="One for each model: 0.3,0.7. Without: all the same.")
    ] = None,
    dev: Annotated[
        Path | None, typer.Option(help="A BEIR folder that chooses the weights of two models.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of --dev: which qrels/<split>.tsv.")] = "dev",
    keep: Annotated[
        list[Path] | None, typer.Option(help="A BEIR folder on which nothing may be lost.")
    ] = None,
    keep_split: Annotated[str, typer.Option(help="Of --keep.")] = "test",
    points: Annotated[int, typer.Option(help="Weights tried from 0 to 1.")] = 11,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing folder.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the models.")] = False,
) -> None:
    """Average the weights of models, such as a base and its fine-tuned self.

    With --dev the weights are chosen: BASE TUNED --dev FOLDER scores the curve between the two.
    """
    from tercet.report import console_table, curve_table
    from tercet.stages import merge, merge_curve

    if dev is None:
        if keep:
            raise UserError("--keep guards a choice of weights; say --dev FOLDER to make one")
        shares = _weights(weights, len(models))
        merge(models, shares, out, overwrite=overwrite, trust_remote_code=trust_remote_code)
    else:
        if weights is not None or len(models) != 2:
            raise UserError("--dev chooses the weights of two models: BASE TUNED, no --weights")
        curve = merge_curve(
            models[0],
            models[1],
            dev,
            out,
            split=split,
            keep=keep or (),
            keep_split=keep_split,
            points=points,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
        )
        _show(console_table(curve_table(curve.facts())))
        print(f"chosen: {curve.chosen:.2g} of {models[1]}")
    print(f"model: {out}")


def _weights(typed: str | None, count: int) -> list[float]:
    try:
        return [float(weight) for weight in typed.split(",")] if typed else [1.0] * count
    except ValueError:
        raise UserError(f"--weights: numbers with commas between, got {typed!r}") from None


@app.command()
def pair(
    query_model: Annotated[str, typer.Argument(help="The small model, aligned with the other.")],
    document_model: Annotated[str, typer.Argument(help="The model that built the index.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    overwrite: Annotated[bool, typer.Option(help="Replace an existing folder.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the models.")] = False,
) -> None:
    """One checkpoint: queries by a small model, documents by the large one it was aligned with."""
    from tercet.stages import pair

    sizes = pair(
        query_model, document_model, out, overwrite=overwrite, trust_remote_code=trust_remote_code
    )
    for what, size in zip(("queries", "documents"), sizes, strict=True):
        print(f"{what}: {size.parameters:,} parameters, {size.megabytes:.1f} MB")
    print(f"model: {out}")


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
    rerank_depth: Annotated[int, typer.Option(min=1, help="How many of them.")] = 100,
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
    depth: Annotated[int, typer.Option(min=1, help="Documents of each query looked at.")] = 1000,
    search_memory: Annotated[
        str, typer.Option(help="What candidates may take while they are searched for.")
    ] = "512MB",
    predictions: Annotated[bool, typer.Option(help="Write MTEB's predictions too.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the models.")] = False,
) -> None:
    """Quality with 95 % intervals on BEIR folders, MTEB tasks and STS, beside BM25 and others."""
    from tercet.configs import Prompts
    from tercet.models.housekeeping import read_bytes
    from tercet.progress import is_main_process
    from tercet.report import console_table, leak_line, model_table
    from tercet.stages import Search, delta_lines, evaluate, name_of

    how = Search(
        depth=depth,
        skip_self=skip_self,
        memory=read_bytes(search_memory, "--search-memory"),
        predictions=predictions,
        rerank=rerank,
        rerank_depth=rerank_depth,
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
        trust_remote_code=trust_remote_code,
    )
    if not is_main_process():
        return
    for main in dict.fromkeys(result.main for result in results):
        _show(console_table(model_table([result for result in results if result.main == main])))
    for line in delta_lines(results, name_of(model)):
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
    index: Annotated[bool, typer.Option(help="Also study FAISS indexes: tercet[ann].")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the models.")] = False,
) -> None:
    """Models side by side: cost, quality with intervals, shorter vectors, and a page to read."""
    from tercet.progress import is_main_process
    from tercet.report import console_table
    from tercet.report.comparison import summary_rows
    from tercet.stages import compare

    found = compare(
        models,
        data,
        out,
        split=split,
        dims=_widths(dims),
        index=index,
        trust_remote_code=trust_remote_code,
    )
    if not is_main_process():
        return
    _show(console_table(summary_rows(found)))
    print(f"results: {out / 'results.json'}\npage: {out / 'report.html'}")


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="A model folder.")],
    data: Annotated[list[Path], typer.Option(help="Texts, or a BEIR folder; may be repeated.")],
    dims: Annotated[
        str, typer.Option(help="Widths that vectors are cut to, with commas between.")
    ] = "256,128,64",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the model.")] = False,
) -> None:
    """Store the ranges of int8 vectors with the model, so that they stay comparable."""
    from tercet.stages import calibrate_model

    path = calibrate_model(model, data, dims=_widths(dims), trust_remote_code=trust_remote_code)
    print(f"ranges: {path}")


@app.command()
def serve(
    models: Annotated[list[str], typer.Argument(help="One model, or two side by side.")],
    data: Annotated[Path, typer.Option(help="A BEIR folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the models.")] = False,
) -> None:
    """A page to try a model on a collection: type a query, see what it finds."""
    from tercet.stages import serve

    serve(models, data, host=host, port=port, trust_remote_code=trust_remote_code)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A run's folder, or a model folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    results: Annotated[
        list[Path] | None, typer.Option(help="Results to put on the card; may be repeated.")
    ] = None,
    onnx: Annotated[bool, typer.Option(help="Also one ONNX graph, measured.")] = False,
    int8: Annotated[bool, typer.Option(help="Also its int8 form (implies --onnx).")] = False,
    truncate: Annotated[int | None, typer.Option(help="Keep so many dimensions.")] = None,
    calibrate: Annotated[
        list[Path] | None, typer.Option(help="Texts to calibrate int8 on; may be repeated.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="A BEIR folder to compare nDCG@10 on; may be repeated."),
    ] = None,
    split: Annotated[str, typer.Option(help="Which qrels/<split>.tsv of --data.")] = "test",
    max_loss: Annotated[float, typer.Option(help="Share of nDCG@10 int8 may lose.")] = 0.01,
    push: Annotated[
        str | None, typer.Option(help="Then upload it to a hub, as NAME or OWNER/NAME.")
    ] = None,
    public: Annotated[bool, typer.Option(help="For all to see; without: private.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing folder.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the model.")] = False,
) -> None:
    """A folder that SentenceTransformer(path) loads, proven equal to the checkpoint."""
    from tercet.export import check_push, variant_rows
    from tercet.export import push as upload
    from tercet.report import console_table
    from tercet.stages import export, onnx_options

    if push is not None:
        check_push(push)
    if not (onnx or int8) and (calibrate or data):
        raise UserError("--calibrate and --data are for --onnx and --int8; add one of them")
    options = onnx_options(
        int8=int8, calibrate=calibrate or (), data=data or (), split=split, max_loss=max_loss
    )
    found = export(
        model,
        out,
        results=results or (),
        overwrite=overwrite,
        truncate_dim=truncate,
        onnx=options if onnx or int8 else None,
        trust_remote_code=trust_remote_code,
    )
    if found.parity:
        _show(console_table(variant_rows(found.parity["variants"])))
    print(f"model: {out}  (vectors differ from the checkpoint's by at most {found.difference:.1e})")
    if push is not None:
        print(f"pushed: {upload(out, push, public=public)}")


@app.command()
def index(
    model: Annotated[str, typer.Argument(help="A model folder, a hub name, or 'embedded'.")],
    data: Annotated[
        list[Path], typer.Option(help="A BEIR folder, or a file of texts; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    to: Annotated[str, typer.Option(help="faiss or milvus.")] = "faiss",
    kind: Annotated[str, typer.Option("--index", help="flat, hnsw, ivf_flat or ivf_pq.")] = "flat",
    vectors: Annotated[str, typer.Option(help="float32, int8 or binary.")] = "float32",
    truncate: Annotated[int | None, typer.Option(help="Keep so many dimensions.")] = None,
    uri: Annotated[
        str | None, typer.Option(help="A Milvus server; without: OUT/milvus.db, embedded.")
    ] = None,
    collection: Annotated[
        str | None, typer.Option(help="Its name in Milvus; without: the model's.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing one.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the model.")] = False,
) -> None:
    """Encode documents into a FAISS index or a Milvus collection, and measure what it finds."""
    from tercet.stages import index as make_index

    made = make_index(
        model,
        data,
        out,
        to=to,
        index=kind,
        kind=vectors,
        truncate_dim=truncate,
        uri=uri,
        collection=collection,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )
    print(made.recall.line())
    print(f"{made.documents:,} documents: {made.place}")


@data_app.command("check")
def data_check(
    path: Annotated[
        str, typer.Argument(help="A file of pairs, a BEIR folder, a config, or a recipe.")
    ],
    overrides: Overrides = None,
    model: Annotated[str, typer.Option(help="Whose tokenizer counts tokens.")] = "embedded",
) -> None:
    """Rows, empty, duplicate, too long, dangling, and what the test set shares with training."""
    from tercet.data.tables import render
    from tercet.stages import check_data

    report = check_data(path, overrides or (), model)
    _show(render(report))
    if report.problems:
        sys.exit(2)


@data_app.command("code")
def data_code(
    packages: Annotated[list[str], typer.Argument(help="Packages, folders, or 'stdlib'.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    test: Annotated[list[str] | None, typer.Option(help="Package held out for test.")] = None,
    dev: Annotated[list[str] | None, typer.Option(help="Package held out for dev.")] = None,
    limit_train: Annotated[int | None, typer.Option(min=1)] = None,
    limit_test: Annotated[int | None, typer.Option(min=1)] = None,
    limit_dev: Annotated[int | None, typer.Option(min=1)] = None,
    seed: int = 12,
) -> None:
    """Docstring -> code pairs out of Python packages, split so that no package is in two parts."""
    from tercet.data.code import code_task

    counts = code_task(
        packages,
        test or (),
        dev or (),
        out,
        limit_train=limit_train,
        limit_test=limit_test,
        limit_dev=limit_dev,
        seed=seed,
    )
    print(", ".join(f"{part} {counts.kept(part):,} pairs" for part in ("train", "dev", "test")))
    print(f"data: {out}  (test: {out}, dev: {out / 'dev'}, train: {out / 'train.jsonl'})")


@store_app.command("list")
def store_list() -> None:
    """What is kept in the cache folder, the last used first."""
    from tercet.files import cache_folder
    from tercet.models.housekeeping import all_stored
    from tercet.report import console_table, store_table

    stores = all_stored()
    if stores:
        _show(console_table(store_table(stores)))
    size = sum(store.size for store in stores)
    print(f"{len(stores)} stores, {size / 1e6:,.1f} MB in {cache_folder()}")


@store_app.command("verify")
def store_verify() -> None:
    """Hash every shard and name the damaged ones (exit status 1). The next run makes them again."""
    from tercet.models.housekeeping import all_stored, damaged

    stores = all_stored()
    bad = damaged(stores)
    for path in bad:
        print(f"damaged: {path}")
    print(f"{len(stores)} stores, {len(bad)} damaged files")
    if bad:
        sys.exit(1)


@store_app.command("prune")
def store_prune(
    older_than: Annotated[float | None, typer.Option(help="Days since a run last used it.")] = None,
    keep_bytes: Annotated[
        str | None, typer.Option(help="Stop when all together are this small: 20GB.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of this model, as listed.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be removed.")] = False,
) -> None:
    """Remove stores, the longest unused first; several options must all hold."""
    from datetime import timedelta

    from tercet.models.housekeeping import all_stored, read_bytes, remove, to_prune

    if older_than is None and keep_bytes is None and model is None:
        raise UserError("say what to remove: --older-than DAYS, --keep-bytes SIZE or --model NAME")
    if older_than is not None and not 0 <= older_than <= 36_500:
        raise UserError(f"--older-than: {older_than:g} is not a number of days from 0 to 36500")
    chosen = to_prune(
        all_stored(),
        older_than=None if older_than is None else timedelta(days=older_than),
        keep_bytes=None if keep_bytes is None else read_bytes(keep_bytes),
        model=model,
    )
    freed = 0
    for store in chosen:
        gone = dry_run or remove(store)
        freed += store.size if gone else 0
        what = ("would remove" if dry_run else "removed") if gone else "in use, kept"
        print(f"{what}: {store.place}  ({store.model}, {store.size / 1e6:,.1f} MB)")
    print(f"{freed / 1e6:,.1f} MB {'would be ' if dry_run else ''}freed")


def _widths(text: str) -> list[int]:
    """`256,128` as numbers."""
    try:
        widths = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        widths = [0]
    if any(width < 1 for width in widths):
        raise UserError(f"--dims: whole numbers above 0 with commas between, got {text!r}")
    return widths


def _show(renderable: object) -> None:
    Console().print(renderable)


def _complain(message: str, status: int = 2) -> None:
    from tercet.progress import is_main_process

    if is_main_process():
        print(f"error: {' '.join(masked(message).split())}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
