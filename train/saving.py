"""A run's checkpoint: what is in it, and what keeps it from being written."""

import time
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tercet.errors import UserError
from tercet.files import disk_errors
from tercet.processes import share_mistakes
from tercet.train.average import weight_tensors
from tercet.train.checkpoint import (
    drop_old,
    drop_rounds,
    optimizer_tensors,
    save_checkpoint,
)
from tercet.train.run import Run
from tercet.train.shards import fill, gathered
from tercet.train.state import name_of

UNTOUCHED = "those before it are untouched: make room, and the same command goes on"


def save(run: Run) -> None:
    """Write a checkpoint of this step; keep it, those that train.keep says and the best."""
    run.accelerator.wait_for_everyone()
    settle(run)
    parts = [optimizer_tensors(run.optimizer, parameter_names(run))]
    if run.average is not None:
        parts.append(weight_tensors(run.encoder))
    if run.log_temperature is not None:
        parts.append(iter([("log_temperature", run.log_temperature)]))
    tensors = gathered(chain(*parts), keep=run.accelerator.is_main_process)
    state = {
        "best": run.best,
        "skipped": run.skipped,
        "micro_tokens": run.micro_tokens,
        "keep_tokens": run.keep_tokens,
        "processes": run.accelerator.num_processes,
        **run.begun,
        "mined": run.mined,
        "scaler": run.accelerator.scaler and run.accelerator.scaler.state_dict(),
    }
    with share_mistakes():
        if run.accelerator.is_main_process:
            _write(run, tensors, state)
    run.saved, run.saved_at = run.step, time.monotonic()


def settle(run: Run) -> None:
    """Make `run.whole` what is saved and evaluated now; all processes call it."""
    fill(run.whole, run.encoder)
    if run.average is not None:
        run.average.fill(run.whole)


def _write(run: Run, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint on this process, or raise UserError: the one before stays as it is."""
    spoilt = sorted(set(nonfinite(run.whole)) - run.nonfinite)
    if spoilt:
        raise UserError(
            f"the weights of step {run.step} are not finite (first {spoilt[0]}) and not saved; "
            "the last checkpoint is sound; lower train.learning_rate"
        )
    with disk_errors(run.checkpoints / name_of(run.step), UNTOUCHED):
        save_checkpoint(run.checkpoints, run.step, run.whole, tensors, state)
        best = run.best.get("step", run.step)
        drop_old(run.checkpoints, run.step, best, run.config.train.keep)
        drop_rounds(run.checkpoints, run.rounds, (run.mined or {}).get("file"))


def nonfinite(model: nn.Module) -> list[str]:
    """Names of the parameters that hold NaN or infinity."""
    return [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]


def parameter_names(run: Run) -> dict[Tensor, str]:
    """Name of every trained parameter, the same under any launch."""
    names: dict[Tensor, str] = {p: n for n, p in run.encoder.named_parameters() if p.requires_grad}
    if run.log_temperature is not None:
        names[run.log_temperature] = "log_temperature"
    return names
