"""A run on machines that are not here: `tercet plan --nodes 4 --gpus 8 --device h100`."""

from dataclasses import dataclass

import numpy as np
from accelerate.utils import parse_choice_from_env

from tercet.configs import Config
from tercet.data.rows import Indices
from tercet.errors import UserError, did_you_mean
from tercet.models import freeze_unused, load_encoder, refuse_pair
from tercet.models.encode import pools_without_prompt
from tercet.train.cost import (
    ADAM,
    DEVICES,
    Cluster,
    Cost,
    Device,
    Shape,
    cost_of,
    shape_of,
    token_bytes,
)
from tercet.train.plan import plan
from tercet.train.precision import refuse_two_precisions
from tercet.train.rows import batches_of, read_data, steps_of, tokens_of
from tercet.train.sizing import KEEP_SHARE, SAMPLE

MOST = 16_384  # processes: every micro-batch of each is planned
MICRO_TOKENS = 16_384  # where the config says auto: what fills a large device


@dataclass(frozen=True)
class Predicted:
    """The cost of a step, and of the run, on so many devices of a kind."""

    cluster: Cluster
    device: Device
    name: str
    cost: Cost
    steps: int
    seconds: float  # of a step
    micro_tokens: int
    keep_tokens: int

    @property
    def hours(self) -> float:
        """Of all devices together."""
        return self.steps * self.seconds * self.cluster.world / 3600

    @property
    def fits(self) -> bool:
        """Whether the memory of a device suffices."""
        return self.cost.memory <= self.device.memory


@dataclass(frozen=True)
class Workload:
    """What does not depend on the machines: the encoder's shape and the texts of some batches."""

    shape: Shape
    lengths: list[Indices]  # of each batch, queries first
    queries: list[int]
    apart: bool  # queries and documents share no micro-batch
    steps: int


def predict(config: Config, nodes: int, gpus: int, device: str, sharded: bool = False) -> Predicted:
    """Read the data, plan its first batches for `nodes` x `gpus` processes, and count.

    Nothing is trained and nothing written but the token cache. Raises UserError for a device that
    is not in `cost.DEVICES`, and for more than `MOST` processes.
    """
    device = device.lower()
    if device not in DEVICES:
        hint = did_you_mean(device, DEVICES, f"known are {', '.join(DEVICES)}")
        raise UserError(f"--device: {device!r} is not known; {hint}")
    cluster = Cluster(nodes, gpus, sharded, half=in_half(config))
    if cluster.world > MOST:
        raise UserError(
            f"--nodes, --gpus: {cluster.world:,} processes; at most {MOST:,} are planned"
        )
    return predict_on(workload(config), config, cluster, device)


def in_half(config: Config) -> bool:
    """Whether products are computed in bfloat16 or float16.

    Where the config leaves mixed precision open, the launcher's environment says it, as it will
    to Accelerate; without either it is "no". Raises UserError for what training would refuse.
    """
    launched = parse_choice_from_env("ACCELERATE_MIXED_PRECISION", "no").lower()
    mixed = config.train.mixed_precision or launched
    refuse_two_precisions(mixed, config)
    return mixed in ("bf16", "fp16") or config.model.dtype != "float32"


def workload(config: Config) -> Workload:
    """Count the texts of the run's first batches, mined negatives included.

    A projection to a teacher's width is not counted, since no teacher is loaded.
    """
    encoder = load_encoder(config.model)
    refuse_pair(encoder, "model.path")
    freeze_unused(encoder)
    _, rows = read_data(config)
    batches = batches_of(config, rows)
    queries = tokens_of(encoder, rows.queries.texts, "query")
    documents = tokens_of(encoder, rows.documents.texts, "document")
    steps = steps_of(config, batches)
    drawn = [batches(step) for step in range(min(SAMPLE, steps))]
    return Workload(
        shape=shape_of(encoder, averages=ADAM + (config.train.ema is not None)),
        lengths=[
            np.concatenate([queries.lengths(b.queries), documents.lengths(b.documents)])
            for b in drawn
        ],
        queries=[len(b.queries) for b in drawn],
        apart=pools_without_prompt(encoder),
        steps=steps,
    )


def predict_on(work: Workload, config: Config, cluster: Cluster, name: str) -> Predicted:
    """The same for a workload that has been counted: quick, at any number of processes."""
    device, asked = DEVICES[name], config.batch
    micro = MICRO_TOKENS if asked.micro_tokens == "auto" else asked.micro_tokens
    plans = []
    for lengths, queries in zip(work.lengths, work.queries, strict=True):
        roles = (np.arange(len(lengths)) >= queries).astype(np.int64)
        plans.append(plan(lengths, cluster.world, micro, roles if work.apart else None))
    keep = 0 if asked.keep_tokens == "auto" else asked.keep_tokens
    cost = cost_of(work.shape, plans, work.queries, cluster, keep)
    if asked.keep_tokens == "auto":
        each = token_bytes(work.shape, cluster.half)
        keep = max(0, int(KEEP_SHARE * (device.memory - cost.memory) / max(1.0, each)))
        cost = cost_of(work.shape, plans, work.queries, cluster, keep)
    seconds = cost.seconds(device, cluster)
    return Predicted(cluster, device, name, cost, work.steps, seconds, micro, keep)
