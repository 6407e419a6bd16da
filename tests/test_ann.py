"""Approximate search: how much each index finds, and that it finds the same again."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tercet.errors import UserError
from tercet.mining import ann_top_k, top_k
from tercet.mining.ann import Index, settings_for

pytest.importorskip("faiss", reason="the ann extra is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")


def clustered(rows: int, seed: int, width: int = 32) -> NDArray[np.float32]:
    """Unit vectors round 60 centres, the same ones for any seed."""
    centres = np.random.default_rng(0).normal(size=(60, width))
    random = np.random.default_rng(seed)
    vectors = centres[random.integers(0, 60, rows)] + 0.6 * random.normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(autouse=True)
def small_corpora_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tercet.mining.ann.SMALLEST", 1_000)
    monkeypatch.setattr("tercet.mining.ann.BLOCK", 700)  # several blocks, the last one short
    monkeypatch.setattr("tercet.mining.ann.ASKED", 64)


@pytest.mark.parametrize(
    ("index", "least"), [("flat", 1.0), ("hnsw", 0.98), ("ivf_flat", 0.8), ("ivf_pq", 0.75)]
)
def test_finds_most_of_the_best_and_the_same_again(
    index: Index, least: float, capfd: pytest.CaptureFixture[str]
) -> None:
    queries, documents = clustered(150, 1), clustered(3_000, 2)
    scores, positions, recall = ann_top_k(queries, documents, 10, index=index)
    out, err = capfd.readouterr()
    assert recall >= least and f"recall@10 {recall:.3f}" in err and "WARNING" not in out + err
    few = "training on 3,000 vectors, few: its 256 codewords want 9,984"  # said once, not per byte
    assert err.count(few) == (index == "ivf_pq")
    exact = top_k(queries, documents, 10)[1]
    shares = [np.isin(e, p).mean() for e, p in zip(exact, positions, strict=True)]
    assert recall == pytest.approx(np.mean(shares))  # the sample is all of them
    pairs = np.einsum("qh,qkh->qk", queries, documents[positions])
    np.testing.assert_allclose(scores, pairs, rtol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    again = ann_top_k(queries, documents, 10, index=index)
    np.testing.assert_array_equal(again[0], scores)
    np.testing.assert_array_equal(again[1], positions)


def test_where_too_few_are_found_the_rest_is_none() -> None:
    queries, documents = clustered(20, 3), clustered(2_000, 4)
    one_cell = dataclasses.replace(settings_for(*documents.shape), lists=40, probes=1)
    scores, positions, _ = ann_top_k(queries, documents, 500, index="ivf_flat", settings=one_cell)
    assert (positions < 0).any() and (np.isneginf(scores) == (positions < 0)).all()
    assert (np.diff((positions < 0).astype(int), axis=1) >= 0).all()  # none comes after all found


def test_a_small_corpus_is_searched_exactly(capfd: pytest.CaptureFixture[str]) -> None:
    queries, documents = clustered(5, 5), clustered(999, 6)
    scores, positions, recall = ann_top_k(queries, documents, 2_000, index="ivf_pq")
    want = top_k(queries, documents, 2_000)
    np.testing.assert_array_equal(positions, want[1])
    assert recall == 1.0 and scores.shape == (5, 999)
    assert "exact search, since 999 documents are below 1,000" in capfd.readouterr().err


def test_a_vector_that_is_not_finite_is_refused_by_row() -> None:
    queries, documents = clustered(5, 7), clustered(1_500, 8)
    documents[1_400, 3] = np.nan
    for index in ("flat", "ivf_flat"):
        with pytest.raises(UserError, match="document vectors, row 1400"):
            ann_top_k(queries, documents, 3, index=index)
    queries[4, 0] = np.inf
    with pytest.raises(UserError, match="query vectors, row 4"):
        ann_top_k(queries, clustered(1_500, 8), 3, index="flat")


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'tercet\[ann\]'"):
        ann_top_k(clustered(5, 9), clustered(20, 10), 3, index="hnsw")


def test_settings_follow_the_size_of_the_corpus() -> None:
    small, large = settings_for(10_000, 100), settings_for(4_000_000, 768)
    assert (small.lists, small.code_bytes) == (256, 25)  # 39 training vectors for each cell
    assert (large.lists, large.probes, large.code_bytes) == (8_000, 178, 192)
    assert settings_for(1_500, 7).code_bytes == 1


def test_the_predictions_on_the_page_follow_from_the_settings() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "scale.md").read_text("utf-8")
    counts = (10**8, 10**9)
    cells = [settings_for(n, 384).lists for n in counts]
    flop = [2 * n * c * 384 for n, c in zip(counts, cells, strict=True)]
    index = [n * (settings_for(n, 384).code_bytes + 8) / 1e9 for n in counts]
    encoding = [2 * 6 * 12 * 384**2 * 128 * n for n in counts]  # six layers of 12 width^2
    for words in (
        " | ".join(f"{c:,}" for c in cells),
        " | ".join(f"{f / 10 ** int(np.log10(f)):.1f} x 10^{int(np.log10(f))} FLOP" for f in flop),
        f"{flop[0] / 2e12 / 60:.0f} minutes | {flop[1] / 2e12 / 3600:.1f} hours",
        " | ".join(f"{gigabytes:.0f} GB" for gigabytes in index),
        f"{encoding[0] / 1e17:.1f} x 10^17 FLOP | {encoding[1] / 1e18:.1f} x 10^18 FLOP",
        f"reach {flop[1] / 86_400 / 1e12:.1f} TFLOP/s",
    ):
        assert f"{words} " in page
