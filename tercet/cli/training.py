"""Commands that train and prepare it: `tercet demo`, `finetune`, `distil`, `plan`, `mine`."""

from pathlib import Path
from typing import Annotated

import typer

from tercet.cli.app import AllowChanged, ConfigPath, Overrides, app, show
from tercet.errors import UserError


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

    settings = load(config, overrides or ())  # mistakes in it are told before torch is imported
    from tercet.progress import is_main_process
    from tercet.stages import finetune

    model = finetune(settings, allow_changed or ())
    if is_main_process():
        print(f"model: {model}")


@app.command()
def distil(
    config: ConfigPath, overrides: Overrides = None, allow_changed: AllowChanged = None
) -> None:
    """Train a student on a teacher's vectors; cut it from a model first, if the config says so."""
    from tercet.configs import load

    settings = load(config, overrides or ())
    from tercet.progress import is_main_process
    from tercet.stages import distil

    model = distil(settings, allow_changed or ())
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
    """A dry run: tokens per batch, memory, micro-batches and time of a fine-tuning run.

    Without --device a teacher and a guide encode their texts, and the run finds the vectors.
    """
    from tercet.configs import load

    settings = load(config, overrides or ())
    if device is None and (nodes, gpus, sharded) != (1, 1, False):
        raise UserError("--nodes, --gpus and --sharded are for machines elsewhere: name --device")
    from tercet.processes import on_main
    from tercet.progress import is_main_process
    from tercet.report import console_table, forecast_table, predicted_table
    from tercet.stages import with_student
    from tercet.train import forecast, predict

    with with_student(settings) as run:
        if device is not None:
            table = predicted_table(on_main(lambda: predict(run, nodes, gpus, device, sharded)))
        else:
            table = forecast_table(forecast(run))
    if is_main_process():
        show(console_table(table))


@app.command()
def mine(config: ConfigPath, overrides: Overrides = None) -> None:
    """Mine hard negatives for the training rows; train on them with data.mined=FILE."""
    from tercet.configs import load

    settings = load(config, overrides or ())
    from tercet.progress import is_main_process
    from tercet.stages import mine

    mined = mine(settings)
    if not is_main_process():
        return
    counts = mined.counts
    dropped = ", ".join(f"{n:,} {rule}" for rule, n in counts.dropped.items() if n)
    print(f"{counts.kept:,} negatives for {counts.queries:,} queries ({counts.without:,} got none)")
    print(f"of {counts.candidates:,} candidates: {dropped or 'none dropped'}")
    if counts.given_up:
        print(f"{counts.given_up:,} queries had too few and are left out of training")
    if not counts.kept:
        print("no negative was kept: loosen the rules above, or bring more documents")
    print(f"page: {mined.page}")
    print(f"mined: {mined.path}  (train on it with data.mined={mined.path})")
