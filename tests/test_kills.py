"""Killed at random moments of the whole command, and again: the same bits in the end.

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
from numpy.typing import NDArray
from safetensors.torch import load_file

from tercet.configs import Source
from tercet.data import read_training
from tercet.errors import LOST
from tercet.train.checkpoint import verify
from tercet.train.tracking import read_log
from tests.conftest import weights, write_task
from tests.workers.launch import ROOT, run_jobs

STEPS, EVERY, PACE = 8, 3, 0.03
LAST = f"checkpoints/step-{STEPS:08d}"
Job = dict[str, Any]


def job(name: str, world: int, out: Path, tiny_model: Path, pairs: Path, *more: str) -> Job:
    """Re-mining, dropout, a learnt temperature, evaluations, and a checkpoint after each step."""
    settings = [
        f"output={out / name}",
        f"model.path={tiny_model}",
        f"data.train={pairs}",
        f"evaluation.dev={out / 'dev'}",
        f"train.steps={STEPS}",
        "train.learning_rate=0.003",
        "train.dropout=0.2",
        "train.save_every=1",
        f"train.eval_every={EVERY}",
        "loss.learn_temperature=true",
        f"mining.refresh_every={EVERY}",
        "mining.negatives=3",
        "mining.relative_margin=null",
        *more,
    ]
    recipe = str(ROOT / "configs" / "tiny.yaml")
    said = {"said": str(out / f"{name}."), "pace": PACE, "command": True}
    return said | {"world": world, "recipe": recipe, "set": settings}


def kill(draw: random.Random, number: int, world: int, times: Path) -> Job:
    """A kill at a drawn moment of the first run: of all its parts, by turns.

    Two of five come while a checkpoint is written, one in a round of mining, one in an evaluation
    or the export, one anywhere from the start of the command to its end. With two processes it is
    the one that writes, the other one, or both.
    """
    within: Job = {"kind": "inside", "times": str(times), "share": draw.uniform(0.01, 1)}
    alone, second = draw.choice([*range(world), None]), world - 1
    match number % 5:
        case 1:
            return within | {
                "place": draw.choice(["encoding", "mining"]),
                "call": draw.randrange(2),
                "at": second,
            }
        case 3:
            if draw.randrange(2):
                return within | {"place": "export", "call": 0, "at": 0}
            return within | {"place": "evaluation", "call": draw.randrange(3), "at": second}
        case 4:
            # One that goes before the others have met it is for their launcher to notice.
            least = 0.01 if alone is None or world == 1 else 0.4
            anywhere = {"place": "command", "call": 0, "share": draw.uniform(least, 1)}
            return within | anywhere | {"at": alone}
        case _:  # by the process that writes; the other one hears of it
            step, point = draw.randrange(2, STEPS + 1), draw.randrange(1, 60)
            return {"kind": "writing", "at": 0, "step": step, "point": point}


def killed_and_resumed(
    kills: int, world: int, out: Path, tiny_model: Path, pairs: Path, seed: int, *more: str
) -> None:
    """Runs killed once, two of five of them again while they go on, against one that was not."""
    draw, times = random.Random(seed), out / "times"
    write_task(out / "dev")
    jobs = [job("whole", world, out, tiny_model, pairs, *more) | {"times": str(times)}]
    names = [f"killed-{number}" for number in range(kills)]
    last = []  # of each name: the number of the job that ends it
    for number, name in enumerate(names):
        one = job(name, world, out, tiny_model, pairs, *more) | {"may_fail": True}
        jobs.append(one | {"fault": kill(draw, number, world, times)})
        if number % 5 in (0, 2):
            share = draw.uniform(0.05, 0.5)
            again: Job = {"kind": "inside", "place": "command", "call": 0, "times": str(times)}
            jobs.append(one | {"fault": again | {"share": share}, "said": str(out / f"{name}-")})
        last.append(len(jobs))
        jobs.append(one | {"said": str(out / f"{name}+")})
    ends = run_jobs(jobs, out, seconds=600)
    for number, ranks in enumerate(ends[1:], 1):
        if number in last:
            said = (out / f"{names[last.index(number)]}+0").read_text()
            assert not any(ranks), (number, ranks, said)
        else:
            assert -signal.SIGKILL in ranks, (jobs[number]["fault"], ranks)
            assert set(ranks) <= {-signal.SIGKILL, LOST, 0}, (jobs[number]["fault"], ranks)
    whole = list((out / "whole" / "checkpoints").iterdir())
    reached = [resumed_from((out / f"{name}+0").read_text()) for name in names]
    assert sum(step > 0 for step in reached) >= kills // 2, reached
    for name in names:
        assert same(out / "whole" / LAST, out / name / LAST), (name, "the bits differ")
        exports = [load_file(out / n / "model" / "model.safetensors") for n in ("whole", name)]
        assert all(torch.equal(exports[0][key], exports[1][key]) for key in exports[0])
        logs = [read_log(out / n / "run.jsonl") for n in ("whole", name)]
        for what in ("loss", "dev/ndcg@10"):
            found = [[line[what] for line in log if what in line] for log in logs]
            assert found[0] == found[1] and found[0], (name, what)
        # Killed after its last checkpoint, a run leaves older ones that were to be dropped.
        kept = [out / name / "checkpoints" / path.name for path in whole]
        assert all(verify(path) is None for path in kept)


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
    more = [mined(pairs, tmp_path)] if (part + world) % 2 else []
    killed_and_resumed(5, world, tmp_path, tiny_model, pairs, part + 1, *more)


# Long runs


def soak(
    steps: int, every: int, tiny_model: Path, pairs: Path, out: Path
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Memory in MB and seconds of each step of a command that evaluates, saves and mines anew.

    It saves after every `every` steps, evaluates and mines after twice as many. The seconds of a
    step (one fewer) are those to the next, with all that comes between them.
    """
    dev = write_task(out / "dev")
    where = [f"model.path={tiny_model}", f"data.train={pairs}", f"output={out / 'run'}"]
    more = [f"train.steps={steps}", f"train.save_every={every}", f"train.eval_every={2 * every}"]
    mining = [f"mining.refresh_every={2 * every}", "mining.negatives=3"]
    recipe = str(ROOT / "configs" / "tiny.yaml")
    watched = [*where, *more, *mining, f"evaluation.dev={dev}"]
    one = {"world": 1, "recipe": recipe, "set": watched, "use": str(out / "use"), "command": True}
    run_jobs([one | {"said": str(out / "said.")}], out, seconds=120 + steps)
    found = np.loadtxt(out / "use")
    assert len(found) == steps
    return found[:, 0], np.diff(found[:, 1])


def quarters(values: NDArray[np.float64]) -> list[float]:
    return [float(np.median(part)) for part in np.array_split(values, 4)]


def test_memory_stays_flat(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    used, _ = soak(120, 6, tiny_model, pairs, tmp_path)
    assert quarters(used)[3] <= 1.05 * quarters(used)[1]


@pytest.mark.faults
def test_memory_and_time_stay_flat_for_2000_steps(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    """Also the steps after which it saves, and those after which it evaluates and mines as well.

    Of those there are few, so that their medians tell a drift from noise less finely.
    """
    used, seconds = soak(2_000, 20, tiny_model, pairs, tmp_path)
    memory, step = quarters(used), np.arange(1, len(seconds) + 1)
    assert memory[3] <= 1.02 * memory[1], memory
    kinds = {"plain": step % 20 != 0, "saving": step % 40 == 20, "mining": step % 40 == 0}
    for kind, share in (("plain", 1.1), ("saving", 1.2), ("mining", 1.2)):
        times = quarters(seconds[kinds[kind]])
        assert times[3] <= share * times[1], (kind, times)
