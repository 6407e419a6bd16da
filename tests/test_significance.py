"""The error bars are honest: checked by simulation, with seeds."""

import numpy as np
import pytest

from tercet.errors import UserError
from tercet.evaluation.significance import (
    Delta,
    bootstrap_interval,
    bootstrap_intervals,
    compare,
    compare_over_tasks,
    effect_size,
    holm,
    mean_over_tasks,
    randomisation_test,
    ratio_interval,
)


def test_p_is_uniform_when_nothing_differs() -> None:
    generator = np.random.default_rng(1)
    simulations = 400
    p = np.sort(
        [
            randomisation_test(*generator.beta(0.5, 0.5, (2, 40)), draws=400, seed=s)
            for s in range(simulations)
        ]
    )
    distance = np.abs(p - np.arange(1, simulations + 1) / simulations).max()
    assert distance < 1.63 / np.sqrt(simulations)  # Kolmogorov-Smirnov, 1 % level


def test_a_planted_difference_is_found() -> None:
    generator = np.random.default_rng(2)
    found = 0
    for seed in range(50):
        a = generator.uniform(size=100)
        b = a + generator.normal(0.05, 0.1, 100)  # five standard errors
        found += randomisation_test(a, b, draws=1000, seed=seed) < 0.05
    assert found >= 48


def test_the_interval_holds_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(3)
    held = 0
    for seed in range(400):
        low, high = bootstrap_interval(generator.beta(2, 1, 100), draws=1000, seed=seed)
        held += low <= 2 / 3 <= high
    assert 0.91 <= held / 400 <= 0.98


def test_the_interval_of_a_ratio_holds_the_truth_and_pairs_the_queries() -> None:
    generator = np.random.default_rng(8)
    held, widths = 0, []
    for seed in range(300):
        a = generator.beta(2, 1, 80)
        b = np.clip(a * generator.normal(0.9, 0.2, 80), 0, None)
        low, high = ratio_interval(a, b, draws=800, seed=seed)
        held += low <= 0.9 <= high
        apart = ratio_interval(a, generator.permutation(b), draws=800, seed=seed)
        widths.append((high - low) / (apart[1] - apart[0]))
    assert 0.91 <= held / 300 <= 0.98
    assert np.mean(widths) < 0.6  # queries that are hard for both say nothing about the ratio
    rare = np.zeros(4)
    rare[0] = 1  # nothing in a third of the draws
    assert ratio_interval(rare, rare / 2) == (0.5, 0.5)


def test_p_of_all_sign_patterns_by_hand() -> None:
    # 8 patterns of three equal differences; two of them are as far out as the one observed
    p = randomisation_test(np.zeros(3), np.ones(3), draws=20_000, seed=4)
    assert p == pytest.approx(2 / 8, abs=0.015)


def test_equal_scores_give_p_one_and_p_is_never_zero() -> None:
    same = np.array([0.1, 0.2])
    assert randomisation_test(same, same) == 1.0
    far = randomisation_test(np.zeros(200), np.ones(200), draws=999, seed=5)
    assert far == pytest.approx(1 / 1000)


def test_the_two_sides_and_the_same_seed_give_the_same_p() -> None:
    a, b = np.random.default_rng(6).uniform(size=(2, 30))
    assert randomisation_test(a, b, seed=1) == randomisation_test(b, a, seed=1)
    assert bootstrap_interval(b - a, seed=1) == bootstrap_interval(b - a, seed=1)
    assert bootstrap_interval(b - a, seed=1) != bootstrap_interval(b - a, seed=2)


def test_many_queries_are_drawn_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(7).normal(size=50)
    monkeypatch.setattr("tercet.evaluation.significance._CELLS", 120)  # two draws at a time
    low, high = bootstrap_interval(values, draws=2001)
    half = 1.96 * values.std() / np.sqrt(50)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.04)


def test_compare_says_how_much_better_the_second_is_and_pairs_by_query() -> None:
    a = {"q1": 0.0, "q2": 0.5, "q3": 0.2}
    b = {"q3": 0.3, "q2": 0.6, "q1": 0.1}
    delta = compare(a, b)
    assert isinstance(delta, Delta) and delta.queries == 3
    assert (delta.mean, delta.low, delta.high) == pytest.approx((0.1, 0.1, 0.1))


def test_results_over_other_queries_are_refused() -> None:
    with pytest.raises(UserError, match="2 queries are scored on one side only, 'x'"):
        compare({"x": 1.0}, {"y": 1.0})
    with pytest.raises(UserError, match="no queries"):
        compare({}, {})
    with pytest.raises(ValueError, match="same queries"):
        randomisation_test(np.zeros(2), np.zeros(3))


def test_intervals_of_several_metrics_are_those_of_each_alone() -> None:
    scores = np.random.default_rng(8).beta(1, 2, (4, 60))
    together = bootstrap_intervals(scores, draws=500, seed=3)
    for row, interval in zip(scores, together, strict=True):
        assert bootstrap_interval(row, draws=500, seed=3) == pytest.approx(interval, abs=1e-12)
        generator = np.random.default_rng(3)  # the definition: draw queries, take their mean
        means = [row[generator.integers(0, 60, 60)].mean() for _ in range(500)]
        assert interval == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-12)


def test_the_interval_of_a_difference_holds_it_about_95_times_in_100() -> None:
    """Scores are 0 or 1, as hit rates are; the second system finds a fifth of what was missed."""
    generator = np.random.default_rng(9)
    truth, held = 0.1, 0
    for seed in range(400):
        a = (generator.uniform(size=100) < 0.5).astype(float)
        b = np.where(generator.uniform(size=100) < 0.2, 1.0, a)
        low, high = bootstrap_interval(b - a, draws=1000, seed=seed)
        held += low <= truth <= high
    assert 0.91 <= held / 400 <= 0.98


def test_the_test_keeps_its_level_and_finds_more_the_larger_the_difference() -> None:
    generator = np.random.default_rng(10)
    found = {shift: 0 for shift in (0.0, 0.02, 0.05)}
    for shift in found:
        for seed in range(200):
            a = generator.beta(0.5, 0.5, 80)
            b = a + generator.normal(shift, 0.12, 80)
            found[shift] += randomisation_test(a, b, draws=400, seed=seed) <= 0.05
    assert 0.02 <= found[0.0] / 200 <= 0.09
    assert found[0.0] < found[0.02] < found[0.05]
    assert found[0.05] / 200 > 0.9


def test_holm_by_hand_and_in_the_order_given() -> None:
    assert holm([]) == [] and holm([0.2]) == [0.2]
    # sorted 0.01 0.02 0.03 0.5 times 4 3 2 1 = 0.04 0.06 0.06 0.5
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_keeps_the_family_wise_error_where_plain_p_do_not() -> None:
    """Eight tasks on which nothing differs: how often is at least one called significant?"""
    generator = np.random.default_rng(11)
    plain = adjusted = 0
    for _ in range(2_000):
        p = generator.uniform(size=8).tolist()
        plain += min(p) <= 0.05
        adjusted += min(holm(p)) <= 0.05
    assert plain / 2_000 > 0.3  # 1 - 0.95 ** 8
    assert 0.035 <= adjusted / 2_000 <= 0.065


def test_the_effect_does_not_grow_with_the_queries() -> None:
    few = np.array([0.1, 0.3, -0.1])
    assert effect_size(few) == pytest.approx(0.1 / 0.2)
    many = np.tile(few, 1_000)
    assert effect_size(many) == pytest.approx(few.mean() / few.std(), rel=1e-3)
    assert effect_size(np.array([0.1, 0.1])) is None and effect_size(np.array([0.1])) is None
    delta = compare({"a": 0.0, "b": 0.0, "c": 0.5}, {"a": 0.1, "b": 0.3, "c": 0.4})
    assert delta.effect == pytest.approx(0.5)


def test_tasks_weigh_the_same_and_draw_their_own_queries() -> None:
    """A task of 20 queries and one of 200: the stratified bootstrap, written out."""
    random = np.random.default_rng(0)
    small, large = random.normal(0.3, 0.2, 20), random.normal(0.0, 0.2, 200)
    mean, low, high = mean_over_tasks([small, large])
    assert mean == pytest.approx((small.mean() + large.mean()) / 2)
    draws = [
        (random.choice(small, 20).mean() + random.choice(large, 200).mean()) / 2
        for _ in range(10_000)
    ]
    assert [low, high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.005)
    assert mean_over_tasks([small])[1:] == bootstrap_interval(small)


def test_the_test_over_tasks_turns_signs_as_the_mean_weighs_them() -> None:
    random = np.random.default_rng(1)
    small, large = random.normal(0.1, 0.2, 20), random.normal(0.0, 0.2, 200)
    delta = compare_over_tasks([small, large])
    flips = [
        ((random.choice([-1, 1], 20) * small).mean() + (random.choice([-1, 1], 200) * large).mean())
        / 2
        for _ in range(10_000)
    ]
    assert delta.p == pytest.approx(np.mean(np.abs(flips) >= abs(delta.mean)), abs=0.02)
    assert (delta.mean, delta.low, delta.high) == mean_over_tasks([small, large])
    assert delta.queries == 220
    alone = compare_over_tasks([small])
    want = compare({str(i): 0.0 for i in range(20)}, {str(i): d for i, d in enumerate(small)})
    assert alone.p == want.p and alone.mean == pytest.approx(want.mean)
    assert alone.effect == pytest.approx(effect_size(small))


def test_over_tasks_p_is_uniform_when_nothing_differs() -> None:
    random = np.random.default_rng(2)
    p = [
        compare_over_tasks([random.normal(size=10), random.normal(size=60)], draws=200, seed=seed).p
        for seed in range(300)
    ]
    shares = [np.mean(np.array(p) <= level) for level in (0.05, 0.2, 0.5, 0.8)]
    assert shares == pytest.approx([0.05, 0.2, 0.5, 0.8], abs=0.075)
