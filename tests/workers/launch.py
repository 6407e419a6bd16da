"""Several real processes for the price of one start: import once, then fork every rank."""

import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

ROOT = Path(__file__).resolve().parent.parent.parent


def run_jobs(jobs: Sequence[dict[str, Any]], folder: Path, seconds: float = 300) -> list[list[int]]:
    """Training runs one after another, as workers/runs.py says; their caches are in `folder`.

    Returns the exit status of each rank of each job; those of a signal are negative.
    """
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs), encoding="utf-8")
    quiet = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(
        [sys.executable, "-m", "tests.workers.runs", str(path)],
        cwd=ROOT,
        env=os.environ | quiet | {"TERCET_CACHE": str(folder / "cache")},
        check=True,
        timeout=seconds,
    )
    return json.loads((folder / "statuses.json").read_text(encoding="utf-8"))


def run_ranks(world: int, work: Callable[[int], None]) -> None:
    """Run `work(rank)` in `world` processes of one gloo group. Raises if any of them fails."""
    failed = [rank for rank, status in enumerate(statuses(world, work)) if status != 0]
    if failed:
        raise SystemExit(f"ranks {failed} of {world} failed")


def statuses(world: int, work: Callable[[int], None]) -> list[int]:
    """The same, but returns the exit status of each, negative for a signal's.

    Call it before this process has computed anything with torch: threads do not survive a fork.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(rank, world, port, work) for rank in range(world)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _fork(rank: int, world: int, port: int, work: Callable[[int], None]) -> int:
    child = os.fork()
    if child:
        return child
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    launch = group | address if world > 1 else {}
    os.environ.update({name: str(value) for name, value in launch.items()})
    try:
        work(rank)
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(int(end.code or 0))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def sharding_accelerator(**settings: Any) -> Accelerator:
    """An Accelerator as `accelerate launch --use_fsdp --fsdp_version 2` gives on GPUs.

    On CPUs Accelerate takes DDP instead, though its FSDP code and torch's run there just as well:
    only that choice is made otherwise here.
    """
    os.environ["ACCELERATE_USE_CPU"] = "true"
    accelerator = Accelerator(**settings)
    PartialState._shared_state["distributed_type"] = (
        DistributedType.FSDP
    )  # what a reset goes back to
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=True
    )
    return accelerator
