"""The programs that measure a training step, compiled or not, and its losses alone, run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import guide_mask, loss_stage, steps, train_step
from benchmarks.compiled import note
from benchmarks.loss_stage import embeddings, matmuls
from tercet.configs import Source
from tercet.data import read_training
from tests.published import as_shown

pytestmark = pytest.mark.usefixtures("one_thread")


def some_memory(found: dict[str, Any]) -> None:
    """So little may fit into what the process has; the tables divide by what it grew by."""
    for run in found["memory"].values():
        run["extra_mib"] += 1


def test_a_step_is_compared_with_the_peers(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"BATCH": 8, "LARGE": 16, "LARGEST": 24, "KEEP_TOKENS": 64}
    sizes |= {"LENGTH": 64, "LARGEST_LENGTH": 32, "CACHED_SIZES": (4,), "CACHED_TOKENS": (2_048,)}
    here = lambda _, __, name, size, keep: train_step.step_memory(name, int(size), int(keep))  # noqa: E731
    texts = lambda packages: read_training([Source(path=str(pairs))])  # noqa: E731
    given = sizes | {"in_subprocess": here, "code_pairs": texts, "gemm_peak": lambda: 1e11}
    for name, value in given.items():
        monkeypatch.setattr(train_step, name, value)
    monkeypatch.setattr(steps, "EMBEDDED", str(tiny_model))
    found = train_step.measure(8, 1)
    variants = {train_step.OURS, "MNRL", "MNRL, with tokenisation", train_step.DEFAULT}
    assert variants | {"CachedMNRL, mini-batch 4", "CachedMNRL, 2048 tokens"} == {*found["medians"]}
    assert found["first_step"].keys() == found["seconds"].keys() == found["medians"].keys()
    assert found["times_faster"].keys() == found["medians"].keys() - {train_step.OURS}
    assert found["loss_difference"] <= 1e-5 and found["norm_difference"] <= 1e-4
    assert found["first_step"][train_step.OURS]["norm"] > 0.01
    cached = {n: took for n, took in found["medians"].items() if n.startswith("Cached")}
    assert found["best_cached"] == min(cached, key=lambda name: cached[name])
    found["memory"] = train_step.measure_memory(large=True)
    assert [run["batch"] for run in found["memory"].values()] == [8, 8, 8, 16, 24]
    assert all(0 <= run["extra_mib"] < run["total_mib"] for run in found["memory"].values())
    some_memory(found)
    pages, readme = as_shown("train_step", found, tmp_path)
    assert "| **ours** |" in pages["train_step"] and " GiB, " in pages["machine"]
    large, small = (found["memory"][f"ours, fixed keep{n}"] for n in (", batch 16", ""))
    growth = large["total_mib"] / small["total_mib"]
    assert f"that included, takes {growth:.2f} times" in pages["memory"]
    assert readme[0]["Against sentence-transformers"] == "MNRL, whole step"


def test_the_loss_stage_is_compared_with_the_peer(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = lambda _, __, side, queries: loss_stage.report_memory(side, int(queries))  # noqa: E731
    monkeypatch.setattr(loss_stage, "in_subprocess", here)
    monkeypatch.setattr(loss_stage, "gemm_peak", lambda: 1e11)
    monkeypatch.setattr(steps, "EMBEDDED", str(tiny_model))
    found = loss_stage.measure(64, 1)
    assert (found["queries"], found["documents"], found["width"]) == (64, 128, 384)
    assert found["loss"]["ours"] == pytest.approx(found["loss"]["theirs"], rel=1e-5)
    assert found["gradient_difference"] <= 1e-4
    some_memory(found)
    pages, readme = as_shown("loss_stage", found, tmp_path)
    assert "| **ours, tile 1024** |" in pages["loss_stage"]
    assert "| matmuls |" in pages["loss_stage"]
    assert readme[0]["Times faster"] == f"{found['times_faster']:.1f}"


def test_bare_products_are_written_to_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, shown = embeddings(16)
    products, multiply, made = matmuls(asked, shown), torch.mm, []
    monkeypatch.setattr(torch, "mm", lambda *_, out: made.append(multiply(*_, out=out)))
    products()
    products()
    assert [tensor.data_ptr() for tensor in made[:4]] == [tensor.data_ptr() for tensor in made[4:]]
    torch.testing.assert_close(made[2], asked @ shown.T @ shown)
    torch.testing.assert_close(made[3], (asked @ shown.T).T @ asked)


def test_masking_by_a_guide_is_compared_with_the_peer(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = lambda _, __, side, size: guide_mask.report_memory(side, int(size))  # noqa: E731
    monkeypatch.setattr(guide_mask, "in_subprocess", here)
    monkeypatch.setattr(steps, "EMBEDDED", str(tiny_model))
    found = guide_mask.measure(16, 1)
    assert (found["batch"], found["width"]) == (16, 768)
    assert found["loss"]["ours"] == pytest.approx(found["loss"]["theirs"], rel=1e-5)
    assert found["gradient_difference"] <= 1e-4
    some_memory(found)
    pages, readme = as_shown("guide_mask", found, tmp_path)
    assert "| GISTEmbedLoss |" in pages["guide_mask"]
    assert readme[0]["Times faster"] == f"{found['times_faster']:.1f}"


def test_the_compiled_step_is_earned_back_at_the_ratio_that_is_told() -> None:
    seconds = {"plain": [2.0, 4.0, 8.0], "compiled": [2.0, 2.0, 8.0]}
    found = {
        "batch": 8,
        "micro_tokens": 64,
        "seconds": seconds,
        "medians": {"plain": 4.0, "compiled": 2.0},
        "times_faster": 1.25,
        "first_compiled_step_seconds": 11.2,
    }
    said = note(found)  # a usual compiled step takes 4 / 1.25 = 3.2 s: 11.2 + 9 x 3.2 = 10 x 4
    assert "1.25 times as fast, the median of 3 rounds of 1.00 to 2.00" in said
    assert "which 10 steps earn back" in said
    assert "which nothing earns back" in note(found | {"times_faster": 1.0})
