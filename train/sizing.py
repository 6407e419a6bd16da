"""What the machine can take, measured: tokens per micro-batch and tokens of kept graphs."""

import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tercet.data.rows import Indices
from tercet.memory import free_memory, is_out_of_memory
from tercet.train.plan import plan
from tercet.train.shards import own_part

SMALLEST = {"cpu": 1_024}  # padded tokens to start from; other devices start larger
SMALLEST_ELSEWHERE = 8_192
LARGEST = 262_144
SAMPLE = 8  # batches whose texts a forecast counts
KEEP_SHARE = 0.5  # of the free memory, for kept graphs; the rest is for everything else
CGROUP = Path("/sys/fs/cgroup")
PAYS = 1.03  # go on doubling while throughput grows by this factor
SPARE = 2.0  # memory a micro-batch may take for each byte that its graph holds


def choose_micro_tokens(
    accelerator: Accelerator,
    model: nn.Module,
    forward: Callable[[Indices], Tensor],
    lengths: Indices,
) -> int:
    """Double the micro-batch until it stops paying; every process makes the same choice.

    lengths (N,): tokens of the texts of a real batch. Gradients are left as they were: none.
    What by its graph's size will not fit on one of the processes is tried on none: a sharded
    model meets in every layer, where the others would wait for one without memory.
    """
    size = SMALLEST.get(accelerator.device.type, SMALLEST_ELSEWHERE)
    each = bytes_per_token(accelerator, model, forward, lengths, size)
    room = least(accelerator, free_bytes(accelerator) / (SPARE * each))
    best, best_speed = max(1, int(min(size, room))), 0.0
    while size <= min(LARGEST, room):
        try:
            speed = _speed(accelerator, model, forward, lengths, size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            speed = 0.0
        speed = least(accelerator, speed)  # 0 if it does not fit on one of them
        if speed <= best_speed * PAYS:  # also if not even the smallest fits
            break
        best, best_speed = size, speed
        if len(plan(lengths, 1, size).ranks[0]) == 1:  # a larger one would hold the same texts
            break
        size *= 2
    model.zero_grad(set_to_none=True)
    return best


def least(accelerator: Accelerator, value: float) -> float:
    """The smallest `value` of all processes, which meet here."""
    values = accelerator.gather(torch.tensor(value, device=accelerator.device))
    return float(torch.as_tensor(values).min())


def _speed(
    accelerator: Accelerator,
    model: nn.Module,
    forward: Callable[[Indices], Tensor],
    lengths: Indices,
    size: int,
) -> float:
    """Real tokens per second, forward and backward, of the fullest micro-batch of this size."""
    cut = plan(lengths, 1, size)
    micro = max(cut.ranks[0], key=cut.cost)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        # Without its sync FSDP keeps gradients where zero_grad does not reach them, and would add
        # them to those of the first step.
        with nullcontext() if accelerator.is_fsdp2 else accelerator.no_sync(model):
            vectors = forward(micro)
            vectors.sum().backward()
        float(vectors.detach().sum())  # waits for the device
        times.append(time.perf_counter() - start)
    return int(lengths[micro].sum()) / min(times)


def bytes_per_token(
    accelerator: Accelerator,
    model: nn.Module,
    forward: Callable[[Indices], Tensor],
    lengths: Indices,
    size: int,
) -> float:
    """Bytes that a kept graph holds for each padded token, counted on the longest texts.

    Of a graph of `size` tokens, or of one as large as there is room for.
    """
    while True:
        micro = plan(lengths, 1, size).ranks[0][0]
        try:
            tokens = len(micro) * int(lengths[micro].max())
            return _held(accelerator, model, forward, micro) / tokens
        except Exception as error:
            # A sharded model meets in each layer, where the others wait for this size.
            if not is_out_of_memory(error) or accelerator.is_fsdp2 or len(micro) == 1:
                raise
        free_memory(accelerator.device)
        size //= 2


def _held(
    accelerator: Accelerator,
    model: nn.Module,
    forward: Callable[[Indices], Tensor],
    micro: Indices,
) -> int:
    """Bytes that the graph of one micro-batch holds."""
    saved: list[torch.UntypedStorage] = []
    weights = {own_part(p).untyped_storage().data_ptr() for p in model.parameters()}

    def count(tensor: Tensor) -> Tensor:
        saved.append(tensor.untyped_storage())
        return tensor

    with (
        accelerator.no_sync(model),
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
    ):
        vectors = forward(micro)  # holds the graph
    # Only now: a sharded model has by now freed the weights that it had gathered.
    held = {storage.data_ptr(): storage.nbytes() for storage in saved}
    del vectors
    return sum(size for place, size in held.items() if place not in weights)


def free_bytes(accelerator: Accelerator) -> int:
    """Memory this process may still take: of its device, or its share of the machine's."""
    if accelerator.device.type == "cpu":
        # torchrun says how many processes share this machine.
        local = int(os.environ.get("LOCAL_WORLD_SIZE") or accelerator.num_processes)
        return min(psutil.virtual_memory().available, _container_room()) // local
    torch.accelerator.empty_cache()  # what the measurements left behind is free as well
    return torch.accelerator.get_memory_info()[0]


def _container_room() -> int:
    """What a container's limit leaves, if there is one: the machine's memory does not tell."""
    files = (  # of cgroups version 2 and 1
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    )
    for limit, used, stat, cache in files:
        try:
            most, taken = (int((CGROUP / name).read_text()) for name in (limit, used))
            lines = (CGROUP / stat).read_text().splitlines()
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
        counts = dict(line.split(maxsplit=1) for line in lines)
        return max(0, most - taken + int(counts.get(cache, 0)))  # cached files make room
    return sys.maxsize


def peak_megabytes(accelerator: Accelerator) -> float:
    """The most memory used so far: of the device, or of the process."""
    if accelerator.device.type != "cpu":
        return torch.accelerator.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
