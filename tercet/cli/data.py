"""`tercet data`: look at training data, and build some."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tercet.cli.app import Overrides, app, show

data_app = typer.Typer(help="Look at training data, and build some.", no_args_is_help=True)
app.add_typer(data_app, name="data")


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
    show(render(report))
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
