"""Killed at random moments, also while a checkpoint is written: the same bits in the end.

The long forms run with `make test-faults`.
"""

import random
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tercet.configs import Source
from tercet.data import read_training
from tercet.train.checkpoint import verify
from tercet.train.tracking import read_log
from tests.conftest import weights, write_task
from tests.workers.launch import ROOT, run_jobs

STEPS, EVERY, PACE = 8, 3, 0.03
LAST = f"checkpoints/step-{STEPS:08d}"
Job = dict[str, Any]


def job(name: str, world: int, out: Path, tiny_model: Path, pairs: Path, *more: str) -> Job:
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
        *more,
    ]
    recipe = str(ROOT / "configs" / "tiny.yaml")
    said = str(out / f"{name}.")
    return {"world": world, "recipe": recipe, "set": settings, "remine": True, "said": said}


def killed(one: Job, draw: random.Random, number: int, log: Path) -> Job:
    """The job with a kill at a drawn moment: while a checkpoint is written, or any.

    Every fifth comes before the first step has ended, the others later, so that all but those
    have something to go on from.
    """
    step = draw.randrange(2, STEPS - 2)
    if number % 2 == 0 and number % 5 != 4:  # by the process that writes; the other one hears of it
        fault = {"kind": "writing", "at": 0, "step": step, "point": draw.randrange(1, 60)}
    else:
        step = 0 if number % 5 == 4 else step
        fault: Job = {"kind": "moment", "step": step, "delay": draw.uniform(0, 2 * PACE)}
        fault["log"] = str(log)
    return one | {"fault": fault, "pace": PACE, "may_fail": True}


def killed_and_resumed(
    kills: int, world: int, out: Path, tiny_model: Path, pairs: Path, seed: int, *more: str
) -> None:
    draw = random.Random(seed)
    jobs = [job("whole", world, out, tiny_model, pairs, *more)]
    names = [f"killed-{number}" for number in range(kills)]
    for number, name in enumerate(names):
        one = job(name, world, out, tiny_model, pairs, *more)
        log = out / name / "run.jsonl"
        jobs += [killed(one, draw, number, log), one | {"said": str(out / f"{name}+")}]
    ends = run_jobs(jobs, out)
    assert all(ranks[0] == -signal.SIGKILL for ranks in ends[1::2]), ends
    assert not any(any(ranks) for ranks in ends[::2]), ends
    reached = [resumed_from((out / f"{name}+0").read_text()) for name in names]
    assert sum(0 < step < STEPS for step in reached) >= 0.8 * kills, reached
    for name in names:
        assert same(out / "whole" / LAST, out / name / LAST), (name, "the bits differ")
        logs = [read_log(out / n / "run.jsonl") for n in ("whole", name)]
        assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]
        left = list((out / name / "checkpoints").iterdir())
        assert all(verify(path) is None for path in left) and len(left) == 2


def resumed_from(said: str) -> int:
    found = re.search(r"resuming after step (\d+) of", said)
    return int(found[1]) if found else 0


def same(a: Path, b: Path) -> bool:
    pairs = [(weights(a), weights(b))]
    pairs.append(tuple(load_file(p / "trainer.safetensors") for p in (a, b)))  # type: ignore[arg-type]
    return all(
        x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x) for x, y in pairs
    )


def mined(pairs: Path, folder: Path) -> str:
    """A mined set to begin with: each question with the answer to the next one."""
    data = read_training([Source(path=str(pairs))])
    ids = data.documents.ids
    negatives = [[ids[(n + 1) % len(ids)]] for n in range(len(data.queries))]
    table = pa.table({"query_id": data.queries.ids, "negative_ids": negatives})
    pq.write_table(table, folder / "mined.parquet")
    return f"data.mined={folder / 'mined.parquet'}"


@pytest.mark.parametrize("world", [1, 2])
def test_runs_killed_anywhere_end_in_the_same_bits(
    world: int, tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    more = [mined(pairs, tmp_path)] if world == 1 else []
    killed_and_resumed(2, world, tmp_path, tiny_model, pairs, 0, *more)


@pytest.mark.faults
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("part", range(5))
def test_fifty_runs_killed_anywhere_end_in_the_same_bits(
    world: int, part: int, tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    more = [mined(pairs, tmp_path)] if part > 2 else []
    killed_and_resumed(5, world, tmp_path, tiny_model, pairs, part + 1, *more)


# Long runs


def soak(steps: int, tiny_model: Path, pairs: Path, out: Path) -> tuple[list[float], list[float]]:
    """Memory in MB and seconds of each step of a command that evaluates, saves and mines anew."""
    dev = write_task(out / "dev")
    every = max(2, steps // 20)
    where = [f"model.path={tiny_model}", f"data.train={pairs}", f"output={out / 'run'}"]
    more = [f"train.steps={steps}", f"train.save_every={every}", f"train.eval_every={2 * every}"]
    mining = [f"mining.refresh_every={2 * every}", "mining.negatives=3"]
    recipe = str(ROOT / "configs" / "tiny.yaml")
    watched = [*where, *more, *mining, f"evaluation.dev={dev}"]
    one = {"world": 1, "recipe": recipe, "set": watched, "use": str(out / "use"), "command": True}
    run_jobs([one | {"said": str(out / "said.")}], out, seconds=120 + steps)
    found = np.loadtxt(out / "use")
    assert len(found) == steps
    return found[:, 0].tolist(), np.diff(found[:, 1]).tolist()


def quarters(values: list[float]) -> list[float]:
    return [float(np.median(part)) for part in np.array_split(values, 4)]


def test_memory_stays_flat(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    used, _ = soak(120, tiny_model, pairs, tmp_path)
    assert quarters(used)[3] <= 1.05 * quarters(used)[1]


@pytest.mark.faults
def test_memory_and_time_stay_flat_for_2000_steps(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    used, seconds = soak(2_000, tiny_model, pairs, tmp_path)
    memory, times = quarters(used), quarters(seconds)
    assert memory[3] <= 1.02 * memory[1], memory
    assert times[3] <= 1.1 * times[1], times
