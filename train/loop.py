"""The loop: one page, top to bottom. Everything it needs arrives ready to use in a Run."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tercet.data.batch import Batch
from tercet.data.rows import Indices
from tercet.errors import UserError
from tercet.files import write_json
from tercet.memory import free_memory, is_out_of_memory
from tercet.models import max_length, pad
from tercet.models.encode import pools_without_prompt
from tercet.models.routes import gives_unit_vectors
from tercet.processes import on_main
from tercet.progress import progress, say
from tercet.train.average import decay_at
from tercet.train.objective import objective, report
from tercet.train.optim import learning_rate, least_log_temperature, set_rate
from tercet.train.plan import Plan, plan
from tercet.train.polite import politely, stopped
from tercet.train.precision import own_forward
from tercet.train.room import OutOfMemory
from tercet.train.run import Evaluate, Run
from tercet.train.saving import save, settle
from tercet.train.shards import whole
from tercet.train.signals import effective_rank, masked_pairs
from tercet.train.sizing import peak_megabytes
from tercet.train.step import Outcome, Share, Terms, batch_gradient

MOST_SKIPPED = 100  # steps in a row; more is a run that learns nothing
HALVINGS = 4  # of the micro-batches in one step, before it is given up
SAVE_SECONDS = 1_800.0  # after which a checkpoint is written, however many steps that took
STOP, SAVE = 1, 2**16  # what a process tells the others with its gradient; more than it has peers


def train(run: Run) -> None:
    """Run the steps that are left.

    Raises UserError if a loss or gradient is not finite, and Stopped after SIGTERM or SIGINT. A
    checkpoint is written before each evaluation, so that no step is lost in it; a run that goes on
    from there begins by evaluating.
    """
    settings, alone = run.config.train, run.accelerator.num_processes == 1
    with progress("train", run.steps) as advance, politely() as asked:
        run.asked_to_stop = asked
        advance(run.step)
        if run.step and _evaluates_now(run):
            _evaluate(run)
        while run.step < run.steps:
            if run.refresh is not None:
                run.refresh(run)
            started = time.perf_counter()
            batch = run.batches(run.step)
            run.model.train()
            cut, outcome = gradient_in_room(run, batch)
            norm = clip(run)
            rate = learning_rate(run.step, run.steps, settings)
            if not _finite(run, outcome, norm):
                _refuse_or_skip(run, batch, outcome, norm)
            else:
                set_rate(run.optimizer, rate)
                run.optimizer.step()
                if run.log_temperature is not None:
                    run.log_temperature.data.clamp_(min=least_log_temperature(run.config.loss))
                if run.optimizer.step_was_skipped:  # type: ignore[attr-defined]
                    _count_overflow(run)
                else:
                    run.skipped_in_a_row = 0
                    if run.average is not None and settings.ema is not None:
                        run.average.update(run.encoder, decay_at(run.step, settings.ema))
            run.optimizer.zero_grad(set_to_none=True)
            run.step += 1

            last = run.step == run.steps
            if last or run.step == 1 or run.step % settings.log_every == 0:
                seconds = time.perf_counter() - started
                values = signals(run, batch, cut, outcome) | {"grad_norm": norm, "lr": rate}
                run.tracker.log(run.step, values | {"tokens_per_second": cut.tokens / seconds})
            evaluates = _evaluates_now(run)
            late, stops = divmod(outcome.flags, SAVE)
            stop = not last and (stops > 0 or (alone and asked()))
            if last or stop or evaluates or late or run.step % run.save_every == 0:
                save(run)
            if evaluates and not stop:
                _evaluate(run)
                stop = not last and alone and asked()
            advance(1, note=f"loss {outcome.loss:.4f}")
            if stop:
                raise stopped(run.step, run.steps)


def gradient_in_room(run: Run, batch: Batch) -> tuple[Plan, Outcome]:
    """The gradient of a step, by micro-batches half as large, and again, while there is no room.

    What comes of it is what a step with those micro-batches gives from the start, bit for bit.
    """
    for attempt in range(1 + HALVINGS):
        cut = plan_of(run, batch)
        try:
            return cut, gradient_of(run, batch, cut)
        except Exception as error:
            # Between what `Room` watches there are small allocations, which may fail as well; with
            # other processes waiting elsewhere that ends the run.
            alone = run.accelerator.num_processes == 1
            if not isinstance(error, OutOfMemory) and not (alone and is_out_of_memory(error)):
                raise
            run.optimizer.zero_grad(set_to_none=True)
        if attempt == HALVINGS:
            break
        # Only here, where nothing holds the failed step any more.
        free_memory(run.accelerator.device)
        run.micro_tokens, run.keep_tokens = max(1, run.micro_tokens // 2), run.keep_tokens // 2
        say(
            f"step {run.step + 1}: out of memory; once more with micro-batches of "
            f"{run.micro_tokens} tokens and graphs of {run.keep_tokens} tokens kept"
        )
        facts = {"micro_tokens": run.micro_tokens, "keep_tokens": run.keep_tokens}
        run.tracker.log(run.step + 1, {"out_of_memory": True} | facts)
    raise UserError(
        f"step {run.step + 1} does not fit into memory, with micro-batches of {run.micro_tokens} "
        "tokens either; shorten texts (model.max_length) or take a smaller batch.size"
    )


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

    def loss(queries: Tensor, documents: Tensor, share: Share) -> Terms:
        temperature = run.config.loss.temperature if learned is None else learned.exp()
        device, unit = run.accelerator.device, gives_unit_vectors(run.encoder)
        # Made here, where a lack of memory is noticed: it moves guide and teacher vectors.
        made = objective(run.config, batch, temperature, device, run.guide, run.teacher, unit)
        return made(queries, documents, share)

    return batch_gradient(
        run.accelerator,
        run.model,
        lambda micro: forward(run, batch, micro),
        cut,
        len(batch.queries),
        loss,
        keep_tokens=run.keep_tokens,
        seed=(run.config.train.seed, run.step),
        extra=() if learned is None else (learned,),
        flag=_flag(run),
    )


def _flag(run: Run) -> int:
    """STOP, SAVE or both; only the main process looks at its clock."""
    late = time.monotonic() - run.saved_at >= SAVE_SECONDS
    return STOP * run.asked_to_stop() + SAVE * (late and run.accelerator.is_main_process)


def forward(run: Run, batch: Batch, micro: Indices) -> Tensor:
    """(n, H) vectors of the texts of one micro-batch; an empty one still takes part."""
    queries, documents = run.tokens
    first = len(batch.queries)
    texts = [
        queries[batch.queries[i]] if i < first else documents[batch.documents[i - first]]
        for i in (micro if len(micro) else [0])
    ]
    role = "query" if len(micro) == 0 or micro[0] < first else "document"
    with run.accelerator.autocast():  # under DDP the model does it itself, under FSDP it does not
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


def clip(run: Run) -> float:
    """Cut the gradient to train.max_grad_norm; its norm before, once the device has made it."""
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
    ids = run.batches.ids(batch)
    if run.accelerator.is_main_process:
        found = {"loss": repr(outcome.loss), "grad_norm": repr(norm)}
        try:
            write_json(path, found | {"step": run.step + 1, "ids": ids})
        except OSError as error:
            say(f"{path}: cannot be written ({error.strerror})")
    what = (
        f"step {run.step + 1}: loss {outcome.loss}, gradient norm {norm}; rows "
        f"{', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''}, all in {path}"
    )
    run.skipped_in_a_row += 1
    if run.config.train.on_nonfinite == "stop" or run.skipped_in_a_row > MOST_SKIPPED:
        run.tracker.log(run.step + 1, {"loss": outcome.loss, "grad_norm": norm})
        raise UserError(f"{what}; nothing was applied, the last checkpoint is sound")
    say(f"{what}; step skipped")
    run.skipped += 1
    if run.accelerator.scaler is not None:  # it has unscaled, and must be told that nothing follows
        run.accelerator.scaler.update()


def _count_overflow(run: Run) -> None:
    """A step that fp16's scaler left out: expected now and then, for ever it teaches nothing."""
    run.skipped, run.skipped_in_a_row = run.skipped + 1, run.skipped_in_a_row + 1
    if run.skipped_in_a_row > MOST_SKIPPED:
        raise UserError(
            f"step {run.step + 1}: in fp16 the gradients of {run.skipped_in_a_row} steps in a row "
            "were not finite, whatever the scale; nothing was applied, the last checkpoint is "
            "sound; use train.mixed_precision=bf16"
        )


def _evaluates_now(run: Run) -> bool:
    due = run.step == run.steps or run.step % run.eval_every == 0
    return due and run.evaluate is not None


def _evaluate(run: Run) -> None:
    """Log the dev metrics, on the main process only, and note whether this is the best step."""
    if (evaluate := run.evaluate) is not None:
        settle(run)
        run.best = on_main(lambda: _best_of(run, evaluate))


def _best_of(run: Run, evaluate: Evaluate) -> dict[str, Any]:
    """Evaluate on this process; step and value of the best so far."""
    place = run.whole.device  # a copy goes back to where it waits
    with own_forward(run.whole):
        values = evaluate(run.whole.to(run.accelerator.device))
    run.whole.to(place)
    run.tracker.log(run.step, {f"dev/{name}": value for name, value in values.items()})
    metric = run.config.evaluation.metric
    if metric not in values:
        raise UserError(f"evaluation.metric: no {metric!r}; measured are {', '.join(values)}")
    better = values[metric] > run.best.get("value", -math.inf)
    return {"step": run.step, "value": values[metric]} if better else run.best
