"""Exact search: the same answer as sorting everything, whatever the tiles and whoever asks."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.machine import peak_anonymous
from tercet.errors import UserError
from tercet.mining import pair_scores, top_k
from tercet.mining.best import GROUP, PIECE, Best
from tercet.mining.pairs import best_first
from tercet.mining.search import PAIR_BYTES

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
Vectors = NDArray[np.float32]


def sorted_all(scores: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
    """A stable sort of all scores: equal ones stay in the order of their positions."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def small_integers(rows: int, width: int, seed: int) -> Vectors:
    """Whole numbers multiply exactly in float32, and their products tie often."""
    return np.random.default_rng(seed).integers(-2, 3, (rows, width)).astype(np.float32)


def streamed(scores: Vectors, k: int, step: int) -> tuple[Vectors, NDArray[np.int64]]:
    """`scores` offered `step` documents at a time, each tile filled up to whole groups."""
    best = Best(len(scores), k, CPU)
    for start in range(0, scores.shape[1], step):
        part = scores[:, start : start + step].T
        tile = np.full((GROUP * -(-step // GROUP), len(scores)), -np.inf, dtype=np.float32)
        tile[: len(part)] = part
        best.offer(torch.from_numpy(tile), start)
    found = best.found()
    return found[0].numpy(), found[1].numpy()


@pytest.mark.parametrize(
    ("queries", "documents", "k", "tile"),
    [
        (1, 1, 1, (4, 4)),
        (5, 7, 3, (2, 3)),  # short last tiles on both sides
        (3, 40, 40, (1, 7)),  # all documents asked for
        (2, 10, 25, (2, 4)),  # more than there are
        (6, 64, 5, (3, 64)),  # one document tile exactly
        (4, 33, 9, (256, 8)),  # k larger than a tile
        (3, 900, 20, (2, 160)),  # k larger than the groups of a tile
        (70, 500, 2, (1, 48)),  # more tiles of queries than one block holds
    ],
)
def test_equals_a_stable_sort_with_ties_across_tiles(
    queries: int, documents: int, k: int, tile: tuple[int, int]
) -> None:
    asked, held = small_integers(queries, 3, 1), small_integers(documents, 3, 2)
    scores, positions = top_k(asked, held, k, tile=tile)
    want_scores, want_positions = sorted_all(asked @ held.T, k)
    np.testing.assert_array_equal(positions, want_positions)
    np.testing.assert_array_equal(scores, want_scores)
    assert scores.dtype == np.float32 and positions.dtype == np.int64
    assert scores.shape == (queries, min(k, documents))


@pytest.mark.parametrize("seed", range(40))
def test_streaming_scores_equals_sorting_them(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(seed)
    monkeypatch.setattr("tercet.mining.best.PIECE", int(random.choice([30, 200, PIECE])))
    queries, documents = int(random.integers(1, 9)), int(random.integers(1, 2_000))
    values = random.choice([3, 30, 100_000])  # few values: nearly all scores tie
    scores = (random.integers(-values, values, (queries, documents)) / 7 - 1).astype(np.float32)
    scores[random.random(scores.shape) < 0.1] = -0.0
    order = random.choice(["any", "rising", "falling", "clusters", "late"])
    if order == "clusters":  # each query finds all its best documents in one place
        scores += 1e6 * (np.arange(documents) // 300 == random.integers(0, 7, (queries, 1)))
    elif order == "late":  # half of the queries find nothing for long
        scores[::2, : documents // 2] = -1e6
    elif order != "any":  # rising: each document is better than all before it
        scores.sort(axis=1)
        scores = scores if order == "rising" else scores[:, ::-1]
    k, step = int(random.integers(1, 300)), int(random.integers(1, 700))
    got, want = streamed(scores, k, step), sorted_all(scores, k)
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(got[0], want[0])


def test_rows_that_fill_up_a_tile_are_not_documents() -> None:
    documents = -np.ones((20, 4), dtype=np.float32)  # all scores are below the 0 of a filler
    scores, positions = top_k(np.ones((3, 4), dtype=np.float32), documents, 30, tile=(2, 8))
    assert (positions == np.arange(20)).all() and (scores == -4).all()


def test_equal_documents_are_found_in_the_order_of_their_positions() -> None:
    generator = np.random.default_rng(3)
    document = generator.normal(size=(1, 384)).astype(np.float32)
    documents = np.repeat(document, 50, axis=0)
    queries = generator.normal(size=(9, 384)).astype(np.float32)
    scores, positions = top_k(queries, documents, 20, tile=(256, 8))
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
    scores, positions = top_k(queries, documents, 25, tile=(32, 512))
    want_scores, want_positions = sorted_all(queries @ documents.T, 25)
    np.testing.assert_allclose(scores, want_scores, rtol=1e-5)
    assert (positions == want_positions).mean() > 0.999  # two may swap within rounding


def test_reads_memory_mapped_files(tmp_path: Path) -> None:
    documents = small_integers(30, 4, 6)
    np.save(tmp_path / "d.npy", documents)
    mapped = np.load(tmp_path / "d.npy", mmap_mode="r")
    got = top_k(documents[:5], mapped, 3, tile=(4, 7))
    want = top_k(documents[:5], documents, 3)
    np.testing.assert_array_equal(got[1], want[1])


class Slices:
    """Vectors that can be read in slices and in no other way, as those of a store."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors, self.shape = vectors, vectors.shape

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, rows: slice, /) -> Vectors:
        assert isinstance(rows, slice)
        return self._vectors[rows].copy()


def test_memory_does_not_grow_with_the_documents(tmp_path: Path) -> None:
    """400 MB of scores are looked at; a tile for each thread and the best ones are held."""
    documents = np.random.default_rng(15).normal(size=(200_000, 16)).astype(np.float32)
    np.save(tmp_path / "d.npy", documents)
    queries, mapped = documents[:500].copy(), np.load(tmp_path / "d.npy", mmap_mode="r")
    del documents

    def growth(work: Callable[[], object]) -> float:
        before: dict[str, float] = {}
        found: dict[str, float] = {}
        with peak_anonymous(before):
            pass
        with peak_anonymous(found):
            work()
        return found["anonymous_mib"] - before["anonymous_mib"]

    assert growth(lambda: top_k(queries, mapped, 20, tile=(64, 2_048))) < 80
    assert growth(lambda: queries @ mapped.T) > 300  # what would be seen


@pytest.mark.parametrize("order", ["any", "rising", "topics", "ties"])
def test_candidates_take_no_more_memory_than_planned(order: str) -> None:
    """Nor where each tile is better than those before, or has what a few queries look for."""
    queries, k, wide = 1_024, 1_000, 8_192
    generator, found = torch.Generator().manual_seed(16), dict[str, float]()
    scores = torch.ones(wide, queries)  # in memory before anything is measured
    best = Best(queries, k, CPU)
    with peak_anonymous(found, every=0.001):
        for tile in range(4):
            scores.uniform_(generator=generator)
            if order == "rising":
                scores += tile
            elif order == "ties":
                scores.zero_()
            elif order == "topics":
                scores[:, tile * 8 : tile * 8 + 8] += 1 + torch.linspace(0, 1, wide)[:, None]
            best.offer(scores, tile * wide)
        best.found()
    peaks = 2 * scores.nbytes / GROUP
    assert found["extra_anonymous_mib"] * 2**20 <= queries * k * PAIR_BYTES + peaks


def test_slices_are_all_it_needs() -> None:
    queries, documents = small_integers(5, 4, 7), small_integers(50, 4, 8)
    got = top_k(Slices(queries), Slices(documents), 9, tile=(2, 16))
    want = top_k(queries, documents, 9)
    np.testing.assert_array_equal(got[1], want[1])
    scores = pair_scores(Slices(queries), Slices(documents), got[1])
    np.testing.assert_array_equal(scores, want[0])


def test_no_queries_and_no_documents_give_empty_answers() -> None:
    assert top_k(np.zeros((0, 4), np.float32), np.zeros((3, 4), np.float32), 2)[0].shape == (0, 2)
    assert top_k(np.zeros((2, 4), np.float32), np.zeros((0, 4), np.float32), 2)[0].shape == (2, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e20])  # the square of 1e20 overflows
def test_a_vector_that_is_not_finite_is_refused_by_row(bad: float) -> None:
    good, broken = np.ones((12, 3), np.float32), np.ones((12, 3), np.float32)
    broken[7, 1] = bad
    with pytest.raises(UserError, match="document vectors, row 7"):
        top_k(good, broken, 2, tile=(4, 5))
    with pytest.raises(UserError, match="query vectors, row 7"):
        top_k(broken, good, 2)


def test_shapes_that_do_not_fit_are_refused() -> None:
    for queries, documents, k in (((2, 3), (2, 4), 1), ((2, 3), (2, 3), 0), ((2,), (2,), 1)):
        with pytest.raises(ValueError):
            top_k(np.ones(queries, np.float32), np.ones(documents, np.float32), k)


def test_scores_of_pairs() -> None:
    queries, documents = small_integers(6, 4, 9), small_integers(11, 4, 10)
    positions = np.random.default_rng(11).integers(-1, 11, (6, 5))
    scores = pair_scores(queries, documents, positions)
    for (query, column), position in np.ndenumerate(positions):
        want = queries[query] @ documents[position] if position >= 0 else -np.inf
        assert scores[query, column] == want
    assert pair_scores(queries, documents, positions[:, :0]).shape == (6, 0)


def test_best_first_breaks_ties_by_position_and_puts_none_last() -> None:
    scores = np.array([[1, -np.inf, 2, 2]], dtype=np.float32)
    got = best_first(scores, np.array([[5, -1, 9, 3]]), 4)
    assert got[1].tolist() == [[3, 9, 5, -1]] and got[0].tolist() == [[2, 2, 1, -np.inf]]


def test_any_number_of_processes_gives_the_same_bytes(tmp_path: Path) -> None:
    random = np.random.default_rng(12)
    np.save(tmp_path / "queries.npy", random.normal(size=(600, 24)).astype(np.float32))
    np.save(tmp_path / "documents.npy", random.normal(size=(9_000, 24)).astype(np.float32))
    command = [sys.executable, "-m", "tests.workers.search", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"ACCELERATE_USE_CPU": "1"}, check=True)
    answers = [path.read_bytes() for path in sorted(tmp_path.glob("answer-*.npz"))]
    assert len(answers) == 1 + 2 + 4 and len(set(answers)) == 1
    complaints = {path.read_text() for path in tmp_path.glob("complaint-*.txt")}
    assert len(list(tmp_path.glob("complaint-*.txt"))) == 7
    assert complaints == {next(iter(complaints))} and "query vectors, row 599" in complaints.pop()
