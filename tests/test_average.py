"""The running mean of the weights: its arithmetic, where it is used, and that nothing loses it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tercet.configs import load
from tercet.errors import UserError
from tercet.train import finetune
from tercet.train.average import decay_at
from tests.conftest import weights
from tests.workers.launch import ROOT, run_jobs

DECAY = 0.6
pytestmark = pytest.mark.usefixtures("one_thread")


def settings(tiny_model: Path, pairs: Path) -> list[str]:
    base = [f"model.path={tiny_model}", f"data.train={pairs}", "train.learning_rate=0.001"]
    return [*base, "train.steps=7", "train.dropout=0.2", "train.save_every=2"]


def evaluated(out: Path, *more: str) -> list[dict[str, Tensor]]:
    """The weights that each step's evaluation was given."""
    seen: list[dict[str, Tensor]] = []

    def evaluate(model: SentenceTransformer) -> dict[str, float]:
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return {"ndcg@10": len(seen)}

    finetune(load("tiny", [f"output={out}", "train.eval_every=1", *more]), evaluate=evaluate)
    return seen


def test_evaluation_and_checkpoint_have_the_mean_of_the_weights(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    """Training goes as without it; the mean is the recursion written out."""
    some = settings(tiny_model, pairs)
    plain = evaluated(tmp_path / "plain", *some)
    found = evaluated(tmp_path / "mean", *some, f"train.ema={DECAY}")
    start = SentenceTransformer(str(tiny_model), device="cpu").named_parameters()
    mean = {name: p.detach().double() for name, p in start}
    for step, (raw, seen) in enumerate(zip(plain, found, strict=True)):
        keep = min(DECAY, (1 + step) / (10 + step))
        mean = {name: keep * m + (1 - keep) * raw[name] for name, m in mean.items()}
        for name, tensor in seen.items():
            torch.testing.assert_close(tensor.double(), mean[name], rtol=0, atol=3e-7)
    last = tmp_path / "mean" / "checkpoints" / "step-00000007"
    saved = SentenceTransformer(str(last / "model"), device="cpu")
    assert all(torch.equal(p, found[-1][name]) for name, p in saved.named_parameters())
    kept = load_file(last / "trainer.safetensors")
    names = [name for name in kept if name.startswith("weights/")]
    assert names and all(
        torch.equal(kept[name], plain[-1][name.removeprefix("weights/")]) for name in names
    )


def test_the_decay_grows_to_what_was_asked() -> None:
    found = [decay_at(step, 0.9) for step in range(200)]
    assert found == sorted(found) and found[0] == 0.1 and found[-1] == 0.9


@pytest.fixture(scope="module")
def runs(tiny_model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, two, two with shards; the latter also killed and called again."""
    out = tmp_path_factory.mktemp("runs")
    some = [*settings(tiny_model, pairs), f"train.ema={DECAY}", "train.dropout=0"]

    def job(name: str, world: int, kill: int | None = None) -> dict[str, Any]:
        return {
            "world": world,
            "recipe": str(ROOT / "configs" / "tiny.yaml"),
            "set": [f"output={out / name}", *some],
            "kill_after": kill,
            "sharded": "sharded" in name,
        }

    jobs = [job("whole-1", 1)]
    for name in ("2", "sharded"):
        jobs += [job(f"whole-{name}", 2)]
        jobs += [job(f"killed-{name}", 2, kill=5), job(f"killed-{name}", 2)]
    run_jobs(jobs, out)
    return out


@pytest.mark.parametrize("name", ["2", "sharded"])
def test_processes_average_what_one_does(runs: Path, name: str) -> None:
    one, other = (weights(runs / f"whole-{n}" / "checkpoints/step-00000007") for n in ("1", name))
    for key, tensor in one.items():
        if not key.endswith("key.bias"):  # their gradient is rounding alone
            # Adam enlarges rounding where a gradient is small: to 1.01e-5 on some processors
            torch.testing.assert_close(tensor, other[key], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["2", "sharded"])
def test_a_killed_run_ends_in_the_same_mean(runs: Path, name: str) -> None:
    whole, killed = (
        runs / f"{kind}-{name}" / "checkpoints/step-00000007" for kind in ("whole", "killed")
    )
    for file in ("model/model.safetensors", "trainer.safetensors"):
        one, other = load_file(whole / file), load_file(killed / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_mean_of_half_precision_is_refused(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    words = [*settings(tiny_model, pairs), f"output={tmp_path}", "train.ema=0.9"]
    with pytest.raises(UserError, match="train.ema averages float32 weights"):
        finetune(load("tiny", [*words, "model.dtype=bfloat16"]))
    with pytest.raises(UserError, match="train.ema: .* less than 1, got 1"):
        load("tiny", [*words, "train.ema=1"])
