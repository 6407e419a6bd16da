"""From a config to a trained checkpoint: check, load, resume, run."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from tercet.configs import Config, DataConfig, ModelConfig
from tercet.data import TrainingSet, read_task, read_training, with_mined
from tercet.data.batch import Batches
from tercet.data.check import overlap
from tercet.data.order import Order
from tercet.data.rows import Indices
from tercet.data.tokens import TokenCache, token_cache
from tercet.errors import UserError
from tercet.files import fingerprint
from tercet.models import (
    Role,
    freeze_unused,
    load_encoder,
    max_length,
    prompt_of,
    resolve,
    set_dropout,
    tokenise,
    vectors,
)
from tercet.models.store import tokenizer_fingerprint
from tercet.progress import say
from tercet.train.checkpoint import load_checkpoint, newest, restore_optimizer
from tercet.train.loop import Evaluate, Run, forward, parameter_names, plan_of, train
from tercet.train.objective import GuideVectors
from tercet.train.optim import adamw
from tercet.train.output import claim_output, refuse_other_run
from tercet.train.sizing import bytes_per_token, choose_micro_tokens, free_bytes
from tercet.train.tracking import Tracker

GUIDE = "loss.false_negatives.guide"
KEEP_SHARE = 0.5  # of the free memory, for kept graphs; the rest is for everything else


@dataclass(frozen=True)
class Trained:
    """What a run leaves: its last checkpoint, and the best one if a dev set was watched."""

    last: Path
    best: Path
    steps: int
    metric: float | None  # the best dev score
    data: TrainingSet
    encoder: SentenceTransformer  # with the last weights


def finetune(config: Config, *, evaluate: Evaluate | None = None) -> Trained:
    """Fine-tune `config.model` on `config.data` with InfoNCE.

    Runs in one process or under `accelerate launch` or torchrun; a run that was interrupted goes
    on from its newest sound checkpoint when called again with the same config. `evaluate` gets
    the model and gives dev metrics; it is called on the main process only.
    Raises UserError for anything the user can mend, before the model is loaded where possible.
    """
    run = prepare(config, evaluate)
    train(run)
    _close(run)
    name = f"step-{run.best.get('step', run.step):08d}"
    last = run.checkpoints / f"step-{run.step:08d}"
    best = run.checkpoints / name
    return Trained(last, best, run.step, run.best.get("value"), run.batches.data, run.encoder)


def prepare(config: Config, evaluate: Evaluate | None = None) -> Run:
    """Check everything, load, resume if there is something to resume: ready for `train`."""
    accelerator = _accelerator(config)
    say(
        f"{accelerator.num_processes} process(es), {accelerator.distributed_type.value}, "
        f"device {accelerator.device}, mixed precision {accelerator.mixed_precision}"
    )
    refuse_other_run(config)
    resolve(config.model.path)  # a missing model should not wait for the data to be read
    if config.loss.false_negatives.guide is not None:
        resolve(config.loss.false_negatives.guide, GUIDE)
    data = read_data(config.data)
    if not config.loss.in_batch_negatives and (
        len(data.negatives.values) == 0 or config.data.negatives_per_row == 0
    ):
        raise UserError(
            "loss.in_batch_negatives: false leaves no negatives, for the rows have none of their "
            "own; mine some (data.mined) or name a column of them"
        )
    _warn_of_overlap(config, data)
    return _set_up(config, accelerator, data, evaluate)


def _close(run: Run) -> None:
    """End the trackers and the process group, DDP first.

    Otherwise DDP's reducer takes the last hold on the group down with it while it holds Python's
    lock, which the group's own thread may be waiting for: a hang after the last step, seen with
    gloo.
    """
    run.model = run.encoder
    run.accelerator.free_memory()
    run.tracker.finish()


def read_data(config: DataConfig) -> TrainingSet:
    """The training rows, with the mined negatives if there are any."""
    if not config.train:
        raise UserError("data.train is missing: name a file of pairs or a BEIR folder")
    rows = read_training(config.train)
    return rows if config.mined is None else with_mined(rows, config.mined)


def batches_of(config: Config, data: TrainingSet) -> Batches:
    """Every batch of the run, as a function of the step."""
    sizes = tuple(int(n) for n in data.source_offsets[1:] - data.source_offsets[:-1])
    order = Order(sizes, config.batch.size, config.train.seed, config.data.source_alpha)
    return Batches(
        data,
        order,
        positives_per_row=config.data.positives_per_row,
        negatives_per_row=config.data.negatives_per_row,
        known=config.loss.false_negatives.known,
    )


def tokens_of(encoder: SentenceTransformer, texts: Sequence[str], role: Role) -> TokenCache:
    """The token cache of `texts` as this model reads them in this role."""
    key = [tokenizer_fingerprint(encoder.tokenizer), prompt_of(encoder, role)]
    return token_cache(
        texts,
        lambda chunk: tokenise(encoder, chunk, role),
        fingerprint([*key, str(max_length(encoder))]),
    )


def _set_up(
    config: Config, accelerator: Accelerator, data: TrainingSet, evaluate: Evaluate | None
) -> Run:
    batches = batches_of(config, data)
    encoder = load_encoder(config.model)
    freeze_unused(encoder)
    width, nested = encoder.get_embedding_dimension() or 0, config.loss.matryoshka
    if nested is not None and max(nested.dims) > width:
        raise UserError(
            f"loss.matryoshka.dims: {max(nested.dims)} is more than the model's {width}"
        )
    if config.train.dropout is not None:
        set_dropout(encoder, config.train.dropout)
    if accelerator.is_main_process:
        claim_output(config)
    accelerator.wait_for_everyone()
    resumed = newest(Path(config.output) / "checkpoints")
    tensors, state = {}, {}
    if resumed is not None:
        tensors, state = load_checkpoint(resumed, encoder, config.model.trust_remote_code)
        _same_data_or_refuse(config, state, data)
    _same_step_or_refuse(accelerator, state.get("step", 0))
    with accelerator.main_process_first():
        tokens = (
            tokens_of(encoder, data.queries.texts, "query"),
            tokens_of(encoder, data.documents.texts, "document"),
        )
    guide = _guide(config, data, accelerator.device)
    learned = _log_temperature(config, accelerator)
    steps = config.train.steps or round(config.train.epochs * batches.order.steps_per_epoch) or 1
    if config.train.compile:
        encoder.compile(dynamic=True)
    optimizer = adamw(encoder, [learned] if learned is not None else [], config.train)
    with warnings.catch_warnings():  # the name below is on its way out, its successor not in yet
        warnings.filterwarnings("ignore", message=".*broadcast_buffers")
        model, optimizer = accelerator.prepare(encoder, optimizer)
    run = Run(
        config=config,
        accelerator=accelerator,
        encoder=encoder,
        model=model,
        optimizer=optimizer,
        log_temperature=learned,
        batches=batches,
        tokens=tokens,
        guide=guide,
        tracker=Tracker(accelerator, config, state.get("step", 0)),
        evaluate=evaluate,
        steps=steps,
        eval_every=config.train.eval_every or max(1, steps // 10),
        save_every=config.train.save_every or max(50, steps // 10),
        micro_tokens=0,
        keep_tokens=0,
    )
    if resumed is not None:
        run.step, run.best, run.skipped = state["step"], state["best"], state["skipped"]
        if learned is not None:
            learned.data.copy_(tensors["log_temperature"])
        restore_optimizer(optimizer, parameter_names(run), tensors)
        if accelerator.scaler is not None and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
        say(f"resuming after step {run.step} of {run.steps} from {resumed}")
    _set_sizes(run, state.get("micro_tokens"))
    return run


def _set_sizes(run: Run, known: int | None) -> None:
    """Settle what is `auto`; a resumed run keeps the micro-batches it began with."""
    asked = run.config.batch
    batch = run.batches(run.step)
    run.micro_tokens = known or 1 if asked.micro_tokens == "auto" else asked.micro_tokens
    run.keep_tokens = 0 if asked.keep_tokens == "auto" else asked.keep_tokens
    lengths = plan_of(run, batch).lengths
    run.model.train()

    def probe(micro: Indices) -> Tensor:
        return forward(run, batch, micro)

    if asked.micro_tokens == "auto" and known is None:
        run.micro_tokens = choose_micro_tokens(run.accelerator, run.model, probe, lengths)
    if asked.keep_tokens == "auto":
        each = bytes_per_token(run.accelerator, run.model, probe, lengths, run.micro_tokens)
        room = torch.tensor(free_bytes(run.accelerator) / each, device=run.accelerator.device)
        least = run.accelerator.gather(room).min()  # type: ignore[union-attr]
        run.keep_tokens = int(KEEP_SHARE * float(least))
    say(f"micro-batches of {run.micro_tokens} tokens, graphs of {run.keep_tokens} tokens kept")


def _accelerator(config: Config) -> Accelerator:
    accelerator = Accelerator(
        mixed_precision=config.train.mixed_precision,
        log_with="wandb" if config.tracking.wandb else None,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            # The others wait while one process tokenises or evaluates.
            InitProcessGroupKwargs(timeout=timedelta(hours=24)),
        ],
    )
    if accelerator.gradient_accumulation_steps != 1:
        raise UserError(
            "gradient accumulation adds no negatives: launch without it and raise batch.size, "
            "which needs no more memory here"
        )
    kind = accelerator.distributed_type.value
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA"):
        raise UserError(f"launched with {kind}: finetune runs under DDP; launch with --multi_gpu")
    return accelerator


def _log_temperature(config: Config, accelerator: Accelerator) -> nn.Parameter | None:
    if not config.loss.learn_temperature:
        return None
    start = torch.tensor(config.loss.temperature, device=accelerator.device)
    return nn.Parameter(start.log())


def _guide(config: Config, data: TrainingSet, device: torch.device) -> GuideVectors | None:
    path = config.loss.false_negatives.guide
    if path is None:
        return None
    trust = config.model.trust_remote_code
    guide = load_encoder(ModelConfig(path=path, trust_remote_code=trust), GUIDE).to(device)
    return GuideVectors(
        vectors(guide, data.queries.texts, "query", title="guide: queries"),
        vectors(guide, data.documents.texts, "document", title="guide: documents"),
    )


def _warn_of_overlap(config: Config, data: TrainingSet) -> None:
    watched = [(folder, "test") for folder in config.data.held_out]
    if config.evaluation.dev is not None:
        watched.append((config.evaluation.dev, config.evaluation.dev_split))
    for folder, split in watched:
        found = overlap(data, read_task(folder, split))
        if found.share > config.data.max_overlap:
            say(
                f"warning: training holds {found.queries} of {found.of_queries} queries and "
                f"{found.documents} of {found.of_documents} answers of {found.task}: "
                "scores on it will look too good"
            )


def _same_data_or_refuse(config: Config, state: dict[str, Any], data: TrainingSet) -> None:
    if state["data"] != data.fingerprint:
        raise UserError(
            f"output: {config.output} holds an unfinished run on other rows (data.train or "
            "data.mined has changed since); choose another folder or say overwrite=true"
        )


def _same_step_or_refuse(accelerator: Accelerator, step: int) -> None:
    """Ranks that see different disks would go on from different checkpoints, and hang."""
    here = torch.tensor([step], device=accelerator.device)
    steps = sorted(set(torch.as_tensor(accelerator.gather(here)).tolist()))
    if len(steps) > 1:
        raise UserError(
            f"output: the processes find checkpoints of different steps {steps}; put the output "
            "folder on a disk that all of them share"
        )
