"""A training run: everything the loop needs, ready to use."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from sentence_transformers import SentenceTransformer
from torch import nn

from tercet.configs import Config
from tercet.data.batch import Batches, TextBatches
from tercet.data.tokens import TokenCache
from tercet.train.average import Average
from tercet.train.objective import GuideVectors
from tercet.train.teacher import Teacher
from tercet.train.tracking import Tracker

Evaluate = Callable[[SentenceTransformer], dict[str, float]]


@dataclass
class Run:
    """A training run, set up. `step`, `best` and the tensors inside are what a checkpoint keeps."""

    config: Config
    accelerator: Accelerator
    encoder: SentenceTransformer  # the model itself; under FSDP this process's shards of it
    whole: SentenceTransformer  # the same, or its copy to fill before saving and evaluating
    model: nn.Module  # the encoder, wrapped for this launch
    optimizer: torch.optim.Optimizer
    log_temperature: nn.Parameter | None  # None: the temperature is fixed
    average: Average | None  # of the weights; None: the last ones are saved and evaluated
    begun: dict[str, Any]  # config, data and code that the run began with
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
    saved: int = 0  # of the newest checkpoint
    saved_at: float = field(default_factory=time.monotonic)  # when it was written, or we began
    best: dict[str, Any] = field(default_factory=dict)  # step and value of the metric
    skipped: int = 0  # steps left out because something was not finite
    skipped_in_a_row: int = 0
    nonfinite: frozenset[str] = frozenset()  # parameters that were so from the start
    mined: dict[str, Any] | None = None  # file and hash of the set mined inside; its last step + 1
    asked_to_stop: Callable[[], bool] = bool  # whether this process has had a signal

    @property
    def checkpoints(self) -> Path:
        return Path(self.config.output) / "checkpoints"

    @property
    def rounds(self) -> Path:
        """Where negatives are mined inside the run."""
        return Path(self.config.output) / "mined"
