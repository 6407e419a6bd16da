"""What the numbers were measured on, and how: alternating rounds, medians, peak memory."""

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from tercet.errors import UserError
from tercet.evaluation.speed import alternate, medians, ratio, seconds
from tercet.export.cpu import cpu_field, cpu_name
from tercet.files import write_json
from tercet.versions import installed_versions, whole_source

__all__ = [
    "RESULTS",
    "alternate",
    "gemm_flops",
    "gemm_peak",
    "in_subprocess",
    "machine",
    "measured_here",
    "medians",
    "peak_anonymous",
    "peak_memory",
    "ratio",
    "refuse_published",
    "refuse_trial",
    "seconds",
    "target",
    "targets_note",
    "write_result",
]

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
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
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
    found |= {"extra_mib": peak - before, "total_mib": peak}


@contextmanager
def peak_anonymous(found: dict[str, float], every: float = 0.01) -> Any:
    """Put the block's peak memory that no file backs into `found`, in MiB; Linux only.

    `anonymous_mib` is the whole process's, its libraries' included, `extra_anonymous_mib` what it
    grew by. The kernel keeps no high-water mark of it, so a thread looks `every` so many seconds.
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
        found |= {"anonymous_mib": max(seen), "extra_anonymous_mib": max(seen) - seen[0]}


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
    write_json(path, measured_here(values))
    return path


def write_section(path: Path, name: str, values: Mapping[str, Any], order: Iterable[str]) -> None:
    """Put what one part of a program found among the parts of an earlier run, in this order."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found[name] = measured_here(values)
    write_json(path, {part: found[part] for part in order if part in found})


def measured_here(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values, and with them the machine and the code that gave them."""
    code = installed_versions() | {"source": whole_source()}
    return {"machine": machine(), "code": code, **values}


def refuse_published(parser: argparse.ArgumentParser, out: Path) -> None:
    """End the program in one line if it would write a trial's numbers among the published ones."""
    if out.resolve() == RESULTS.resolve():
        parser.error("a trial does not write among the published results: give another --out")


def refuse_trial(parser: argparse.ArgumentParser, asked: argparse.Namespace, *options: str) -> None:
    """`refuse_published` if one of these options of the program makes less than the default does.

    Less: a smaller number, a list without one of the default's, or any other value than it.
    """

    def less(value: Any, usual: Any) -> bool:
        if isinstance(usual, list):
            return not set(usual) <= set(value)
        if isinstance(usual, int) and not isinstance(usual, bool):
            return value < usual
        return value != usual

    if any(less(getattr(asked, name), parser.get_default(name)) for name in options):
        refuse_published(parser, asked.out)


def target(
    what: str,
    got: float,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    interval: Sequence[float] | None = None,
) -> dict[str, Any]:
    """What was aimed at before anything was measured, and whether it was met; NaN meets nothing.

    The aim is for `got` itself; its `interval`, where it has one, says how sure that is.
    """
    aim = f"at least {least:g}" if most == math.inf else f"at most {most:g}"
    found = {"what": what, "got": got, "aim": aim, "met": bool(least <= got <= most)}
    return found if interval is None else found | {"interval": list(interval)}


def targets_note(targets: Sequence[Mapping[str, Any]]) -> str:
    """A sentence about what was aimed at."""
    said = (
        f"{one['what']} {one['aim']}: {one['got']:.4g}{_ends(one)}, "
        f"{'met' if one['met'] else 'missed'}"
        for one in targets
    )
    return f"Aims: {'; '.join(said)}."


def _ends(one: Mapping[str, Any]) -> str:
    low, high = one.get("interval", (None, None))
    return "" if low is None else f" [{low:.4g}, {high:.4g}]"


def _status(field: str) -> float:
    """A field of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))
