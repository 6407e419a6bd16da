"""Commands whose output is used elsewhere: `tercet export`, `index`."""

from pathlib import Path
from typing import Annotated

import typer

from tercet.cli.app import app, show
from tercet.errors import UserError


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(help="A run's folder, a checkpoint, a model, a hub name, or 'embedded'."),
    ],
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
    split: Annotated[
        str | None, typer.Option(help="Which qrels/<split>.tsv of --data (test).")
    ] = None,
    max_loss: Annotated[
        float | None, typer.Option(help="Share of nDCG@10 int8 may lose (0.01).")
    ] = None,
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
    if public and push is None:
        raise UserError("--public: is of what --push uploads; add it")
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
        show(console_table(variant_rows(found.parity["variants"])))
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
    vectors: Annotated[
        str,
        typer.Option(
            help="float32, int8 or binary. By its documentation a Milvus server takes int8 as "
            "hnsw, binary as flat or ivf_flat; neither was tried."
        ),
    ] = "float32",
    truncate: Annotated[int | None, typer.Option(help="Keep so many dimensions.")] = None,
    uri: Annotated[
        str | None,
        typer.Option(help="A Milvus server (token: MILVUS_TOKEN); without: OUT/milvus.db."),
    ] = None,
    collection: Annotated[
        str | None, typer.Option(help="Its name in Milvus; without: the model's.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing one.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the model.")] = False,
) -> None:
    """Encode documents into a FAISS index or a Milvus collection, and measure what it finds."""
    from tercet.progress import is_main_process
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
    if not is_main_process():
        return
    print(made.recall.line())
    print(f"{made.documents:,} documents: {made.place}")
