"""Training in several processes, sharded or not, and after kill -9: the same run as in one.

`narrower` is begun by two processes, killed, and gone on with by one.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tercet.train.tracking import read_log
from tests.conftest import NAMES, answer, question, weights
from tests.workers.launch import ROOT, run_jobs

LAST = "checkpoints/step-00000008"


def apart(a: Path, b: Path) -> float:
    """The largest difference of any weight."""
    return max(differences(a, b).values())


def differences(a: Path, b: Path) -> dict[str, float]:
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    return {name: float((one[name] - other[name]).abs().max()) for name in one}


def key_biases(names: Iterable[str]) -> set[str]:
    return {name for name in names if name.endswith("key.bias")}


def reach(rates: Sequence[float], betas: tuple[float, float] = (0.9, 0.999)) -> float:
    """How far Adam moves a weight at these rates at most, whatever its gradients g.

    With a and b the shares that the gradients so far have in its two averages, a step is
    sum a g / sqrt(sum b g^2), at most sqrt(sum a^2 / b) times the rate (Cauchy-Schwarz).
    """
    total = 0.0
    for steps, rate in enumerate(rates, start=1):
        age = torch.arange(steps).double()
        a, b = (beta**age / (beta**age).sum() for beta in betas)
        total += rate * float((a.square() / b).sum().sqrt())
    return total


def encoder(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


def vectors(model: SentenceTransformer) -> Tensor:
    """Unit vectors of all texts of the tests."""
    texts = [text(n) for text in (question, answer) for n in range(len(NAMES))]
    return model.encode(texts, convert_to_tensor=True)


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
        return {
            "world": world,
            "recipe": str(recipe),
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
        job("wider", 1, [*spread, *learned, "train.save_every=2"], kill=5),
        job("wider", 2, [*spread, *learned, "train.save_every=2"]),
        job("sharded", 2, spread + learned),
        job("auto-sharded", 2, [*spread, *learned, "batch.micro_tokens=auto", "train.steps=1"]),
        job("whole-sharded", 2, dropout + learned),
        job("killed-sharded", 2, dropout + learned, kill=3),
        job("killed-sharded", 2, dropout + learned),
    ]
    run_jobs(jobs, out)
    return out


@pytest.mark.parametrize("name", ["two", "narrower", "wider", "sharded"])
def test_two_processes_train_the_same_model_as_one(runs: Path, name: str) -> None:
    one, two = (read_log(runs / run / "run.jsonl") for run in ("one", name))
    assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(1, 9))
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "grad_norm", "temperature", "positive_score", "in_batch_accuracy"):
            assert a[key] == pytest.approx(b[key], abs=1e-5), key
    found = differences(runs / "one" / LAST, runs / name / LAST)
    assert max(found[other] for other in found.keys() - key_biases(found)) < 1e-5


@pytest.mark.parametrize("name", ["two", "narrower", "wider", "sharded"])
def test_two_processes_train_a_model_of_the_same_vectors(
    runs: Path, one_thread: None, name: str
) -> None:
    one, two = (encoder(runs / run / LAST / "model") for run in ("one", name))
    torch.testing.assert_close(vectors(one), vectors(two), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["one", "two", "narrower", "sharded"])
def test_key_biases_move_no_farther_than_adam_can_and_change_no_vector(
    runs: Path, tiny_model: Path, one_thread: None, name: str
) -> None:
    """The only weights in which one and two processes part, by up to twice that.

    A key bias adds the same to every score of a softmax: its gradient is rounding alone, which
    Adam divides by its own size.
    """
    start, end = encoder(tiny_model), encoder(runs / name / LAST / "model")
    before, after = start.state_dict(), {k: v.clone() for k, v in end.state_dict().items()}
    biases = key_biases(after)
    assert len(biases) == 2  # one a layer
    farthest = reach([line["lr"] for line in read_log(runs / name / "run.jsonl")])
    assert farthest < 0.01
    for bias in biases:
        assert (after[bias] - before[bias]).abs().max() <= farthest

    learnt = vectors(end)
    assert (learnt - vectors(start)).abs().max() > 0.01
    end.load_state_dict(after | {bias: before[bias] for bias in biases})
    torch.testing.assert_close(vectors(end), learnt, rtol=0, atol=1e-6)


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
