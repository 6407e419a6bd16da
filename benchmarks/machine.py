"""What the numbers were measured on, and how: alternating rounds, medians, peak memory."""

import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from tercet.errors import UserError
from tercet.export.cpu import cpu_field, cpu_name
from tercet.files import write_json
from tercet.progress import progress
from tercet.versions import code_version

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "sentence-transformers", "accelerate", "numpy")
LOAD_BEFORE = round(os.getloadavg()[0], 2)  # when the program began
PEAK_SIZE = 2_048  # rows and columns of the square matrices whose product is the machine's peak
VECTOR_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_bf16", "fma", "asimd", "sve")


def machine() -> dict[str, Any]:
    """Processor, threads and versions; taken with every result."""
    return {
        "processor": cpu_name(),
        "vector_flags": [f for f in VECTOR_FLAGS if f in cpu_field("flags").split()],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": LOAD_BEFORE,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def gemm_flops(m: int, k: int, n: int, times: int = 1) -> float:
    """Floating-point operations a second of the (m, k) x (k, n) float32 product, best of some."""
    a, b, out = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
    torch.mm(a, b, out=out)  # `out` again and again: no time goes into fresh memory
    best = min(seconds(lambda: torch.mm(a, b, out=out)) for _ in range(times))
    return 2 * m * k * n / best


def gemm_peak() -> float:
    """The most float32 operations a second seen here: large square matrix products."""
    return gemm_flops(PEAK_SIZE, PEAK_SIZE, PEAK_SIZE, times=8)


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock time of one call, garbage collected before it and not during it."""
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    finally:
        gc.enable()


def alternate(
    variants: Mapping[str, Callable[[], Any]], rounds: int, untimed: int = 1
) -> dict[str, list[float]]:
    """Seconds of every variant, each round running all of them in turn, some rounds untimed first.

    Whatever else the machine does then falls on all variants alike.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    with progress("rounds", (untimed + rounds) * len(variants)) as advance:
        for turn in range(untimed + rounds):
            for name, work in variants.items():
                spent = seconds(work)
                if turn >= untimed:
                    times[name].append(spent)
                advance(note=f"{name}: {spent:.3g} s")
    return times


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Median of each variant's times."""
    return {name: statistics.median(values) for name, values in times.items()}


def ratio(times: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """Median over rounds of how many times longer `slow` took than `fast` in the same round.

    >>> ratio({"a": [4.0, 9.0, 6.0], "b": [2.0, 3.0, 3.0]}, "a", "b")
    2.0
    """
    return statistics.median(s / f for s, f in zip(times[slow], times[fast], strict=True))


@contextmanager
def peak_memory(found: dict[str, float]) -> Any:
    """Put the block's peak resident memory above what there was before it into `found`, in MiB.

    Also the process's total at that peak. Linux only: it resets the kernel's high-water mark.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory that is kept would hide what is new
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        raise UserError("peak memory is measured on Linux only (/proc/self/clear_refs)") from None
    before = _status("VmRSS")
    yield
    peak = _status("VmHWM")
    found |= {"extra_mb": peak - before, "total_mb": peak}


@contextmanager
def peak_anonymous(found: dict[str, float], every: float = 0.01) -> Any:
    """Put the block's peak memory that no file backs, `anonymous_mb`, into `found`; Linux only.

    The kernel keeps no high-water mark of it, so a thread looks `every` so many seconds.
    """
    seen, done = [_status("RssAnon")], threading.Event()

    def watch() -> None:
        while not done.wait(every):
            seen.append(_status("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        found["anonymous_mb"] = max(seen)


def in_subprocess(module: str, *arguments: str) -> dict[str, Any]:
    """What `python -m module arguments` prints on its last line, as JSON: a fresh memory map."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command[1:])}: ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def write_result(name: str, values: Mapping[str, Any], folder: Path) -> Path:
    """Write one program's result, the machine and the code with it."""
    path = folder / f"{name}.json"
    write_json(path, {"machine": machine(), "code": code_version(), **values})
    return path


def _status(field: str) -> float:
    """A field of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))
