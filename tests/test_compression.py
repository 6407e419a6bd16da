"""Shorter vectors: every form is searched as a reader would do it by hand, and against the full."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tercet.data.rows import RetrievalTask, Texts
from tercet.evaluation.compression import CANDIDATES, Compressed, compressions, main_scores
from tercet.evaluation.ranking import Ranking
from tercet.models.quantise import calibrate

QUERIES, DOCUMENTS, WIDTH = 30, 400, 32


def units(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Queries near the first documents; later dimensions say less, as after Matryoshka training."""
    random, fading = np.random.default_rng(0), 1 / np.sqrt(1 + np.arange(WIDTH))
    documents = units(random.normal(size=(DOCUMENTS, WIDTH)) * fading + 0.1)
    noise = 0.6 * random.normal(size=(QUERIES, WIDTH)) * fading
    return units(documents[:QUERIES] * 2 + noise), documents


@pytest.fixture(scope="module")
def task() -> RetrievalTask:
    ids = [f"d{i:03d}" for i in range(DOCUMENTS)]
    asked = [f"q{i}" for i in range(QUERIES)]
    qrels = {f"q{i}": {f"d{i:03d}": 2, f"d{i + QUERIES:03d}": 1} for i in range(QUERIES)}
    return RetrievalTask("toy", "test", Texts(ids, ids), Texts(asked, asked), qrels)


@pytest.fixture(scope="module")
def forms(
    task: RetrievalTask, vectors: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> list[Compressed]:
    return compressions(task, *vectors, unit=True, dims=(8, 16, 32, 64))


def by_hand(
    queries: NDArray, documents: NDArray, form: Compressed
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores and positions of the best, written out: cut, code, search, score again."""
    q, d = (units(rows[:, : form.dims]) for rows in (queries, documents))
    if form.precision == "int8":
        scale = 127 / np.abs(d).max()
        q, d = (np.clip(np.rint(rows * scale), -127, 127) for rows in (q, d))
    if form.precision == "binary":
        q, d = (np.where(rows > 0, 1.0, -1.0) for rows in (q, d))
    scores = (q @ d.T).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :CANDIDATES]
    if not form.rescored:
        return np.take_along_axis(scores, order, axis=1), order
    codes = np.clip(np.rint(documents * (127 / np.abs(documents).max())), -127, 127)
    return np.einsum("qh,qkh->qk", queries, codes[order]), order


def test_every_form_scores_what_a_plain_search_of_it_finds(
    forms: list[Compressed],
    task: RetrievalTask,
    vectors: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> None:
    for form in forms:
        want = main_scores(task, Ranking(*by_hand(*vectors, form)))
        assert form.mean == pytest.approx(np.mean(list(want.values())), abs=0.002), form


def test_the_forms_are_all_there_and_the_full_one_is_first(forms: list[Compressed]) -> None:
    assert [(f.dims, f.precision, f.rescored) for f in forms[:3]] == [
        (32, "float32", False),
        (32, "int8", False),
        (32, "int8", True),
    ]
    assert len(forms) == 3 * 6 - 1 and {f.dims for f in forms} == {32, 16, 8}  # 64 is wider
    sizes = {(f.dims, f.precision): (f.bytes, f.rescoring_bytes) for f in forms if f.rescored}
    assert sizes[16, "float32"] == (64, 32) and sizes[8, "binary"] == (1, 32)


def test_what_is_kept_is_measured_against_the_full_vectors(forms: list[Compressed]) -> None:
    full, int8 = forms[0], forms[1]
    assert full.kept == 1 and (full.delta.mean, full.delta.low, full.delta.high) == (0, 0, 0)
    assert int8.kept == pytest.approx(int8.mean / full.mean) and int8.kept > 0.98
    for form in forms:
        assert form.delta.mean == pytest.approx(form.mean - full.mean)
        assert form.delta.low <= form.delta.mean <= form.delta.high
    found = {(f.dims, f.precision, f.rescored): f.mean for f in forms}
    assert found[32, "binary", True] > found[32, "binary", False]
    assert found[32, "binary", True] >= 0.97 * full.mean


def test_stored_ranges_are_used(
    task: RetrievalTask, vectors: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    """Ranges a thousand times too wide leave int8 nothing to tell documents apart by."""
    wide = {WIDTH: calibrate(1_000 * vectors[1])}
    spoilt = compressions(task, *vectors, unit=True, dims=(), ranges=wide)
    found = {(f.precision, f.rescored): f.mean for f in spoilt}
    assert found["int8", False] < 0.5 * found["float32", False]


def test_the_document_of_the_query_s_own_id_is_left_out(
    task: RetrievalTask, vectors: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    """Each query has a copy among the documents, under its own id."""
    queries, documents = vectors
    both = np.concatenate([documents, queries])
    ids = [*task.documents.ids, *task.queries.ids]
    copied = replace(task, documents=Texts(ids, ids))
    found = compressions(copied, queries, both, unit=True, dims=(8,), skip_self=True)
    scores = queries @ both.T
    scores[np.arange(QUERIES), DOCUMENTS + np.arange(QUERIES)] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :CANDIDATES]
    want = main_scores(copied, Ranking(np.take_along_axis(scores, order, axis=1), order))
    assert found[0].mean == pytest.approx(np.mean(list(want.values())))
    with_them = compressions(copied, queries, both, unit=True, dims=(8,))
    for one, spoilt in zip(found, with_them, strict=True):
        assert one.mean > spoilt.mean, one
