"""What a step costs on machines that are not here: tokens, FLOPs, bytes per link, memory, hours.

Counted from the plan of real batches, so that padding and balance are those of the run; what a
device makes of it is a prediction (`SHARE` of its peak, no overlap of computing and sending).
Checked against counts of real processes by `python -m benchmarks.scale`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from sentence_transformers import SentenceTransformer
from torch import nn

from tercet.models.layers import layer_count
from tercet.train.plan import Plan

# Of a device's peak that training reaches; encoders of 10-300 M parameters get 0.2-0.5.
SHARE = 0.35
FLOAT = 4  # bytes
HALF = 2
ADAM = 2  # averages for each weight
# Numbers that a graph holds for each token, layer and unit of width (attention without scores). In
# mixed precision they are of half precision, but for those of normalisation, which count twice.
KEPT, KEPT_MIXED = 17, 22
VECTORS = 6  # copies of a batch's vectors alive at once: values, gradients, what is sent


@dataclass(frozen=True)
class Device:
    """An accelerator by its data sheet: dense FLOP/s, bytes, bytes/s in one direction."""

    half: float  # FLOP/s in bfloat16; of the V100 in float16
    single: float  # FLOP/s in float32 without TF32, which is off unless switched on
    memory: float
    link: float  # to the others of its machine
    network: float  # its share of the machine's network

    def flops(self, half: bool) -> float:
        """FLOP/s with mixed precision, or without."""
        return self.half if half else self.single


DEVICES = {
    "v100": Device(125e12, 15.7e12, 32e9, 150e9, 1.6e9),  # SXM2, 100 Gbit/s for 8
    "a10g": Device(70e12, 35e12, 24e9, 32e9, 1.6e9),  # PCIe 4.0 x16, as the next two
    "l4": Device(121e12, 30.3e12, 24e9, 32e9, 1.6e9),
    "l40s": Device(362e12, 91.6e12, 48e9, 32e9, 6.25e9),
    "a100": Device(312e12, 19.5e12, 80e9, 300e9, 25e9),  # SXM4, 200 Gbit/s each
    "h100": Device(989e12, 67e12, 80e9, 450e9, 50e9),  # SXM5, 400 Gbit/s each
    "h200": Device(989e12, 67e12, 141e9, 450e9, 50e9),
    "b200": Device(2250e12, 75e12, 180e9, 900e9, 50e9),
    "mi300x": Device(1307e12, 163.4e12, 192e9, 448e9, 50e9),
}


@dataclass(frozen=True)
class Shape:
    """What of an encoder decides the cost."""

    parameters: int
    trained: int
    products: int  # weights that each token is multiplied with
    layers: int
    width: int  # of the layers
    vector: int  # width of the vectors
    number: int  # bytes of a weight, its gradient and each of its averages
    averages: int  # of each trained weight: Adam's, and that of train.ema


@dataclass(frozen=True)
class Cluster:
    """How a run is launched. Bytes are those of ring collectives."""

    nodes: int
    gpus: int  # processes per node
    sharded: bool = False  # FSDP instead of DDP
    half: bool = True  # mixed precision: bf16 or fp16

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.nodes * self.gpus


@dataclass(frozen=True)
class Cost:
    """One step, mean over the batches looked at; FLOPs and memory of the busiest process."""

    tokens: float
    padded: float
    imbalance: float  # of padded tokens, see Plan
    flops: float  # of all processes
    flops_busiest: float
    sent: float  # bytes that each process sends
    leaving: float  # bytes that leave each node
    memory: float  # bytes, of the batch that takes most
    recomputed: float  # share of padded tokens encoded twice

    def seconds(self, device: Device, cluster: Cluster, share: float = SHARE) -> float:
        """Computing, then sending: no overlap, so an upper bound on what sending adds."""
        links = self.sent / device.link if cluster.gpus > 1 else 0.0
        network = self.leaving / (cluster.gpus * device.network)
        return self.flops_busiest / (share * device.flops(cluster.half)) + max(links, network)


def shape_of(encoder: SentenceTransformer, averages: int = ADAM) -> Shape:
    """Count an encoder's parameters by what is done with them."""
    body = getattr(encoder[0], "auto_model", None)
    settings = getattr(body, "config", None)
    linear = [m.weight for m in encoder.modules() if isinstance(m, nn.Linear)]
    products = sum(weight.numel() for weight in linear if weight.requires_grad)
    return Shape(
        parameters=sum(p.numel() for p in encoder.parameters()),
        trained=sum(p.numel() for p in encoder.parameters() if p.requires_grad),
        products=products,
        layers=layer_count(encoder),
        width=int(getattr(settings, "hidden_size", 0) or 0),
        vector=encoder.get_embedding_dimension() or 0,
        number=next(encoder.parameters()).element_size(),
        averages=averages,
    )


def cost_of(
    shape: Shape, plans: Sequence[Plan], queries: Sequence[int], cluster: Cluster, keep_tokens: int
) -> Cost:
    """Of batches; `plans` are for `cluster.world`, `queries` how many texts of each are queries."""
    each = [
        asdict(_one(shape, plan, count, cluster, keep_tokens))
        for plan, count in zip(plans, queries, strict=True)
    ]
    mean = {name: float(np.mean([cost[name] for cost in each])) for name in each[0]}
    return Cost(**mean | {"memory": max(cost["memory"] for cost in each)})


def forward_flops(shape: Shape, texts: int, longest: int) -> float:
    """One forward pass of a micro-batch: products with weights, and of attention with itself."""
    tokens = texts * longest
    return 2.0 * shape.products * tokens + 4.0 * shape.layers * shape.width * tokens * longest


def all_reduce(size: float, world: int) -> float:
    """Bytes each process sends so that all have the sum of `size` bytes (ring)."""
    return 2 * size * (world - 1) / world


def all_gather(size: float, world: int) -> float:
    """The same so that all have `size` bytes of which each began with a part; also for scatter."""
    return size * (world - 1) / world


def _one(shape: Shape, plan: Plan, queries: int, cluster: Cluster, keep: int) -> Cost:
    world, texts = cluster.world, len(plan.lengths)
    kept = plan.kept(keep)
    work = []
    for micros in plan.ranks:
        flops = [forward_flops(shape, len(m), int(plan.lengths[m].max(initial=0))) for m in micros]
        work.append(3 * sum(flops) + sum(flops[kept:]))
    # Scores, again in the backward pass, and the gradients of both sides.
    loss = 8.0 * queries * (texts - queries) * shape.vector
    sent = _sent(shape, plan, cluster, kept)
    return Cost(
        tokens=plan.tokens,
        padded=plan.padded,
        imbalance=plan.imbalance,
        flops=sum(work) + loss,
        flops_busiest=max(work) + loss / world,
        sent=sent,
        leaving=sent if cluster.nodes > 1 else 0.0,
        memory=_memory(shape, plan, cluster, keep),
        recomputed=plan.recomputed(keep),
    )


def _sent(shape: Shape, plan: Plan, cluster: Cluster, kept: int) -> float:
    """Vectors there and their gradient back, then the weights' gradient; shards besides that."""
    world, texts = cluster.world, len(plan.lengths)
    most = max(sum(len(m) for m in micros) for micros in plan.ranks)
    row = shape.vector * FLOAT
    vectors = all_gather(world * most * row, world) + all_reduce(texts * row, world)
    if not cluster.sharded:
        return vectors + all_reduce(shape.trained * shape.number, world)
    micros = len(plan.ranks[0])
    gathers = micros + (micros - kept) + micros  # forward, again where no graph is kept, backward
    weights = shape.parameters * shape.number
    gradient = all_gather(shape.trained * shape.number, world)
    return vectors + gathers * all_gather(weights, world) + gradient


def _memory(shape: Shape, plan: Plan, cluster: Cluster, keep: int) -> float:
    """States, graphs, vectors."""
    micros = len(plan.ranks[0])
    graphs = plan.held(keep) * token_bytes(shape, cluster.half)
    if cluster.half and shape.number == FLOAT:  # each graph holds the weights as it multiplied them
        graphs += min(micros, plan.kept(keep) + 1) * shape.products * HALF
    vectors = VECTORS * len(plan.lengths) * shape.vector * FLOAT
    return state_bytes(shape, cluster, micros) + graphs + vectors


def state_bytes(shape: Shape, cluster: Cluster, micro_batches: int) -> float:
    """What a process holds whatever the batch: weights, gradients, their averages, buffers."""
    trained = shape.trained * shape.number
    states = shape.parameters * shape.number + (1 + shape.averages) * trained
    if cluster.sharded:
        # What is in no layer is whole as long as one runs, and the next layer is fetched meanwhile.
        layers = shape.products * 2 / max(2, shape.layers)
        whole = (shape.parameters - shape.products + layers) * shape.number
        # Until the last micro-batch the gradient is added up unsharded, on every process.
        return states / cluster.world + whole + trained * (micro_batches > 1)
    return states + trained * (cluster.world > 1)


def token_bytes(shape: Shape, half: bool) -> float:
    """Bytes that a kept graph holds for each token."""
    mixed = half and shape.number == FLOAT
    numbers = (KEPT_MIXED if mixed else KEPT) * max(1, shape.layers) * shape.width
    return float(numbers * (HALF if half else FLOAT))
