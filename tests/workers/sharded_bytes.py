"""One process of a sharded launch: what it sends in a step, and what was predicted.

`python -m tests.workers.sharded_bytes FOLDER MODEL` under torchrun; FOLDER has pairs.jsonl.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from benchmarks import scale
from tercet.train import setup
from tercet.train.cost import all_gather, all_reduce
from tests.workers.launch import sharding_accelerator

Ring = Callable[[float, int], float]
RINGS: dict[str, tuple[Ring, tuple[str, ...], int]] = {  # what holds the whole: its name, its place
    "all_reduce": (all_reduce, ("tensor",), 0),
    "all_gather_into_tensor": (all_gather, ("output_tensor",), 0),
    "all_gather_single": (all_gather, ("output_tensor", "output"), 0),
    "reduce_scatter_tensor": (all_gather, ("input",), 1),
    "reduce_scatter_single": (all_gather, ("input",), 1),
}


@contextmanager
def counted() -> Iterator[list[float]]:
    """As in benchmarks/scale.py, with what torch's FSDP calls; one may call another."""
    sent, depth = [0.0], [0]
    plain = {name: getattr(dist, name) for name in RINGS if hasattr(dist, name)}

    def call(name: str, *given: Any, **named: Any) -> Any:
        ring, keys, place = RINGS[name]
        named_so = [named[key] for key in keys if key in named]
        whole: Tensor = named_so[0] if named_so else given[place]
        if not depth[0]:
            sent[0] += ring(whole.numel() * whole.element_size(), dist.get_world_size())
        depth[0] += 1
        try:
            return plain[name](*given, **named)
        finally:
            depth[0] -= 1

    for name in plain:
        setattr(dist, name, partial(call, name))
    try:
        yield sent
    finally:
        for name, function in plain.items():
            setattr(dist, name, function)


if __name__ == "__main__":
    scale.BATCH = 16
    scale.Cluster = partial(scale.Cluster, sharded=True)  # type: ignore[assignment, misc]
    scale.counted = counted
    setup.Accelerator = sharding_accelerator  # type: ignore[assignment]
    scale.count_here(Path(sys.argv[1]), sys.argv[2], 64)
