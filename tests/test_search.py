"""Exact search: the same answer as sorting everything, whatever the tiles and whoever asks."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tercet.errors import UserError
from tercet.mining.search import top_k

Vectors = NDArray[np.float32]


def plain(queries: Vectors, documents: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
    """All scores, then a stable sort: equal scores stay in the order of their positions."""
    scores = queries @ documents.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def small_integers(rows: int, width: int, seed: int) -> Vectors:
    """Whole numbers multiply exactly in float32, and their products tie often."""
    return np.random.default_rng(seed).integers(-2, 3, (rows, width)).astype(np.float32)


@pytest.mark.parametrize(
    ("queries", "documents", "k", "tile_queries", "tile_documents"),
    [
        (1, 1, 1, 4, 4),
        (5, 7, 3, 2, 3),  # short last tiles on both sides
        (3, 40, 40, 1, 7),  # all documents asked for
        (2, 10, 25, 2, 4),  # more than there are
        (6, 64, 5, 3, 64),  # one document tile exactly
        (4, 33, 9, 256, 8),  # k larger than a tile
    ],
)
def test_equals_a_stable_sort_with_ties_across_tiles(
    queries: int, documents: int, k: int, tile_queries: int, tile_documents: int
) -> None:
    asked, held = small_integers(queries, 3, 1), small_integers(documents, 3, 2)
    scores, positions = top_k(
        asked, held, k, tile_queries=tile_queries, tile_documents=tile_documents
    )
    want_scores, want_positions = plain(asked, held, k)
    np.testing.assert_array_equal(positions, want_positions)
    np.testing.assert_array_equal(scores, want_scores)
    assert scores.dtype == np.float32 and positions.dtype == np.int64
    assert scores.shape == (queries, min(k, documents))


def test_equal_documents_are_found_in_the_order_of_their_positions() -> None:
    generator = np.random.default_rng(3)
    document = generator.normal(size=(1, 384)).astype(np.float32)
    documents = np.repeat(document, 50, axis=0)
    queries = generator.normal(size=(9, 384)).astype(np.float32)
    scores, positions = top_k(queries, documents, 20, tile_documents=8)
    assert (positions == np.arange(20)).all()
    assert (scores == scores[:, :1]).all()


def test_minus_zero_and_zero_are_one_score() -> None:
    queries = np.array([[1.0, 0.0]], dtype=np.float32)
    documents = np.array([[-0.0, 1.0], [0.0, 1.0], [-1.0, 0.0], [1e-30, 0.0]], dtype=np.float32)
    scores, positions = top_k(queries, documents, 4)
    assert positions.tolist() == [[3, 0, 1, 2]]
    assert scores[0, 1:].tolist() == [0.0, 0.0, -1.0]


def test_a_query_gets_the_same_bits_alone_as_among_others() -> None:
    generator = np.random.default_rng(4)
    queries = generator.normal(size=(70, 384)).astype(np.float32)
    documents = generator.normal(size=(500, 384)).astype(np.float32)
    scores, positions = top_k(queries, documents, 10)
    for part in (slice(0, 1), slice(13, 50), slice(69, 70)):
        some_scores, some_positions = top_k(queries[part], documents, 10)
        np.testing.assert_array_equal(some_scores, scores[part])
        np.testing.assert_array_equal(some_positions, positions[part])


def test_real_valued_scores_agree_with_numpy() -> None:
    generator = np.random.default_rng(5)
    queries = generator.normal(size=(40, 64)).astype(np.float32)
    documents = generator.normal(size=(3000, 64)).astype(np.float32)
    scores, positions = top_k(queries, documents, 25, tile_documents=512)
    want_scores, want_positions = plain(queries, documents, 25)
    np.testing.assert_allclose(scores, want_scores, rtol=1e-5)
    assert (positions == want_positions).mean() > 0.999  # two may swap within rounding


def test_reads_memory_mapped_files(tmp_path: Path) -> None:
    documents = small_integers(30, 4, 6)
    np.save(tmp_path / "d.npy", documents)
    mapped = np.load(tmp_path / "d.npy", mmap_mode="r")
    got = top_k(documents[:5], mapped, 3, tile_documents=7)
    want = top_k(documents[:5], documents, 3)
    np.testing.assert_array_equal(got[1], want[1])


def test_no_queries_and_no_documents_give_empty_answers() -> None:
    assert top_k(np.zeros((0, 4), np.float32), np.zeros((3, 4), np.float32), 2)[0].shape[0] == 0
    assert top_k(np.zeros((2, 4), np.float32), np.zeros((0, 4), np.float32), 2)[0].shape == (2, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e20])  # the square of 1e20 overflows
def test_a_vector_that_is_not_finite_is_refused_by_row(bad: float) -> None:
    good, broken = np.ones((12, 3), np.float32), np.ones((12, 3), np.float32)
    broken[7, 1] = bad
    with np.errstate(over="ignore"):
        with pytest.raises(UserError, match="document vectors, row 7"):
            top_k(good, broken, 2)
        with pytest.raises(UserError, match="query vectors, row 7"):
            top_k(broken, good, 2)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        top_k(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32), 1)
    with pytest.raises(ValueError, match="at least 1"):
        top_k(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), 0)
