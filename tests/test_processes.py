"""Training in several processes, sharded or not, and after kill -9: the same run as in one.

`narrower` is begun by two processes, killed, and gone on with by one.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tercet.train.tracking import read_log
from tests.conftest import weights
from tests.workers.launch import ROOT, run_jobs


def apart(a: Path, b: Path) -> float:
    """The largest difference of any weight."""
    return max(differences(a, b).values())


def differences(a: Path, b: Path) -> dict[str, float]:
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    return {name: float((one[name] - other[name]).abs().max()) for name in one}


@pytest.fixture(scope="module")
def runs(tiny_model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One and two processes, interrupted and not."""
    out = tmp_path_factory.mktemp("runs")
    recipe = ROOT / "configs" / "tiny.yaml"
    base = [f"model.path={tiny_model}", f"data.train={pairs}", "train.learning_rate=0.001"]
    spread = [*base, "train.steps=8", "batch.size=10", "batch.keep_tokens=100"]
    dropout = [*base, "train.steps=7", "train.dropout=0.2", "train.save_every=2"]
    learned = ["loss.learn_temperature=true"]

    def job(name: str, world: int, options: list[str], kill: int | None = None) -> dict[str, Any]:
        settings = [f"output={out / name}", *options]
        seen = str(out) if name in ("one", "two") else None
        recipe_path = str(recipe)
        return {
            "world": world,
            "recipe": recipe_path,
            "set": settings,
            "kill_after": kill,
            "seen": seen,
            "sharded": "sharded" in name,
        }

    jobs = [
        job("one", 1, spread + learned),
        job("two", 2, spread + learned),
        job("whole", 1, dropout + learned),
        job("killed", 1, dropout + learned, kill=5),
        job("killed", 1, dropout + learned),
        job("whole-two", 2, dropout),
        job("killed-two", 2, dropout, kill=3),
        job("killed-two", 2, dropout),
        job("narrower", 2, [*spread, *learned, "train.save_every=2"], kill=5),
        job("narrower", 1, [*spread, *learned, "train.save_every=2"]),
        job("sharded", 2, spread + learned),
        job("auto-sharded", 2, [*spread, *learned, "batch.micro_tokens=auto", "train.steps=1"]),
        job("whole-sharded", 2, dropout + learned),
        job("killed-sharded", 2, dropout + learned, kill=3),
        job("killed-sharded", 2, dropout + learned),
    ]
    run_jobs(jobs, out)
    return out


@pytest.mark.parametrize("name", ["two", "narrower", "sharded"])
def test_two_processes_train_the_same_model_as_one(runs: Path, name: str) -> None:
    one, two = (read_log(runs / run / "run.jsonl") for run in ("one", name))
    assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(1, 9))
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "grad_norm", "temperature", "positive_score", "in_batch_accuracy"):
            assert a[key] == pytest.approx(b[key], abs=1e-5), key
    last = "checkpoints/step-00000008"
    found = differences(runs / "one" / last, runs / name / last)
    # A key bias adds the same to every score of a softmax: its gradient is rounding alone, which
    # Adam scales up to a full step.
    assert max(d for name, d in found.items() if not name.endswith("key.bias")) < 1e-5


def test_measuring_leaves_no_gradient_behind(runs: Path) -> None:
    one, auto = (read_log(runs / name / "run.jsonl")[0] for name in ("one", "auto-sharded"))
    assert auto["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_every_process_reads_the_same_batches(runs: Path) -> None:
    read = [
        (runs / name).read_text(encoding="utf-8")
        for name in ("rank0of1.jsonl", "rank0of2.jsonl", "rank1of2.jsonl")
    ]
    assert read[0] == read[1] == read[2] and len(read[0].splitlines()) == 8


@pytest.mark.parametrize("name", ["", "-two", "-sharded"])
def test_a_killed_run_ends_in_the_same_bits(runs: Path, name: str) -> None:
    whole, killed = (
        runs / f"{kind}{name}" / "checkpoints/step-00000007" for kind in ("whole", "killed")
    )
    assert apart(whole, killed) == 0
    tensors = [load_file(path / "trainer.safetensors") for path in (whole, killed)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    logs = [read_log(path.parent.parent / "run.jsonl") for path in (whole, killed)]
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]
