"""Indexes and reductions: recall against exact search, memory as measured and as projected."""

import sys
from io import StringIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TaskID
from sklearn.random_projection import johnson_lindenstrauss_min_dim

from tercet.data.rows import RetrievalTask, Texts
from tercet.errors import UserError
from tercet.evaluation import indexes
from tercet.evaluation.indexes import KINDS, Indexed, index_study, projected_bytes, study_settings
from tercet.evaluation.reduction import (
    METHODS,
    distortion,
    lemma_bound,
    lemma_dims,
    projection,
    reductions,
)
from tercet.evaluation.speed import alternate
from tercet.mining.ann import build_index, search_index
from tercet.mining.pairs import recall

pytest.importorskip("faiss", reason="the ann extra is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")
QUERIES, DOCUMENTS, WIDTH = 40, 3_000, 32


def clustered(rows: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors round 60 centres, most of them in the first dimensions."""
    fading = 1 / np.sqrt(1 + np.arange(WIDTH))
    centres = np.random.default_rng(0).normal(size=(60, WIDTH)) * fading
    random = np.random.default_rng(seed)
    vectors = centres[random.integers(0, 60, rows)]
    vectors = vectors + 0.4 * fading * random.normal(size=(rows, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def sides() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return clustered(QUERIES, 1), clustered(DOCUMENTS, 2)


@pytest.fixture(scope="module")
def task(sides: tuple[NDArray[np.float32], NDArray[np.float32]]) -> RetrievalTask:
    """The exact best document of each query is its answer."""
    best = (sides[0] @ sides[1].T).argmax(axis=1)
    ids, asked = [f"d{i}" for i in range(DOCUMENTS)], [f"q{i}" for i in range(QUERIES)]
    qrels = {f"q{i}": {f"d{d}": 1} for i, d in enumerate(best)}
    return RetrievalTask("toy", "test", Texts(ids, ids), Texts(asked, asked), qrels)


@pytest.fixture(scope="module")
def found(
    task: RetrievalTask, sides: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> dict[str, Indexed]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexes, "TIMED", 0.01)
        return {index.kind: index for index in index_study(task, *sides)}


def test_every_index_finds_most_of_the_exact_best(found: dict[str, Indexed]) -> None:
    assert tuple(found) == KINDS
    least = {"flat": 1.0, "hnsw": 0.98, "ivf_flat": 0.8, "int8": 0.9, "binary": 0.5}
    for kind, index in found.items():
        assert index.recall >= least.get(kind, 0.3), kind
        assert index.mean == pytest.approx(index.kept * found["flat"].mean)
        assert index.build_seconds >= 0 and index.queries_per_second > 0
    assert found["flat"].mean == 1.0


def test_projected_memory_is_what_the_index_takes(found: dict[str, Indexed]) -> None:
    for kind, index in found.items():
        taken = index.bytes_per_vector * DOCUMENTS
        # An index of this size has headers, and for PQ codebooks, that weigh as much as its codes.
        assert projected_bytes(index.kind, DOCUMENTS, WIDTH) == pytest.approx(taken, rel=0.02), kind
        assert index.projected[10**9] == projected_bytes(index.kind, 10**9, WIDTH)
    assert found["binary"].rescoring_bytes == WIDTH


def test_a_billion_vectors_of_768() -> None:
    assert projected_bytes("flat", 10**9, 768) == 3.072e12
    assert projected_bytes("pq", 10**9, 768) == pytest.approx(96e9, rel=1e-4)
    assert projected_bytes("binary", 10**9, 768) == 96e9
    assert study_settings(10**9, 768).code_bytes == 96 == study_settings(5_000, 384).code_bytes


def test_an_index_study_needs_documents_and_faiss(
    task: RetrievalTask,
    sides: tuple[NDArray[np.float32], NDArray[np.float32]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match="toy: 999 documents are too few.*1,000 are needed"):
        index_study(task, sides[0], sides[1][:999])
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'tercet\[ann\]'"):
        index_study(task, *sides)


def test_reductions_keep_what_they_say(
    task: RetrievalTask, sides: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    rows = {(r.method, r.dims): r for r in reductions(task, *sides, dims=(16, 8, 32))}
    assert len(rows) == 6  # 32 is no reduction
    for dims in (16, 8):
        pca, cut, random = (rows[m, dims] for m in ("PCA", "truncation", "random projection"))
        assert pca.recall >= cut.recall - 0.05 and cut.recall > random.recall
        assert pca.distortion.mean < 1 and cut.distortion.mean < 1  # they only leave out
        assert random.distortion.mean == pytest.approx(1, abs=0.2)
        assert pca.bound is None and random.bound == lemma_bound(DOCUMENTS, dims)
        assert pca.needed is None and cut.needed is None
        assert random.needed == lemma_dims(DOCUMENTS, random.distortion.largest)
        assert random.needed is None or random.needed > 10 * dims  # the lemma holds for the worst
    queries, documents = sides
    scores = [(queries[:, :8], documents[:, :8])]
    q, d = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in scores[0])
    exact, cut = (np.argsort(-s, axis=1)[:, :10] for s in (queries @ documents.T, q @ d.T))
    assert rows["truncation", 8].recall == pytest.approx(recall(exact, cut))


def test_distortion_is_the_ratio_of_squared_distances() -> None:
    left, right = clustered(50, 3), clustered(50, 4)
    right[7] = left[7]  # no distance to keep
    matrix = projection("random projection", left, 16, seed=1)
    found = distortion(left, right, matrix)
    ratios = [
        np.linalg.norm(a @ matrix - b @ matrix) ** 2 / np.linalg.norm(a - b) ** 2
        for place, (a, b) in enumerate(zip(left, right, strict=True))
        if place != 7
    ]
    assert found.pairs == 49
    assert found.mean == pytest.approx(np.mean(ratios), rel=1e-4)
    assert found.largest == pytest.approx(np.abs(np.array(ratios) - 1).max(), rel=1e-3)


@pytest.mark.parametrize(("points", "dims"), [(1_000, 512), (50_000, 4_096), (200, 2_000)])
def test_the_bound_is_the_lemma_s(points: int, dims: int) -> None:
    epsilon = lemma_bound(points, dims)
    assert epsilon is not None and 0 < epsilon < 1
    needed = johnson_lindenstrauss_min_dim(points, eps=epsilon)
    assert needed == pytest.approx(dims, rel=0.01)
    assert lemma_dims(points, epsilon) in (needed, needed + 1)  # scikit-learn rounds down
    assert lemma_bound(points, 20) is None
    assert lemma_dims(points, 1.0) is None and lemma_dims(points, 0.0) is None


def test_no_pca_is_made_to_more_dimensions_than_documents_span(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Six documents in a space of 32: the rest of the study goes on."""
    few = clustered(6, 5)
    ids = [f"d{i}" for i in range(6)]
    task = RetrievalTask("few", "test", Texts(ids, ids), Texts(["q"], ["q"]), {"q": {"d0": 1}})
    ways = [(r.method, r.dims) for r in reductions(task, few[:1], few, dims=(16, 4))]
    assert ways == [
        ("truncation", 16),
        ("random projection", 16),
        *((method, 4) for method in METHODS),
    ]
    assert "few: no PCA to 16 dimensions" in capsys.readouterr().err


def test_the_document_of_the_query_s_own_id_is_left_out(
    task: RetrievalTask,
    sides: tuple[NDArray[np.float32], NDArray[np.float32]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The best document of each query takes the query's id: only answers to others are left."""
    monkeypatch.setattr(indexes, "TIMED", 0.0)
    queries, documents = sides
    order = np.argsort(-(queries @ documents.T), axis=1, kind="stable")
    names = list(task.documents.ids)
    first: dict[int, int] = {}
    for row, best in enumerate(order[:, 0]):
        first.setdefault(int(best), row)
    rows = sorted(first.values())
    for best, row in first.items():
        names[best] = f"q{row}"
    asked = Texts([f"q{row}" for row in rows], [f"q{row}" for row in rows])
    qrels = {f"q{row}": {names[order[row, 1]]: 1} for row in rows}
    own = RetrievalTask("own", "test", Texts(names, names), asked, qrels)
    for kind in ("flat", "hnsw", "int8"):
        (one,) = index_study(own, queries[rows], documents, kinds=(kind,), skip_self=True)
        assert one.mean > 0.85 and one.recall > 0.85, kind
    (with_it,) = index_study(own, queries[rows], documents, kinds=("flat",))
    assert with_it.mean == pytest.approx(1 / np.log2(3), abs=0.02)  # the answer comes second
    given = (own, queries[rows], documents)
    with_it, without = (reductions(*given, dims=(31,), skip_self=s)[0] for s in (False, True))
    assert without.mean > with_it.mean + 0.1


def test_on_a_terminal_no_bar_is_timed(
    sides: tuple[NDArray[np.float32], NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[str] = []

    class Counted(Progress):
        def add_task(self, description: str, *given: Any, **more: Any) -> TaskID:
            bars.append(description)
            return super().add_task(description, *given, **more)

    monkeypatch.setattr("tercet.progress.Progress", Counted)
    terminal = Console(file=StringIO(), force_terminal=True)
    monkeypatch.setattr("tercet.progress._CONSOLE", terminal)
    index = build_index(sides[1], "flat", study_settings(DOCUMENTS, WIDTH), k=10, seed=0)
    bars.clear()
    asked: list[int] = []

    def ask() -> NDArray[np.int64]:
        asked.append(len(bars))
        return search_index(index, sides[0], 10)

    monkeypatch.setattr(indexes, "TIMED", 0.05)
    indexes._timed(ask, QUERIES)
    assert bars == ["search"] and len(asked) > 2  # the first one is not timed
    bars.clear()
    alternate({"ask": ask}, 3)
    assert bars == ["rounds"]
