"""From a config to a trained checkpoint: check, load, resume, run."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from tercet.configs import Config, ModelConfig
from tercet.data import TrainingSet
from tercet.data.rows import Indices
from tercet.errors import UserError
from tercet.models import (
    freeze_unused,
    load_encoder,
    refuse_pair,
    resolve,
    set_dropout,
    settle_width,
)
from tercet.peers import together
from tercet.processes import PATIENCE, on_main
from tercet.progress import say
from tercet.train.alike import refuse_unlike
from tercet.train.average import WEIGHTS, Average, restore_weights
from tercet.train.checkpoint import load_checkpoint, restore_optimizer
from tercet.train.frozen import load_guide, load_teacher, refuse_absent
from tercet.train.loop import forward, plan_of, train
from tercet.train.optim import adamw, add_temperature, allocate
from tercet.train.output import check_allowed, claim_output, refuse_other_run
from tercet.train.precision import compute_as_ddp, refuse_precision
from tercet.train.remine import Remine, refresher, resume
from tercet.train.resuming import to_resume, what_begins
from tercet.train.rows import batches_of, data_beside, read_data, steps_of, tokens_of
from tercet.train.run import Evaluate, Run
from tercet.train.saving import nonfinite, parameter_names
from tercet.train.shards import choose_layers, whole_copy
from tercet.train.sizing import (
    KEEP_SHARE,
    bytes_per_token,
    choose_micro_tokens,
    free_bytes,
    least,
)
from tercet.train.state import name_of
from tercet.train.teacher import add_projection
from tercet.train.tracking import Tracker


@dataclass(frozen=True)
class Trained:
    """What a run leaves: its last checkpoint, and the best one if a dev set was watched."""

    last: Path
    best: Path
    steps: int
    metric: float | None  # the best dev score
    data: TrainingSet
    encoder: SentenceTransformer  # with the last weights
    begun: dict[str, Any]  # config, rows, models and code, as its checkpoints remember them


@dataclass(frozen=True)
class Read:
    """What a run is made of, read before anything is loaded."""

    rows: TrainingSet  # as they are on disk
    data: TrainingSet  # the same with the mined negatives that the config names
    beside: dict[str, Any]  # by config key, what its value leaves open


def finetune(
    config: Config,
    *,
    evaluate: Evaluate | None = None,
    remine: Remine | None = None,
    allow_changed: Sequence[str] = (),
    student: ModelConfig | None = None,
) -> Trained:
    """Fine-tune `config.model` on `config.data` with InfoNCE.

    Runs in one process or under `accelerate launch` or torchrun; a run that was interrupted goes
    on from its newest sound checkpoint when called again with the same config. `evaluate` gets
    the model and gives dev metrics; it is called on the main process only. `remine` writes the
    mined sets that mining.refresh_every asks for; all processes call it. A run on another config,
    other rows or other code is not gone on with, unless `allow_changed` names what differs: keys
    or sections of the config, "data", "code". `student` is trained in place of `config.model`, out
    of which the config makes it.
    Raises UserError for anything the user can mend, before the model is loaded where possible.
    """
    with ExitStack() as leaving, together():
        run = prepare(config, evaluate, remine, allow_changed, student)
        leaving.callback(close, run)  # after `together`: the others hear of a mistake first
        train(run)
    run.accelerator.end_training()  # not after a mistake: the group may wait for one who has gone
    last = run.checkpoints / name_of(run.step)
    best = run.checkpoints / name_of(run.best.get("step", run.step))
    score = run.best.get("value")
    return Trained(last, best, run.step, score, run.batches.data, run.whole, run.begun)


def prepare(
    config: Config,
    evaluate: Evaluate | None = None,
    remine: Remine | None = None,
    allow_changed: Sequence[str] = (),
    student: ModelConfig | None = None,
) -> Run:
    """Check everything, load, resume if there is something to resume: ready for `train`."""
    accelerator = _accelerator(config)
    kind = accelerator.distributed_type.value
    say(
        f"{accelerator.num_processes} process(es){'' if kind == 'NO' else f', {kind}'}, "
        f"device {accelerator.device}, mixed precision {accelerator.mixed_precision}"
    )
    check_allowed(allow_changed, config)
    refuse_other_run(config, allow_changed)
    refuse_absent(config)
    resolve(config.model.path)  # a missing model should not wait for the data to be read
    if config.train.ema is not None and config.model.dtype != "float32":
        raise UserError(f"train.ema averages float32 weights; model.dtype is {config.model.dtype}")
    rows, data = read_data(config)
    beside = data_beside(config, data) | {"train.mixed_precision": accelerator.mixed_precision}
    start = student or config.model
    read = Read(rows, data, beside)
    run = _set_up(config, accelerator, start, read, evaluate, remine, allow_changed)
    on_main(lambda: claim_output(config))
    return run


def close(run: Run) -> None:
    """End DDP and the trackers; the process group has to be ended after DDP.

    Otherwise DDP's reducer takes the last hold on the group down with it while it holds Python's
    lock, which the group's own thread may be waiting for: a hang after the last step, seen with
    gloo.
    """
    run.model = run.encoder
    run.accelerator.free_memory()
    run.tracker.finish()


def _set_up(
    config: Config,
    accelerator: Accelerator,
    start: ModelConfig,
    read: Read,
    evaluate: Evaluate | None = None,
    remine: Remine | None = None,
    allow_changed: Sequence[str] = (),
) -> Run:
    data = read.data
    batches = batches_of(config, data)
    encoder = load_encoder(start)
    refuse_pair(encoder, "model.path")
    settle_width(encoder)
    begun = what_begins(config, data, read.beside, encoder)
    refuse_unlike(begun)  # from here on processes share the work on what each of them has read
    teacher = load_teacher(config, data, accelerator.device)
    if teacher is not None:
        add_projection(encoder, teacher.width, config)
    frozen = freeze_unused(encoder)
    if frozen:
        more = f" and {len(frozen) - 1} more" if len(frozen) > 1 else ""
        say(f"not trained, since no vector depends on it: {frozen[0]}{more}")
    width, nested = encoder.get_embedding_dimension() or 0, config.loss.matryoshka
    if nested is not None and max(nested.dims) > width:
        raise UserError(
            f"loss.matryoshka.dims: {max(nested.dims)} is more than the model's {width}"
        )
    if config.train.dropout is not None:
        set_dropout(encoder, config.train.dropout)
    resumed = to_resume(config, begun, allow_changed)
    tensors, state = {}, {}
    if resumed is not None:
        tensors, state = load_checkpoint(resumed, encoder, config.model.trust_remote_code)
    with accelerator.main_process_first():
        tokens = (
            tokens_of(encoder, data.queries.texts, "query"),
            tokens_of(encoder, data.documents.texts, "document"),
        )
    guide = load_guide(config, data, accelerator.device)
    learned = _log_temperature(config, accelerator)
    every = config.mining.refresh_every
    steps = steps_of(config, batches)
    if config.train.compile:
        encoder.compile(dynamic=True)
    unsound = frozenset(nonfinite(encoder))
    whole = whole_copy(accelerator, encoder, averaged=config.train.ema is not None)
    choose_layers(accelerator, encoder)
    compute_as_ddp(accelerator)
    optimizer = adamw(encoder, config.train)
    with warnings.catch_warnings():  # the name below is on its way out, its successor not in yet
        warnings.filterwarnings("ignore", message=".*broadcast_buffers")
        model, optimizer = accelerator.prepare(encoder, optimizer)
    if accelerator.num_processes == 1:
        # Launched as one of one, it was wrapped in DDP, which Accelerate's `no_sync` then does not
        # hold back: torch's reducer would fail in the second step.
        model = accelerator.unwrap_model(model)
    if learned is not None:  # not before: FSDP looks for each parameter in the model
        add_temperature(optimizer, learned, config)
    allocate(optimizer)
    run = Run(
        config=config,
        accelerator=accelerator,
        encoder=encoder,
        whole=whole,
        model=model,
        optimizer=optimizer,
        log_temperature=learned,
        begun=begun,
        average=None if config.train.ema is None else Average(encoder),
        batches=batches,
        tokens=tokens,
        guide=guide,
        teacher=teacher,
        tracker=Tracker(accelerator, config, state.get("step", 0)),
        evaluate=evaluate,
        refresh=refresher(remine, read.rows, every) if remine and every else None,
        steps=steps,
        eval_every=config.train.eval_every or -(-steps // 10),
        save_every=config.train.save_every or max(50, -(-steps // 10)),
        nonfinite=unsound,
        micro_tokens=0,
        keep_tokens=0,
    )
    if resumed is not None:
        _resume(run, read.rows, resumed, tensors, state)
    _set_sizes(run, state)
    return run


def _resume(
    run: Run,
    rows: TrainingSet,
    checkpoint: Path,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
) -> None:
    """Put a run that is set up where its checkpoint left off; the model has its weights already."""
    run.step, run.skipped = state["step"], state["skipped"]
    run.best = state["best"] if _same_scores(run, state) else {}
    run.saved = run.step
    resume(run, rows, state)
    if run.log_temperature is not None:
        if "log_temperature" not in tensors:
            raise UserError(f"loss.learn_temperature: {checkpoint} was trained with a fixed one")
        run.log_temperature.data.copy_(tensors["log_temperature"])
    if any(name.startswith(WEIGHTS) for name in tensors):  # its model holds averages
        restore_weights(run.encoder, tensors)
    restore_optimizer(run.optimizer, parameter_names(run), tensors)
    scaler = run.accelerator.scaler
    if scaler is not None and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    say(f"resuming after step {run.step} of {run.steps} from {checkpoint}")


def _set_sizes(run: Run, state: dict[str, Any]) -> None:
    """Settle what is `auto`; a resumed run keeps the micro-batches it had, unless told others."""
    asked = run.config.batch
    batch = run.batches(run.step)
    same = state and state["config"]["batch"]["micro_tokens"] == asked.micro_tokens
    known: int | None = state["micro_tokens"] if same else None
    kept: int | None = state["keep_tokens"] if same and _same_graphs(run, state) else None
    run.micro_tokens = known or (1 if asked.micro_tokens == "auto" else asked.micro_tokens)
    run.keep_tokens = 0 if asked.keep_tokens == "auto" else asked.keep_tokens
    run.keep_tokens = run.keep_tokens if kept is None else kept
    lengths = plan_of(run, batch).lengths
    run.model.train()

    def probe(micro: Indices) -> Tensor:
        return forward(run, batch, micro)

    if asked.micro_tokens == "auto" and known is None:
        run.micro_tokens = choose_micro_tokens(run.accelerator, run.model, probe, lengths)
    if asked.keep_tokens == "auto" and kept is None:
        each = bytes_per_token(run.accelerator, run.model, probe, lengths, run.micro_tokens)
        room = least(run.accelerator, free_bytes(run.accelerator) / each)
        run.keep_tokens = int(KEEP_SHARE * room)
    say(f"micro-batches of {run.micro_tokens} tokens, graphs of {run.keep_tokens} tokens kept")


def _same_graphs(run: Run, state: dict[str, Any]) -> bool:
    """Whether as many graphs may be kept as before: as much was asked for, by as many processes."""
    before, asked = state["config"]["batch"]["keep_tokens"], run.config.batch.keep_tokens
    return before == asked and state["processes"] == run.accelerator.num_processes


def _same_scores(run: Run, state: dict[str, Any]) -> bool:
    """Whether the best score so far is of the metric and the dev set that are asked for now."""
    before, now = ({**s["config"]["evaluation"], **s["beside"]} for s in (state, run.begun))
    keys = ("dev", "dev_split", "metric", "evaluation.dev")
    return all(before.get(key) == now.get(key) for key in keys)


def _accelerator(config: Config) -> Accelerator:
    AcceleratorState._reset_state()  # an earlier run of this process has fixed its precision
    accelerator = Accelerator(
        mixed_precision=config.train.mixed_precision,
        log_with="wandb" if config.tracking.wandb else None,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )
    refuse_precision(accelerator, config)
    if accelerator.gradient_accumulation_steps != 1:
        raise UserError(
            "gradient accumulation adds no negatives: launch without it and raise batch.size, "
            "which needs no more memory here"
        )
    kind = accelerator.distributed_type.value
    if kind in ("DEEPSPEED", "MEGATRON_LM", "XLA") or (kind, accelerator.is_fsdp2) == (
        "FSDP",
        False,
    ):
        raise UserError(
            f"launched with {kind}: finetune runs under DDP (--multi_gpu) and FSDP 2 "
            "(--use_fsdp --fsdp_version 2)"
        )
    return accelerator


def _log_temperature(config: Config, accelerator: Accelerator) -> nn.Parameter | None:
    if not config.loss.learn_temperature:
        return None
    start = torch.tensor(config.loss.temperature, device=accelerator.device)
    return nn.Parameter(start.log())
