"""One training step, ours and theirs, on the same texts, weights, truncation and optimizer."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn

from tercet.configs import Config, ModelConfig, TrainConfig
from tercet.data import TrainingSet
from tercet.models import EMBEDDED, freeze_unused, load_encoder, set_dropout
from tercet.train.loop import Run, forward, gradient_of, plan_of
from tercet.train.optim import adamw
from tercet.train.plan import Plan
from tercet.train.rows import batches_of, tokens_of
from tercet.train.sizing import choose_micro_tokens
from tercet.train.tracking import Tracker

TEMPERATURE = 0.05  # theirs is called scale, and is 20 by default
RATE = 2e-5
CLIP = 1.0  # gradient norm, the default of both trainers
EVERYTHING = 2**40  # keep_tokens: no graph is computed twice

Peer = Callable[[SentenceTransformer], nn.Module]


@dataclass(frozen=True)
class Step:
    """What a step gave: for checking that both sides computed the same."""

    loss: float
    norm: float  # of the whole gradient, before clipping


def student(max_length: int, layers: Sequence[int] | None = None) -> SentenceTransformer:
    """all-MiniLM-L6-v2 without dropout; with `layers`, only those of its six."""
    model = load_encoder(ModelConfig(path=EMBEDDED, max_length=max_length))
    if layers is not None:
        body: Any = model[0].auto_model
        body.encoder.layer = nn.ModuleList(body.encoder.layer[i] for i in layers)
        body.config.num_hidden_layers = len(layers)
    set_dropout(model, 0.0)
    freeze_unused(model)
    return model.train()


def body_parameters(model: SentenceTransformer) -> int:
    """Trained parameters that every token passes through: all but the embedding tables."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) not in tables)


class Ours:
    """A run set up as `tercet finetune` does; calling it takes one step on batch 0."""

    def __init__(
        self,
        data: TrainingSet,
        model: SentenceTransformer,
        *,
        micro_tokens: int | None = None,
        keep_tokens: int = EVERYTHING,
    ) -> None:
        settings = TrainConfig(learning_rate=RATE, dropout=0.0)
        self.folder = tempfile.TemporaryDirectory()  # of the run's log; goes with this object
        config = Config(output=self.folder.name, model=ModelConfig(path=EMBEDDED), train=settings)
        config = config.model_copy(
            update={"batch": config.batch.model_copy(update={"size": len(data)})}
        )
        accelerator = Accelerator(cpu=True)
        optimizer = adamw(model, settings)
        prepared, optimizer = accelerator.prepare(model, optimizer)
        self.run = Run(
            config=config,
            accelerator=accelerator,
            encoder=model,
            whole=model,
            model=prepared,
            optimizer=optimizer,
            log_temperature=None,
            average=None,
            begun={},
            batches=batches_of(config, data),
            tokens=(
                tokens_of(model, data.queries.texts, "query"),
                tokens_of(model, data.documents.texts, "document"),
            ),
            guide=None,
            teacher=None,
            tracker=Tracker(accelerator, config, 0),
            evaluate=None,
            refresh=None,
            steps=1_000_000,
            eval_every=1,
            save_every=1,
            micro_tokens=micro_tokens or 1,
            keep_tokens=keep_tokens,
        )
        self.batch = self.run.batches(0)
        if micro_tokens is None:
            lengths = plan_of(self.run, self.batch).lengths
            self.run.micro_tokens = choose_micro_tokens(
                accelerator, prepared, lambda micro: forward(self.run, self.batch, micro), lengths
            )

    @property
    def plan(self) -> Plan:
        return plan_of(self.run, self.batch)

    def __call__(self) -> Step:
        run = self.run
        batch = run.batches(0)
        outcome = gradient_of(run, batch, plan_of(run, batch))
        norm = run.accelerator.clip_grad_norm_(run.encoder.parameters(), CLIP)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        return Step(outcome.loss, float(torch.as_tensor(norm)))


class Theirs:
    """sentence-transformers' own loss on features it tokenised itself; a call is one step."""

    def __init__(
        self, data: TrainingSet, model: SentenceTransformer, peer: Peer, *, collate: bool = False
    ) -> None:
        self.model, self.loss = model, peer(model)
        self.texts = (data.queries.texts, data.documents.texts)
        self.optimizer = adamw(model, TrainConfig(learning_rate=RATE))
        self.collate = collate  # tokenise in every step, as its data loader does
        self.features = self._features()

    def __call__(self) -> Step:
        features = self._features() if self.collate else [dict(f) for f in self.features]
        value = self.loss(features, torch.empty(0))
        value.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Step(float(value.detach()), float(norm))

    def _features(self) -> list[dict[str, Tensor]]:
        return [self.model.preprocess(texts) for texts in self.texts]


def mnrl(model: SentenceTransformer) -> nn.Module:
    """In-batch negatives, the whole batch in one forward pass."""
    return MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)


def cached_mnrl(size: int = 32, tokens: int | None = None) -> Peer:
    """The same with GradCache, by rows or by tokens."""

    def build(model: SentenceTransformer) -> nn.Module:
        return CachedMultipleNegativesRankingLoss(
            model, scale=1 / TEMPERATURE, mini_batch_size=size, mini_batch_num_tokens=tokens
        )

    return build
