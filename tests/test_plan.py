"""A batch cut into micro-batches: nothing lost, nothing twice, no rank with much more to do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.train.plan import Plan, plan

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=80)
RANKS = st.integers(1, 9)
BUDGET = st.integers(1, 200)
BUDGETS = st.sampled_from([1_024, 2_048, 4_096, 8_192])  # what `auto` finds on real texts


def whole(cut: Plan) -> list[int]:
    return sorted(int(text) for rank in cut.ranks for micro in rank for text in micro)


@given(LENGTHS, RANKS, BUDGET, st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_text_is_encoded_once_within_the_budget(
    lengths: list[int], ranks: int, budget: int, apart: bool
) -> None:
    groups = np.arange(len(lengths)) % 2 if apart else None
    cut = plan(np.array(lengths), ranks, budget, groups)
    assert whole(cut) == list(range(len(lengths)))
    assert len({len(rank) for rank in cut.ranks}) == 1  # equally many, empty ones included
    for micro in (micro for rank in cut.ranks for micro in rank):
        assert cut.cost(micro) <= budget or len(micro) == 1
        assert groups is None or len(set(groups[micro].tolist())) <= 1


@given(LENGTHS, RANKS, BUDGET, st.integers(0, 500))
@settings(max_examples=100, deadline=None)
def test_every_rank_keeps_equally_many_graphs_within_its_room(
    lengths: list[int], ranks: int, budget: int, room: int
) -> None:
    cut = plan(np.array(lengths), ranks, budget)
    kept = cut.kept(room)
    assert all(sum(cut.cost(m) for m in rank[:kept]) <= room for rank in cut.ranks)
    one_more = [sum(cut.cost(m) for m in rank[: kept + 1]) for rank in cut.ranks]
    assert kept == len(cut.ranks[0]) or max(one_more) > room


@given(st.integers(256, 3000), st.integers(2, 8), BUDGETS, st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_real_batches_are_balanced_to_five_percent(
    count: int, ranks: int, budget: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    lengths = random.lognormal(4, 0.8, count).astype(np.int64).clip(3, 512)
    cut = plan(lengths, ranks, budget)
    real = [sum(lengths[micro].sum() for micro in rank) for rank in cut.ranks]
    assert cut.imbalance < 0.05 and max(real) / np.mean(real) - 1 < 0.05


@given(LENGTHS, RANKS, BUDGET, st.integers(0, 500))
@settings(max_examples=100, deadline=None)
def test_graphs_that_are_held_are_all_or_those_kept_and_one_more(
    lengths: list[int], ranks: int, budget: int, room: int
) -> None:
    cut = plan(np.array(lengths), ranks, budget)
    kept = cut.kept(room)
    for rank in cut.ranks:
        costs = [cut.cost(micro) for micro in rank]
        assert cut.held(room) >= sum(costs[:kept]) + max(costs[kept:], default=0)
    assert cut.held(0) == max(cut.cost(micro) for rank in cut.ranks for micro in rank)
    assert cut.held(10**9) == max(cut.loads)


def test_more_ranks_than_texts_leave_empty_micro_batches() -> None:
    cut = plan(np.array([3, 5]), 4, 100)
    assert sorted(len(rank[0]) for rank in cut.ranks) == [0, 0, 1, 1]


def test_a_rank_with_fewer_micro_batches_halves_its_own() -> None:
    cut = plan(np.array([9, 2, 1, 8]), 2, 10)  # dealt: 0 and 2 against 3 and 1
    assert [[micro.tolist() for micro in rank] for rank in cut.ranks] == [[[0], [2]], [[3], [1]]]
    cut = plan(np.array([9, 2, 2, 8]), 2, 16)  # the first rank needs two, the second one
    assert [[micro.tolist() for micro in rank] for rank in cut.ranks] == [[[0], [2]], [[3], [1]]]


def test_what_is_counted() -> None:
    cut = plan(np.array([4, 2, 3]), 1, 6)
    assert cut.tokens == 9
    assert cut.padded == sum(len(m) * max([4, 2, 3][i] for i in m) for m in cut.ranks[0])
    assert cut.loads == [cut.padded] and cut.imbalance == pytest.approx(0)
    assert (cut.recomputed(0), cut.recomputed(cut.padded)) == (1, 0)
    apart = plan(np.array([4, 2, 3]), 2, 3)  # dealt: 0 and nothing against 2 and 1
    assert apart.loads == [4, 5] and apart.imbalance == pytest.approx(1 / 9)
    assert apart.recomputed(4) == pytest.approx(2 / 9)  # text 1 has no room beside text 2
