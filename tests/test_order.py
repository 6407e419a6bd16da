"""The order of batches: every row once per epoch, any step in constant time, nothing stored."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.data.order import BLOCK, Order, lots, permute


@given(st.integers(1, 5000), st.integers(0, 2**40), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_the_permutation_is_a_bijection(size: int, seed: int, epoch: int) -> None:
    shuffled = permute(np.arange(size), size, seed, epoch)
    assert sorted(shuffled.tolist()) == list(range(size))


@given(st.integers(0, 2**63), st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_another_seed_is_another_shuffle(one: int, other: int) -> None:
    same = (
        permute(np.arange(1000), 1000, one).tolist()
        == permute(np.arange(1000), 1000, other).tolist()
    )
    assert same == (one == other)


@pytest.mark.parametrize("other", [12 + 2**32, -12, 2**32 - 12])
def test_seeds_that_share_their_low_bits_differ(other: int) -> None:
    assert permute(np.arange(99), 99, 12).tolist() != permute(np.arange(99), 99, other).tolist()


def test_zeros_at_the_end_of_a_key_count() -> None:
    keys = [(12,), (12, 0), (12, 0, 0)]
    assert len({tuple(permute(np.arange(99), 99, *key)) for key in keys}) == len(keys)


def test_the_shuffle_looks_uniform() -> None:
    """Where position 0 of 8 goes over 2,000 epochs: chi-square, 7 degrees of freedom."""
    counts = np.bincount([permute(np.array([0]), 8, 1, epoch)[0] for epoch in range(2000)])
    assert ((counts - 250) ** 2 / 250).sum() < 24.3  # p = 0.001


def test_positions_outside_are_refused() -> None:
    for position in (-1, 10):
        with pytest.raises(ValueError, match="must lie in"):
            permute(np.array([position]), 10, 1)


def test_lots_depend_on_row_place_and_key_alone() -> None:
    rows, places = np.array([5, 5, 9]), np.array([0, 1, 0])
    drawn = lots(rows, places, 1, 2)
    assert len(set(drawn.tolist())) == 3
    assert lots(rows[2:], places[2:], 1, 2)[0] == drawn[2]
    assert not set(drawn.tolist()) & set(lots(rows, places, 1, 3).tolist())


@given(st.integers(1, 99), st.integers(1, 50), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_every_row_comes_once_per_epoch(rows: int, batch_size: int, seed: int) -> None:
    order = Order((rows,), batch_size, seed)
    for epoch in range(2):
        start = epoch * order.steps_per_epoch
        batches = [order.batch(start + i) for i in range(order.steps_per_epoch)]
        assert all(found == epoch for _, found in batches)
        assert sorted(np.concatenate([b for b, _ in batches]).tolist()) == list(range(rows))


def test_the_last_short_batch_is_used() -> None:
    order = Order((29,), 16, 1)
    assert [len(order.batch(step)[0]) for step in range(4)] == [16, 13, 16, 13]


def test_epochs_are_shuffled_differently() -> None:
    order = Order((64,), 64, 1)
    assert order.batch(0)[0].tolist() != order.batch(1)[0].tolist()


def test_a_late_step_of_a_large_set_costs_what_the_first_does() -> None:
    order = Order((10**8,), 1024, 7)
    start = time.perf_counter()
    rows, epoch = order.batch(10**6)
    assert time.perf_counter() - start < 0.5  # seconds; an array of 10**8 positions takes longer
    assert epoch == 10**6 // order.steps_per_epoch == 10
    assert len(set(rows.tolist())) == 1024
    assert rows.tolist() == Order((10**8,), 1024, 7).batch(10**6)[0].tolist()


SIZES = (900, 100, 25)


def source_of(rows: np.ndarray) -> int:
    sources = set(np.searchsorted(np.cumsum(SIZES), rows, side="right").tolist())
    assert len(sources) == 1, "a batch mixes sources"
    return sources.pop()


def test_a_batch_has_one_source_and_shares_are_met_in_every_block() -> None:
    order = Order(SIZES, 10, 3, alpha=0.5)
    weights = np.sqrt(SIZES) / np.sqrt(SIZES).sum()
    for block in range(3):
        steps = range(block * BLOCK, (block + 1) * BLOCK)
        counts = Counter(source_of(order.batch(step)[0]) for step in steps)
        assert [counts[s] for s in range(3)] == pytest.approx(weights * BLOCK, abs=1)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_shares_follow_the_exponent_with_many_sources(alpha: float) -> None:
    sizes = (100_000, *[1000] * 60)
    order = Order(sizes, 10, 3, alpha)
    starts = np.cumsum(sizes)
    drawn = [np.searchsorted(starts, order.batch(s)[0][0], side="right") for s in range(BLOCK)]
    counts = np.bincount(drawn, minlength=len(sizes))
    exact = np.array(sizes) ** alpha / (np.array(sizes) ** alpha).sum() * BLOCK
    assert counts.min() >= 1
    assert counts[0] == pytest.approx(exact[0], abs=1 + (np.maximum(1, exact) - exact).sum())
    if alpha == 0:
        assert set(counts.tolist()) == {4, 5}


def test_each_source_keeps_its_own_epochs() -> None:
    order = Order(SIZES, 10, 3)
    seen: dict[tuple[int, int], list[int]] = {}
    for step in range(600):
        rows, epoch = order.batch(step)
        seen.setdefault((source_of(rows), epoch), []).extend(rows.tolist())
    starts = np.cumsum((0, *SIZES))
    finished = [key for key in seen if (key[0], key[1] + 1) in seen]
    assert len(finished) > 20
    for source, epoch in finished:
        expected = list(range(starts[source], starts[source + 1]))
        assert sorted(seen[source, epoch]) == expected


def test_more_sources_than_a_block_holds_are_refused() -> None:
    with pytest.raises(ValueError, match=f"at most {BLOCK} sources"):
        Order((1,) * (BLOCK + 1), 1, 1).batch(0)
