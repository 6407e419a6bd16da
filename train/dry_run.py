"""What a run will take, before it is run: `tercet plan`."""

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from tercet.configs import Config
from tercet.models import max_length
from tercet.peers import together
from tercet.train.loop import clip, drawn_tokens, forward, gradient_in_room, gradient_of, plan_of
from tercet.train.run import Run
from tercet.train.setup import close, prepare
from tercet.train.sizing import SAMPLE, bytes_per_token, peak_megabytes


@dataclass(frozen=True)
class Forecast:
    """Means over the first batches; times and memory from one measured step of this machine."""

    processes: int
    rows: int
    steps: int
    texts_per_batch: float  # distinct
    tokens_per_batch: float  # real, of distinct texts
    padded_per_real_token: float
    duplicate_tokens_saved: float  # share of the tokens that repeats would have cost
    truncated_share: float  # of texts at the maximum length
    micro_tokens: int
    micro_batches: float  # per process and step
    keep_tokens: int
    recomputed: float  # share of tokens that go through the encoder twice
    bytes_per_token: float  # of a kept graph
    peak_megabytes: float  # that the fullest of these batches would take of this process
    seconds_per_step: float
    tokens_per_second: float

    @property
    def hours(self) -> float:
        """Of the whole run, without evaluations and checkpoints."""
        return self.steps * self.seconds_per_step / 3600


def forecast(config: Config) -> Forecast:
    """Set the run up in a temporary folder, look at its first batches and time one step.

    Nothing of the run's output folder is read or written, and no weight is changed. A teacher and a
    guide encode all their texts into the store, where the run finds them.
    """
    with tempfile.TemporaryDirectory() as folder:
        aside = {"output": folder, "tracking": config.tracking.model_copy(update={"wandb": False})}
        with ExitStack() as leaving, together():
            run = prepare(config.model_copy(update=aside))
            leaving.callback(close, run)
            found = _measure(run)
        run.accelerator.end_training()
    return found


def _measure(run: Run) -> Forecast:
    batches = [run.batches(step) for step in range(min(SAMPLE, run.steps))]
    gradient_in_room(run, batches[0])  # the first step also allocates and tunes
    run.optimizer.zero_grad(set_to_none=True)
    plans = [plan_of(run, batch) for batch in batches]
    tokens = sum(cut.tokens for cut in plans)
    drawn = sum(drawn_tokens(run, batch) for batch in batches)
    limit = max_length(run.encoder)
    cut_off = sum(int((cut.lengths >= limit).sum()) for cut in plans)
    start = time.perf_counter()
    outcome = gradient_of(run, batches[0], plans[0])
    clip(run)
    run.optimizer.step()  # of weights that only this forecast sees
    if run.accelerator.device.type != "cpu":
        torch.accelerator.synchronize()
    seconds = time.perf_counter() - start
    taken = peak_megabytes(run.accelerator)
    run.optimizer.zero_grad(set_to_none=True)
    each = bytes_per_token(
        run.accelerator,
        run.model,
        lambda micro: forward(run, batches[0], micro),
        plans[0].lengths,
        run.micro_tokens,
    )
    graphs = [cut.held(run.keep_tokens) for cut in plans]
    return Forecast(
        processes=run.accelerator.num_processes,
        rows=len(run.batches.data),
        steps=run.steps,
        texts_per_batch=sum(len(cut.lengths) for cut in plans) / len(plans),
        tokens_per_batch=tokens / len(plans),
        padded_per_real_token=sum(cut.padded for cut in plans) / tokens,
        duplicate_tokens_saved=1 - tokens / drawn,
        truncated_share=cut_off / sum(len(cut.lengths) for cut in plans),
        micro_tokens=run.micro_tokens,
        micro_batches=sum(len(cut.ranks[0]) for cut in plans) / len(plans),
        keep_tokens=run.keep_tokens,
        recomputed=outcome.recomputed,
        bytes_per_token=each,
        peak_megabytes=taken + (max(graphs) - graphs[0]) * each / 2**20,
        seconds_per_step=seconds * tokens / len(plans) / plans[0].tokens,
        tokens_per_second=plans[0].tokens / seconds,
    )
