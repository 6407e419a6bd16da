"""What a model costs to run, measured in a process of its own: `measure_apart`.

A fresh process has loaded no other model, so its load time and peak memory are the model's.
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig
from tercet.errors import UserError
from tercet.evaluation.speed import WARM_UP, latencies, seconds
from tercet.models import default_device, encode, is_here, load_encoder, resolve, single_encoder
from tercet.models.student import Size

PASSES = 3  # over the documents; one may meet another program
DOCUMENTS, QUERIES = 256, 100  # of those given, the first ones
LAUNCH = {  # what torchrun, Accelerate and MPI say: the process measured is in no launch
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    *("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
}


@dataclass(frozen=True)
class Efficiency:
    """Size, and speed on this machine."""

    dimensions: int
    parameters: int
    megabytes: float  # of its parameters, 10 ** 6 bytes
    load_seconds: float  # the second time: files read before, libraries loaded, no network
    documents_per_second: float  # of those given, in batches; median of PASSES
    slowest_pass: float  # documents per second
    fastest_pass: float
    latency_p50_ms: float  # of one query at a time, tokenising included
    latency_p95_ms: float
    peak_memory_mb: float  # 10 ** 6 bytes; of the whole process, loading and encoding
    base_memory_mb: float  # of it, what Python and the libraries held before
    accelerator_memory_mb: float | None  # peak; None on a CPU
    device: str
    threads: int


def measure_apart(
    config: ModelConfig, documents: Sequence[str], queries: Sequence[str]
) -> Efficiency:
    """`measure` in a process of its own. Raises UserError with its last line if it fails."""
    given = {
        "config": config.model_dump(),
        "documents": list(documents[:DOCUMENTS]),
        "queries": list(queries[:QUERIES]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tercet.evaluation.efficiency"],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
        env=environment_apart(config),
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise UserError(f"{config.path}: measuring its speed failed: {lines[-1]}")
    return Efficiency(**json.loads(done.stdout.splitlines()[-1]))


def measure(config: ModelConfig, documents: Sequence[str], queries: Sequence[str]) -> Efficiency:
    """Load the model and time it on these texts, none of which may be missing."""
    device = default_device()
    torch.zeros(1, device=device)  # the first touch of an accelerator takes seconds
    base = memory_mb()[0]
    model, load_seconds = _loaded(config, device)
    encode(model, documents[:WARM_UP], "document")
    passes = [seconds(lambda: encode(model, documents, "document")) for _ in range(PASSES)]
    slowest, speed, fastest = len(documents) / np.quantile(passes, [1, 0.5, 0])
    (waits,) = latencies({"query": single_encoder(model, "query")}, queries).values()
    p50, p95 = (1000 * np.quantile(waits, [0.5, 0.95])).tolist()
    size, on_cpu = Size.of(model), device.type == "cpu"
    return Efficiency(
        dimensions=size.dims,
        parameters=size.parameters,
        megabytes=size.megabytes,
        load_seconds=load_seconds,
        documents_per_second=float(speed),
        slowest_pass=float(slowest),
        fastest_pass=float(fastest),
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        peak_memory_mb=memory_mb()[1],
        base_memory_mb=base,
        accelerator_memory_mb=None if on_cpu else torch.accelerator.max_memory_allocated() / 1e6,
        device=str(device),
        threads=torch.get_num_threads(),
    )


def memory_mb() -> tuple[float, float]:
    """Resident memory of this process in 10 ** 6 bytes: now, and at most so far.

    From the kernel where it says (Linux); getrusage counts what the parent held before it started
    this process. Elsewhere psutil's peak, or what is held now if it knows none.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        now, peak = (1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    else:
        found = psutil.Process().memory_info()
        now, peak = found.rss, getattr(found, "peak_wset", found.rss)
    return now / 1e6, peak / 1e6


def environment_apart(config: ModelConfig) -> dict[str, str]:
    """Variables of the process apart: in no launch, not asking the hub for what is on this disk."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCH}
    return kept | {"HF_HUB_OFFLINE": "1"} if is_here(config.path) else kept


def _loaded(config: ModelConfig, device: torch.device) -> tuple[SentenceTransformer, float]:
    """The model, and the seconds to load it once its libraries are and its files were read."""
    found = config.model_copy(update={"path": resolve(config.path, "model")})
    load_encoder(found, "model").to(device)
    gc.collect()
    start = time.perf_counter()
    model = load_encoder(found, "model").to(device)
    return model, time.perf_counter() - start


def main() -> None:
    """Measure what standard input asks for, and print it as one line of JSON."""
    given = json.load(sys.stdin)
    config = ModelConfig(**given["config"])
    print(json.dumps(asdict(measure(config, given["documents"], given["queries"]))))


if __name__ == "__main__":
    main()
