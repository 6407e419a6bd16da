"""The loop: one page, top to bottom. Everything it needs arrives ready to use in a Run."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from tercet.configs import Config
from tercet.data.batch import Batch, Batches, TextBatches
from tercet.data.rows import Indices
from tercet.data.tokens import TokenCache
from tercet.errors import UserError
from tercet.files import write_json
from tercet.models import max_length, pad
from tercet.models.encode import pools_without_prompt
from tercet.progress import progress, say
from tercet.train.average import Average, decay_at, weight_tensors
from tercet.train.checkpoint import drop_old, optimizer_tensors, save_checkpoint
from tercet.train.objective import GuideVectors, objective, report
from tercet.train.optim import learning_rate
from tercet.train.plan import Plan, plan
from tercet.train.shards import fill, whole
from tercet.train.signals import effective_rank, masked_pairs
from tercet.train.sizing import peak_megabytes
from tercet.train.step import Outcome, batch_gradient
from tercet.train.teacher import Teacher
from tercet.train.tracking import Tracker

Evaluate = Callable[[SentenceTransformer], dict[str, float]]


@dataclass
class Run:
    """A training run, set up. `step`, `best` and the tensors inside are what a checkpoint keeps."""

    config: Config
    accelerator: Accelerator
    encoder: SentenceTransformer  # the model itself; under FSDP this process's shards of it
    whole: SentenceTransformer  # what is saved and evaluated: the same, or a copy to fill before
    model: nn.Module  # the encoder, wrapped for this launch
    optimizer: torch.optim.Optimizer
    log_temperature: nn.Parameter | None  # None: the temperature is fixed
    average: Average | None  # of the weights; None: the last ones are saved and evaluated
    data: str  # fingerprint of the rows that the run began with
    batches: Batches | TextBatches
    tokens: tuple[TokenCache, TokenCache]  # of all queries, of all documents
    guide: GuideVectors | None
    teacher: Teacher | None
    tracker: Tracker
    evaluate: Evaluate | None
    refresh: Callable[["Run"], None] | None  # mines negatives anew when it is time
    steps: int
    eval_every: int
    save_every: int
    micro_tokens: int
    keep_tokens: int
    step: int = 0  # finished steps
    best: dict[str, Any] = field(default_factory=dict)  # step and value of the metric
    skipped: int = 0  # steps left out because something was not finite
    mined: dict[str, str] | None = None  # file and hash of the set mined inside the run

    @property
    def checkpoints(self) -> Path:
        return Path(self.config.output) / "checkpoints"


def train(run: Run) -> None:
    """Run the steps that are left. Raises UserError if a loss or gradient is not finite."""
    settings = run.config.train
    with progress("train", run.steps) as advance:
        advance(run.step)
        while run.step < run.steps:
            if run.refresh is not None:
                run.refresh(run)
            started = time.perf_counter()
            batch = run.batches(run.step)
            cut = plan_of(run, batch)
            run.model.train()
            outcome = gradient_of(run, batch, cut)
            norm = _clip(run)
            rate = learning_rate(run.step, run.steps, settings)
            if not _finite(run, outcome, norm):
                _refuse_or_skip(run, batch, outcome, norm)
            else:
                for group in run.optimizer.param_groups:
                    group["lr"] = rate
                run.optimizer.step()
                if run.average is not None and settings.ema is not None:
                    run.average.update(run.encoder, decay_at(run.step, settings.ema))
            run.optimizer.zero_grad(set_to_none=True)
            run.step += 1

            last = run.step == run.steps
            if last or run.step == 1 or run.step % settings.log_every == 0:
                seconds = time.perf_counter() - started
                values = signals(run, batch, cut, outcome) | {"grad_norm": norm, "lr": rate}
                run.tracker.log(run.step, values | {"tokens_per_second": cut.tokens / seconds})
            improved = _evaluate(run) if last or run.step % run.eval_every == 0 else False
            if last or improved or run.step % run.save_every == 0:
                save(run)
            advance(1, note=f"loss {outcome.loss:.4f}")


def plan_of(run: Run, batch: Batch) -> Plan:
    """The micro-batches of every process for this batch."""
    queries, documents = run.tokens
    lengths = np.concatenate([queries.lengths(batch.queries), documents.lengths(batch.documents)])
    roles = np.repeat([0, 1], [len(batch.queries), len(batch.documents)])
    apart = roles if pools_without_prompt(run.encoder) else None
    return plan(lengths, run.accelerator.num_processes, run.micro_tokens, apart)


def drawn_tokens(run: Run, batch: Batch) -> int:
    """Tokens of a batch if each text were encoded as often as the rows draw it."""
    queries, documents = run.tokens
    return int(queries.lengths(batch.asked).sum() + documents.lengths(batch.shown).sum())


def gradient_of(run: Run, batch: Batch, cut: Plan) -> Outcome:
    """Leave the gradient of the configured loss over `batch` in the parameters."""
    learned = run.log_temperature
    temperature = run.config.loss.temperature if learned is None else learned.exp()
    return batch_gradient(
        run.accelerator,
        run.model,
        lambda micro: forward(run, batch, micro),
        cut,
        len(batch.queries),
        objective(run.config, batch, temperature, run.accelerator.device, run.guide, run.teacher),
        keep_tokens=run.keep_tokens,
        seed=(run.config.train.seed, run.step),
        extra=() if learned is None else (learned,),
    )


def forward(run: Run, batch: Batch, micro: Indices) -> Tensor:
    """(n, H) vectors of the texts of one micro-batch; an empty one still takes part."""
    queries, documents = run.tokens
    first = len(batch.queries)
    texts = [
        queries[batch.queries[i]] if i < first else documents[batch.documents[i - first]]
        for i in (micro if len(micro) else [0])
    ]
    role = "query" if len(micro) == 0 or micro[0] < first else "document"
    return run.model(pad(run.encoder, texts, role))["sentence_embedding"][: len(micro)]


def signals(run: Run, batch: Batch, cut: Plan, outcome: Outcome) -> dict[str, Any]:
    """What is logged of a step besides its speed."""
    return {
        "loss": outcome.loss,
        **report(outcome.sums, len(batch.positives)),
        **masked_pairs(batch, run.batches.data.documents.same),
        "padded_per_real_token": cut.padded / cut.tokens,
        "duplicate_tokens_saved": 1 - cut.tokens / drawn_tokens(run, batch),
        "recomputed": outcome.recomputed,
        "texts_at_max_length": int((cut.lengths >= max_length(run.encoder)).sum()),
        "effective_rank": effective_rank(outcome.vectors),
        "temperature": float(run.log_temperature.detach().exp())
        if run.log_temperature is not None
        else run.config.loss.temperature,
        "epoch": run.step / run.batches.order.steps_per_epoch,
        "skipped_steps": run.skipped,
        "peak_megabytes": peak_megabytes(run.accelerator),
    }


def settle(run: Run) -> None:
    """Make `run.whole` what is saved and evaluated now; all processes call it."""
    fill(run.whole, run.encoder)
    if run.average is not None:
        run.average.fill(run.whole)


def save(run: Run) -> None:
    """Write a checkpoint of this step; keep it, the one before and the best."""
    run.accelerator.wait_for_everyone()
    settle(run)
    tensors = optimizer_tensors(run.optimizer, parameter_names(run))
    if run.average is not None:
        tensors |= weight_tensors(run.encoder)
    if run.accelerator.is_main_process:
        if run.log_temperature is not None:
            tensors["log_temperature"] = run.log_temperature
        state = {
            "best": run.best,
            "skipped": run.skipped,
            "micro_tokens": run.micro_tokens,
            "data": run.data,
            "mined": run.mined,
            "scaler": run.accelerator.scaler and run.accelerator.scaler.state_dict(),
        }
        save_checkpoint(run.checkpoints, run.step, run.whole, tensors, state)
        drop_old(run.checkpoints, run.best.get("step", run.step))
    run.accelerator.wait_for_everyone()


def parameter_names(run: Run) -> dict[Tensor, str]:
    """Name of every trained parameter, the same under any launch."""
    names: dict[Tensor, str] = {p: n for n, p in run.encoder.named_parameters() if p.requires_grad}
    if run.log_temperature is not None:
        names[run.log_temperature] = "log_temperature"
    return names


def _clip(run: Run) -> float:
    limit = run.config.train.max_grad_norm
    learned = run.log_temperature
    parameters = [*run.model.parameters(), *([] if learned is None else [learned])]
    norm = run.accelerator.clip_grad_norm_(parameters, math.inf if limit is None else limit)
    return float(whole(torch.as_tensor(norm)))


def _finite(run: Run, outcome: Outcome, norm: float) -> bool:
    # With fp16 an overflowing gradient is expected now and then: the scaler skips that step.
    return math.isfinite(outcome.loss) and (
        math.isfinite(norm) or run.accelerator.scaler is not None
    )


def _refuse_or_skip(run: Run, batch: Batch, outcome: Outcome, norm: float) -> None:
    path = Path(run.config.output) / f"nonfinite-step-{run.step + 1}.json"
    if run.accelerator.is_main_process:
        found = {"loss": repr(outcome.loss), "grad_norm": repr(norm)}
        write_json(path, found | {"step": run.step + 1, "ids": run.batches.ids(batch)})
    what = f"step {run.step + 1}: loss {outcome.loss}, gradient norm {norm}; rows in {path}"
    if run.config.train.on_nonfinite == "stop":
        run.tracker.log(run.step + 1, {"loss": outcome.loss, "grad_norm": norm})
        raise UserError(f"{what}; nothing was applied, the last checkpoint is sound")
    say(f"{what}; step skipped")
    run.skipped += 1
    if run.accelerator.scaler is not None:  # it has unscaled, and must be told that nothing follows
        run.accelerator.scaler.update()


def _evaluate(run: Run) -> bool:
    """Log the dev metrics; whether this is the best step so far. On the main process only."""
    run.accelerator.wait_for_everyone()
    improved = False
    if run.evaluate is not None:
        settle(run)
    place = run.whole.device  # a copy goes back to where it waits
    if run.evaluate is not None and run.accelerator.is_main_process:
        values = run.evaluate(run.whole.to(run.accelerator.device))
        run.whole.to(place)
        run.tracker.log(run.step, {f"dev/{name}": value for name, value in values.items()})
        metric = run.config.evaluation.metric
        if metric not in values:
            raise UserError(f"evaluation.metric: no {metric!r}; measured are {', '.join(values)}")
        value = values[metric]
        improved = value > run.best.get("value", -math.inf)
        if improved:
            run.best = {"step": run.step, "value": value}
    flag = torch.tensor(float(improved), device=run.accelerator.device)
    return bool(run.accelerator.reduce(flag, "sum") > 0)  # type: ignore[operator]
