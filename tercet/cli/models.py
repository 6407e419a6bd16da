"""Commands about students: `tercet student`, `merge`, `pair`, `retention`."""

from pathlib import Path
from typing import Annotated

import typer

from tercet.cli.app import ConfigPath, Overrides, app, show
from tercet.errors import UserError


@app.command()
def student(config: ConfigPath, overrides: Overrides = None) -> None:
    """Cut a model down: layers, vocabulary, width; or a static student, or a new small BERT."""
    from tercet.configs import load
    from tercet.report import console_table, size_table
    from tercet.stages import student

    settings = load(config, overrides or ())
    made = student(settings)
    show(console_table(size_table(made.before, made.after)))
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
    split: Annotated[
        str | None, typer.Option(help="Of --dev: which qrels/<split>.tsv. Without: dev.")
    ] = None,
    keep: Annotated[
        list[Path] | None, typer.Option(help="A BEIR folder on which nothing may be lost.")
    ] = None,
    keep_split: Annotated[str | None, typer.Option(help="Of --keep. Without: test.")] = None,
    points: Annotated[
        int | None, typer.Option(help="Weights tried from 0 to 1. Without: 11.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing folder.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the models.")] = False,
) -> None:
    """Average the weights of models, such as a base and its fine-tuned self.

    With --dev the weights are chosen: BASE TUNED --dev FOLDER scores the curve between the two.
    """
    from tercet.report import console_table, curve_table
    from tercet.stages import merge, merge_curve

    of_choice = {"keep": keep, "split": split, "keep_split": keep_split, "points": points}
    said = {name: value for name, value in of_choice.items() if value is not None}
    if dev is None:
        if said:
            option = f"--{next(iter(said)).replace('_', '-')}"
            raise UserError(
                f"{option}: belongs to a choice of weights; say --dev FOLDER to make one"
            )
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
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            **said,
        )
        show(console_table(curve_table(curve.facts())))
        print(f"chosen: {curve.chosen:.2g} of {models[1]}")
    print(f"model: {out}")


def _weights(typed: str | None, count: int) -> list[float]:
    try:
        return [1.0] * count if typed is None else [float(weight) for weight in typed.split(",")]
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
def retention(
    students: Annotated[list[str], typer.Argument(help="Models to compare with the teacher.")],
    data: Annotated[Path, typer.Option(help="A BEIR folder.")],
    teacher: Annotated[str, typer.Option(help="What they were made of.")] = "embedded",
    split: Annotated[str, typer.Option(help="Which qrels/<split>.tsv.")] = "test",
    dims: Annotated[
        list[int] | None, typer.Option(min=1, help="Also cut vectors to this; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of every measurement of speed.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for JSON, table and plot.")] = Path("retention"),
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the models.")] = False,
) -> None:
    """What students keep of their teacher: quality, size and speed, also on the teacher's index."""
    from tercet.report import console_table
    from tercet.report.retention import retention_note, retention_table
    from tercet.stages import retain

    found = retain(
        students,
        data,
        out,
        teacher=teacher,
        split=split,
        dims=dims or (128,),
        rounds=rounds,
        trust_remote_code=trust_remote_code,
    )
    show(console_table(retention_table(found)))
    print(retention_note(found))
    print(f"plot: {out / 'retention.svg'}")
