"""Which candidates become negatives, on examples checked by hand."""

from typing import Any

import numpy as np
import pytest

from tercet.configs.schema import MiningConfig
from tercet.mining.select import RULES, Selection, ceiling, select


def chosen(
    scores: list[float],
    *,
    known: tuple[int, ...] = (),
    same: list[int] | None = None,
    lowest: float = 1.0,
    query_id: str = "q",
    **settings: Any,
) -> Selection:
    """Candidates are documents 0, 1, 2, ... with these scores, already in their order."""
    settings = {"negatives": 2, "relative_margin": None} | settings
    return select(
        np.arange(len(scores)),
        np.array(scores, dtype=np.float32),
        np.array(known, dtype=np.int64),
        np.array(same if same is not None else range(len(scores))),
        lowest,
        MiningConfig(**settings),
        query_id,
    )


def test_a_document_close_to_the_positive_is_not_a_negative() -> None:
    got = chosen([0.80, 0.79, 0.70, 0.60], known=(0,), lowest=0.80, relative_margin=0.95)
    assert got.positions.tolist() == [2, 3]  # 0.79 > 0.95 * 0.80 = 0.76
    assert got.ranks.tolist() == [3, 4]
    assert got.scores.tolist() == pytest.approx([0.70, 0.60])
    assert got.dropped == {"known": 1, "repeat": 0, "window": 0, "margin": 1, "surplus": 0}


def test_the_lowest_of_several_positives_sets_the_margin() -> None:
    got = chosen([0.9, 0.7, 0.6, 0.5, 0.4], known=(0, 3), lowest=0.5, relative_margin=0.9)
    assert got.positions.tolist() == [4]  # 0.9 * 0.5 = 0.45
    assert got.dropped["known"] == 2 and got.dropped["margin"] == 2


def test_a_positive_under_another_id_is_known() -> None:
    # 1 is the positive; 0 holds its text with a doubled space, 2 in another case: one text of three
    got = chosen([0.9, 0.8, 0.7, 0.6], known=(1,), same=[0, 0, 0, 3])
    assert got.positions.tolist() == [3]
    assert got.dropped["known"] == 3


def test_a_text_is_taken_once() -> None:
    got = chosen([0.9, 0.8, 0.7, 0.6], same=[0, 0, 2, 0])
    assert got.positions.tolist() == [0, 2]
    assert got.dropped["repeat"] == 2


def test_negative_scores_keep_the_margin_below_the_positive() -> None:
    assert ceiling(-0.5, 0.9) == pytest.approx(-0.55)
    got = chosen([-0.2, -0.5, -0.52, -0.6], known=(1,), lowest=-0.5, relative_margin=0.9)
    assert got.positions.tolist() == [3]


def test_skip_counts_what_is_left_after_known_positives_and_depth_counts_ranks() -> None:
    got = chosen([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], known=(0,), skip=1, depth=4, negatives=9)
    assert got.positions.tolist() == [2, 3]  # 0 known, 1 skipped, 4 and 5 beyond rank 4
    assert got.ranks.tolist() == [3, 4]
    assert got.dropped == {"known": 1, "repeat": 0, "window": 3, "margin": 0, "surplus": 0}


def test_fewer_candidates_than_asked_for_are_all_kept() -> None:
    assert chosen([0.3], negatives=4).positions.tolist() == [0]


def test_no_survivor_is_an_empty_answer_with_its_reasons() -> None:
    got = chosen([0.9, 0.8], known=(0,), lowest=0.5, relative_margin=0.95)
    assert len(got.positions) == len(got.ranks) == len(got.scores) == 0
    assert got.dropped["known"] == 1 and got.dropped["margin"] == 1


def test_a_random_draw_depends_on_seed_and_query_alone() -> None:
    scores = list(np.linspace(1.0, 0.0, 50))
    draw = lambda **more: chosen(scores, sampling="random", negatives=5, **more)  # noqa: E731
    first = draw(query_id="a").positions.tolist()
    assert first == sorted(first) and len(set(first)) == 5
    assert draw(query_id="a").positions.tolist() == first
    assert draw(query_id="b").positions.tolist() != first
    assert draw(query_id="a", seed=13).positions.tolist() != first


def test_random_draws_reach_every_fit_candidate_alike() -> None:
    taken = np.zeros(10)
    for query in range(2000):
        got = chosen([0.5] * 10, sampling="random", negatives=2, query_id=str(query))
        taken[got.positions] += 1
    assert (abs(taken - 400) < 100).all()  # 5.6 standard deviations of Binomial(2000, 0.2)


def test_every_candidate_is_kept_or_counted() -> None:
    generator = np.random.default_rng(7)
    for _ in range(50):
        size = int(generator.integers(0, 30))
        scores = -np.sort(-generator.normal(size=size)).astype(np.float32)
        got = select(
            np.arange(size),
            scores,
            generator.integers(0, max(size, 1), 3),
            generator.integers(0, max(size, 1), max(size, 1)),
            float(generator.normal()),
            MiningConfig(negatives=3, depth=20, skip=2),
            "q",
        )
        assert len(got.positions) + sum(got.dropped.values()) == size
        assert tuple(got.dropped) == RULES
