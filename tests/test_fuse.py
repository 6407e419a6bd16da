"""Reciprocal rank fusion, by hand and against its definition."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tercet.mining import reciprocal_rank_fusion

Positions = NDArray[np.int64]


def ranked(rows: list[list[int]]) -> tuple[NDArray[np.float32], Positions]:
    """A list with these positions; its scores must not matter."""
    positions = np.array(rows)
    return np.random.default_rng(0).normal(size=positions.shape).astype(np.float32), positions


def test_sums_of_inverse_ranks_by_hand() -> None:
    dense, lexical = ranked([[7, 3, 5]]), ranked([[3, 9, -1]])
    scores, positions = reciprocal_rank_fusion([dense, lexical], 4)
    assert positions.tolist() == [[3, 7, 9, 5]]
    assert scores[0] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63])


def test_ties_stand_in_the_order_of_positions() -> None:
    a, b, c = ranked([[4, 2, 8]]), ranked([[2, 8, 4]]), ranked([[8, 4, 2]])
    for lists in ([a, b, c], [c, a, b], [b, c, a]):
        scores, positions = reciprocal_rank_fusion(lists, 3)
        assert positions.tolist() == [[2, 4, 8]]
        assert len(set(scores[0].tolist())) == 1


def test_rows_without_enough_documents_end_in_none() -> None:
    empty = ranked([[-1, -1]])
    scores, positions = reciprocal_rank_fusion([ranked([[6, -1]]), empty], 3)
    assert positions.tolist() == [[6, -1, -1]]
    assert scores[0, 0] == pytest.approx(1 / 61) and np.isneginf(scores[0, 1:]).all()


def test_equals_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tercet.mining.fuse.BLOCK", 7)
    random = np.random.default_rng(1)
    lists = []
    for width in (12, 5, 20):
        rows = [random.permutation(30)[:width] for _ in range(23)]
        found = ranked([[int(p) if random.random() < 0.9 else -1 for p in row] for row in rows])
        lists.append(found)
    scores, positions = reciprocal_rank_fusion(lists, 10, constant=3)
    for query in range(23):
        sums: dict[int, float] = {}
        for _, found in lists:
            for rank, position in enumerate(found[query], start=1):
                if position >= 0:
                    sums[position] = sums.get(position, 0.0) + 1 / (3 + rank)
        want = sorted(sums, key=lambda p: (-round(sums[p], 12), p))[:10]
        assert positions[query].tolist() == want
        assert scores[query] == pytest.approx([sums[p] for p in want])


def test_one_list_keeps_its_order() -> None:
    assert reciprocal_rank_fusion([ranked([[5, 1, 3]])], 2)[1].tolist() == [[5, 1]]


def test_no_queries_give_an_empty_answer() -> None:
    none = np.empty((0, 4), np.float32), np.empty((0, 4), np.int64)
    assert reciprocal_rank_fusion([none], 3)[1].shape == (0, 3)


def test_lists_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="different numbers"):
        reciprocal_rank_fusion([ranked([[1]]), ranked([[1], [2]])], 3)
    for lists, k in (([], 3), ([ranked([[1]])], 0)):
        with pytest.raises(ValueError, match="need a list"):
            reciprocal_rank_fusion(lists, k)
