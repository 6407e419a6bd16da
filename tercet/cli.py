"""`tercet`: what users type. Each command reads its arguments, calls a stage, prints what came."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tercet import __version__
from tercet.errors import UserError

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
store_app = typer.Typer(help="Vectors kept from earlier runs.", no_args_is_help=True)
app.add_typer(store_app, name="store")

ConfigPath = Annotated[str, typer.Argument(help="A YAML file, or a recipe's name: finetune")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.sub=value, for example train.epochs=2")
]


def main() -> None:
    """Run the command line: a user's mistake is one line and exit status 2."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        status = app(args=arguments or ["--help"], prog_name="tercet", standalone_mode=False)
    except UserError as error:
        if debug:
            raise
        _complain(str(error))
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
def finetune(config: ConfigPath, overrides: Overrides = None) -> None:
    """Fine-tune a bi-encoder. Several processes: accelerate launch -m tercet finetune ..."""
    from tercet.configs import load
    from tercet.progress import is_main_process
    from tercet.stages import finetune

    model = finetune(load(config, overrides or ()))
    if is_main_process():
        print(f"model: {model}")


@app.command()
def distil(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train a student on a teacher's vectors; cut it from a model first, if the config says so."""
    from tercet.configs import load
    from tercet.progress import is_main_process
    from tercet.stages import distil

    model = distil(load(config, overrides or ()))
    if is_main_process():
        print(f"model: {model}")


@app.command()
def plan(config: ConfigPath, overrides: Overrides = None) -> None:
    """A dry run: tokens per batch, memory, micro-batches and time of a fine-tuning run."""
    from tercet.configs import load
    from tercet.progress import is_main_process
    from tercet.report import console_table, forecast_table
    from tercet.train import forecast

    found = forecast(load(config, overrides or ()))
    if is_main_process():
        _show(console_table(forecast_table(found)))


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
    overwrite: Annotated[bool, typer.Option(help="Replace an existing folder.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the models.")] = False,
) -> None:
    """Average the weights of models, such as a base and its fine-tuned self."""
    from tercet.stages import merge

    try:
        shares = [float(w) for w in weights.split(",")] if weights else [1.0] * len(models)
    except ValueError:
        raise UserError(f"--weights: numbers with commas between, got {weights!r}") from None
    merge(models, shares, out, overwrite=overwrite, trust_remote_code=trust_remote_code)
    print(f"model: {out}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder, a hub name, or 'embedded'.")],
    data: Annotated[list[Path], typer.Option(help="A BEIR folder; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results"),
    split: Annotated[str, typer.Option(help="Which qrels/<split>.tsv.")] = "test",
    against: Annotated[
        list[str] | None, typer.Option(help="A model to compare with; may be repeated.")
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the models.")] = False,
) -> None:
    """Retrieval quality with 95 % intervals, beside BM25 and any other model."""
    from tercet.progress import is_main_process
    from tercet.report import console_table, model_table
    from tercet.stages import delta_lines, evaluate, name_of

    results = evaluate(
        model, data, out, split=split, against=against or (), trust_remote_code=trust_remote_code
    )
    if not is_main_process():
        return
    _show(console_table(model_table(results)))
    for line in delta_lines(results, name_of(model)):
        print(line)
    print(f"results: {out}")


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
    """The stores of vectors in the cache folder, the last used first."""
    from tercet.models.housekeeping import all_stored
    from tercet.models.store import stores_folder
    from tercet.report import console_table, store_table

    stores = all_stored()
    if stores:
        _show(console_table(store_table(stores)))
    size = sum(store.size for store in stores)
    print(f"{len(stores)} stores, {size / 1e6:,.1f} MB in {stores_folder()}")


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


def _show(renderable: object) -> None:
    Console().print(renderable)


def _complain(message: str) -> None:
    from tercet.progress import is_main_process

    if is_main_process():
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
