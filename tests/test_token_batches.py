"""Micro-batches: every text once, within the budget, at the least total cost."""

from itertools import pairwise, product

import numpy as np
import pytest

from tercet.models.encode import BATCH_COST, token_batches


def cost(lengths: np.ndarray, cuts: list[int], budget: int) -> float:
    """Padded tokens and batches of ascending `lengths` cut at `cuts`; infinite over the budget."""
    total = 0.0
    for start, end in pairwise(cuts):
        padded = (end - start) * lengths[end - 1]
        if padded > budget and end - start > 1:
            return float("inf")
        total += padded + budget * BATCH_COST
    return total


@pytest.mark.parametrize("budget", [1, 20, 64, 1_000])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_cut_costs_less(budget: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 30, size=9)
    batches = token_batches(lengths, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(9))
    ordered = np.sort(lengths)
    assert np.concatenate([lengths[b] for b in batches]).tolist() == ordered.tolist()
    every = (
        [0, *(i for i, cut in enumerate(choice, start=1) if cut), 9]
        for choice in product([False, True], repeat=8)
    )
    ends = np.cumsum([0, *(len(b) for b in batches)]).tolist()
    best = min(cost(ordered, cuts, budget) for cuts in every)
    assert cost(ordered, ends, budget) == pytest.approx(best)


def test_nothing_gives_no_batch() -> None:
    assert token_batches(np.array([], dtype=np.int64), 10) == []
