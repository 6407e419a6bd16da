"""Killed at random moments, also while a checkpoint is written: the same bits in the end.

The long forms run with `make test-faults`.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from tercet.configs import load
from tercet.train import finetune
from tercet.train.checkpoint import verify
from tercet.train.tracking import read_log
from tests.conftest import weights
from tests.workers.launch import ROOT

STEPS, EVERY = 8, 3
LAST = f"checkpoints/step-{STEPS:08d}"


def job(name: str, world: int, out: Path, tiny_model: Path, pairs: Path) -> dict[str, object]:
    """Re-mining, dropout, a learnt temperature, and a checkpoint after each step."""
    settings = [
        f"output={out / name}",
        f"model.path={tiny_model}",
        f"data.train={pairs}",
        f"train.steps={STEPS}",
        "train.learning_rate=0.003",
        "train.dropout=0.2",
        "train.save_every=1",
        "loss.learn_temperature=true",
        f"mining.refresh_every={EVERY}",
        "mining.negatives=3",
        "mining.relative_margin=null",
    ]
    recipe = str(ROOT / "configs" / "tiny.yaml")
    return {"world": world, "recipe": recipe, "set": settings, "remine": True}


def start(one: dict[str, object], out: Path, die_writing: int | None = None) -> subprocess.Popen:
    """The job in a process group of its own; `die_writing`: kill -9 after so many fsyncs."""
    place = out / f"jobs-{time.monotonic_ns()}"
    place.mkdir()
    (place / "jobs.json").write_text(json.dumps([one | {"dies_writing": die_writing}]))
    quiet = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.workers.runs", str(place / "jobs.json")],
        cwd=ROOT,
        env=os.environ | quiet | {"TERCET_CACHE": str(out / "cache")},
        stderr=(place / "said").open("w"),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def finish(one: dict[str, object], out: Path) -> float:
    """Run the job to its end; how long it took."""
    begun = time.monotonic()
    running = start(one, out)
    assert running.wait(timeout=240) == 0
    return time.monotonic() - begun


def killed_and_resumed(
    kills: int, world: int, out: Path, tiny_model: Path, pairs: Path, seed: int
) -> None:
    draw = random.Random(seed)
    whole = job(f"whole-{world}", world, out, tiny_model, pairs)
    seconds = finish(whole, out)
    expected = out / f"whole-{world}" / LAST
    for number in range(kills):
        name = f"killed-{world}-{number}"
        one = job(name, world, out, tiny_model, pairs)
        if number % 2:  # inside the writing of a checkpoint
            running = start(one, out, die_writing=draw.randrange(1, 150))
            running.wait(timeout=240)
        else:
            running = start(one, out)
            with suppress(subprocess.TimeoutExpired):
                running.wait(timeout=draw.uniform(0.4, 1.0) * seconds)
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        finish(one, out)
        assert same(expected, out / name / LAST), (name, "the bits differ")
        logs = [read_log(out / n / "run.jsonl") for n in (f"whole-{world}", name)]
        assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]
        left = [p for p in (out / name / "checkpoints").iterdir()]
        assert all(verify(path) is None for path in left) and len(left) <= 3


def same(a: Path, b: Path) -> bool:
    pairs = [(weights(a), weights(b))]
    pairs.append(tuple(load_file(p / "trainer.safetensors") for p in (a, b)))  # type: ignore[arg-type]
    return all(
        x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x) for x, y in pairs
    )


@pytest.mark.parametrize("world", [1])
def test_runs_killed_anywhere_end_in_the_same_bits(
    world: int, tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    killed_and_resumed(2, world, tmp_path, tiny_model, pairs, seed=0)


@pytest.mark.faults
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("part", range(5))
def test_fifty_runs_killed_anywhere_end_in_the_same_bits(
    world: int, part: int, tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    killed_and_resumed(5, world, tmp_path, tiny_model, pairs, seed=part)


# Long runs


def soak(steps: int, tiny_model: Path, pairs: Path, out: Path) -> tuple[list[float], list[float]]:
    """Memory in MB and seconds of each step."""
    from tercet.train import loop

    used: list[float] = []
    at: list[float] = []
    plain, process = loop.gradient_of, psutil.Process()

    def watched(*given: object) -> object:
        used.append(process.memory_info().rss / 2**20)
        at.append(time.perf_counter())
        return plain(*given)  # type: ignore[arg-type]

    where = [f"model.path={tiny_model}", f"data.train={pairs}", f"output={out}"]
    more = [f"train.steps={steps}", f"train.save_every={max(2, steps // 20)}"]
    loop.gradient_of = watched  # type: ignore[assignment]
    try:
        finetune(load("tiny", [*where, *more]))
    finally:
        loop.gradient_of = plain
    return used, np.diff(at).tolist()


def quarters(values: list[float]) -> list[float]:
    return [float(np.median(part)) for part in np.array_split(values, 4)]


@pytest.mark.usefixtures("one_thread")
def test_memory_stays_flat(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    used, _ = soak(120, tiny_model, pairs, tmp_path)
    assert quarters(used)[3] <= 1.05 * quarters(used)[1]


@pytest.mark.faults
@pytest.mark.usefixtures("one_thread")
def test_memory_and_time_stay_flat_for_2000_steps(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    used, seconds = soak(2_000, tiny_model, pairs, tmp_path)
    memory, times = quarters(used), quarters(seconds)
    assert memory[3] <= 1.02 * memory[1], memory
    assert times[3] <= 1.1 * times[1], times
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
