"""Which candidates become negatives, on examples checked by hand."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tercet.configs.schema import MiningConfig
from tercet.data.rows import normalise
from tercet.mining.select import (
    KEPT,
    LABEL_RULES,
    RULES,
    VERDICTS,
    Evidence,
    Opinion,
    ceiling,
    label,
    luck_of,
    outside,
    rule_text,
    select,
)


def facts(
    scores: list[float],
    *,
    known: tuple[int, ...] = (),
    own: tuple[int, ...] = (),
    texts: list[int] | None = None,
    likeness: list[float] | None = None,
    lowest: float = 1.0,
    query: int = 5,
    seed: int = 12,
) -> Evidence:
    """One query's candidates are documents 0, 1, 2, ... with these scores, in their order."""
    places = np.arange(len(scores))[None]

    def marked(which: tuple[int, ...]) -> NDArray[np.bool_]:
        same = places if texts is None else np.array([texts])
        return np.isin(same, same[0, list(which)])

    return Evidence(
        positions=places,
        texts=places if texts is None else np.array([texts]),
        scores=np.array([scores], dtype=np.float32),
        known=marked(known),
        own=marked(own),
        likeness=None if likeness is None else np.array([likeness]),
        lowest=np.array([lowest], dtype=np.float32),
        luck=luck_of(np.array([query]), places, seed),
    )


def names(verdicts: NDArray[np.int8]) -> list[str]:
    return [VERDICTS[code] for code in verdicts[0]]


def chosen(scores: list[float], *, seed: int = 12, **more: Any) -> list[str]:
    """The verdict on each candidate."""
    told = {name: more.pop(name) for name in list(more) if name in TOLD}
    settings = {"negatives": 2, "relative_margin": None, "seed": seed} | more
    return names(select(facts(scores, seed=seed, **told), MiningConfig(**settings)))


TOLD = ("known", "own", "texts", "likeness", "lowest", "query")


def kept(verdicts: list[str]) -> list[int]:
    return [place for place, verdict in enumerate(verdicts) if verdict == "kept"]


def test_a_document_close_to_the_positive_is_not_a_negative() -> None:
    got = chosen([0.80, 0.79, 0.70, 0.60], known=(0,), lowest=0.80, relative_margin=0.95)
    assert got == ["known", "relative_margin", "kept", "kept"]  # 0.79 > 0.95 * 0.80 = 0.76


def test_the_lowest_of_several_positives_sets_the_margin() -> None:
    scores = [0.9, 0.7, 0.6, 0.5, 0.4]
    got = chosen(scores, known=(0, 3), lowest=0.5, relative_margin=0.9)  # 0.9 * 0.5 = 0.45
    assert got == ["known", "relative_margin", "relative_margin", "known", "kept"]


def test_an_absolute_margin_is_below_the_lowest_positive() -> None:
    got = chosen([0.8, 0.75, 0.7, 0.69], known=(0,), lowest=0.8, absolute_margin=0.1)
    assert got == ["known", "absolute_margin", "kept", "kept"]  # 0.7 <= 0.8 - 0.1


def test_scores_have_a_highest_and_a_lowest() -> None:
    got = chosen([0.9, 0.5, 0.4, 0.1], max_score=0.5, min_score=0.4)
    assert got == ["max_score", "kept", "kept", "min_score"]


def test_a_positive_under_another_id_is_known() -> None:
    # 1 is the positive; 0 holds its text with a doubled space, 2 in another case
    written = ["fix  a tyre", "fix a tyre", "Fix A Tyre", "mend a tyre"]
    texts = [[normalise(t) for t in written].index(normalise(text)) for text in written]
    assert texts == [0, 0, 0, 3]
    assert chosen([0.9, 0.8, 0.7, 0.6], known=(1,), texts=texts) == ["known"] * 3 + ["kept"]


def test_a_text_is_taken_once() -> None:
    got = chosen([0.9, 0.8, 0.7, 0.6], texts=[0, 0, 2, 0])
    assert got == ["kept", "repeat", "kept", "repeat"]


def test_a_curated_negative_is_not_mined_again_and_takes_no_place() -> None:
    got = chosen([0.9, 0.8, 0.7, 0.6], own=(0,), lowest=0.85, relative_margin=0.95)
    assert got == ["own", "kept", "kept", "surplus"]  # the margin has no say in what a row brings


def test_a_near_duplicate_of_a_positive_is_none_of_its_negatives() -> None:
    scores, likeness = [0.9, 0.6, 0.5], [1.0, 0.985, 0.975]
    got = chosen(scores, known=(0,), likeness=likeness, near_duplicate=0.98)
    assert got == ["known", "near_duplicate", "kept"]
    assert chosen(scores, known=(0,), likeness=likeness) == ["known", "kept", "kept"]


def test_negative_scores_keep_the_margin_below_the_positive() -> None:
    assert ceiling(np.array([-0.5]), 0.9) == pytest.approx([-0.55])
    got = chosen([-0.2, -0.5, -0.52, -0.6], known=(1,), lowest=-0.5, relative_margin=0.9)
    assert got == ["relative_margin", "known", "relative_margin", "kept"]


def test_skip_counts_unlabelled_candidates_and_depth_counts_ranks() -> None:
    got = chosen([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], known=(0,), skip=1, depth=4, negatives=3)
    assert got == ["known", "window", "kept", "kept", "window", "window"]


def test_fewer_candidates_than_asked_for_are_all_kept() -> None:
    assert chosen([0.3], negatives=4) == ["kept"]


def test_no_survivor_is_an_answer_with_its_reasons() -> None:
    got = chosen([0.9, 0.8], known=(0,), lowest=0.5, relative_margin=0.95)
    assert got == ["known", "relative_margin"]


def test_a_query_with_too_few_can_be_dropped_with_what_it_kept() -> None:
    settings = {"known": (0,), "lowest": 0.8, "relative_margin": 0.9}
    assert chosen([0.8, 0.7, 0.6], too_few="drop", **settings) == ["known", "kept", "kept"]
    got = chosen([0.8, 0.79, 0.6], too_few="drop", **settings)
    assert got == ["known", "relative_margin", "too_few"]


def test_places_without_a_candidate_are_no_candidates() -> None:
    some = facts([0.9, 0.8, 0.7])
    some.positions[0, 2], some.texts[0, 2], some.scores[0, 2] = -1, -1, -np.inf
    got = names(select(some, MiningConfig(relative_margin=None)))
    assert got == ["kept", "kept", "absent"]


def test_a_random_draw_depends_on_seed_query_and_document_alone() -> None:
    scores = list(np.linspace(1.0, 0.0, 50))

    def draw(**more: Any) -> list[int]:
        return kept(chosen(scores, sampling="random", negatives=5, **more))

    first = draw(query=1)
    assert len(first) == 5
    assert draw(query=1) == first
    assert draw(query=2) != first
    assert draw(query=1, seed=13) != first
    without = draw(query=1, known=(first[0],))
    assert set(first[1:]) < set(without)  # another rule's victim leaves the rest of the draw alone


def often(scores: list[float], queries: int, **settings: Any) -> NDArray[np.int64]:
    """How often each candidate is kept, over so many queries with the same candidates."""
    one = facts(scores)
    shape = (queries, len(scores))
    places = np.broadcast_to(one.positions, shape)
    no = np.zeros(shape, dtype=bool)
    block = Evidence(
        positions=places,
        texts=places,
        scores=np.broadcast_to(one.scores, shape),
        known=no,
        own=no,
        likeness=None,
        lowest=np.ones(queries),
        luck=luck_of(np.arange(queries), places, 12),
    )
    config = MiningConfig(relative_margin=None, **settings)
    return (select(block, config) == KEPT).sum(axis=0)


def test_random_draws_reach_every_fit_candidate_alike() -> None:
    taken = often([0.5] * 10, 2000, sampling="random", negatives=2)
    assert (abs(taken - 400) < 100).all()  # 5.6 standard deviations of Binomial(2000, 0.2)


def test_softmax_draws_follow_the_softmax() -> None:
    scores, temperature = np.array([0.9, 0.8, 0.7, 0.5]), 0.2
    expected = np.exp(scores / temperature) / np.exp(scores / temperature).sum()
    taken = often(scores.tolist(), 20_000, sampling="softmax", temperature=temperature, negatives=1)
    spread = np.sqrt(expected * (1 - expected) / 20_000)
    assert (abs(taken / 20_000 - expected) < 4 * spread).all()


def test_filling_draws_other_texts_and_ends_when_there_are_none() -> None:
    texts = np.array([0, 0, 2, 3, 3, 5, 6, 7])
    for key in range(20):
        drawn = outside(3, texts, np.array([0, 7]), 12, key)
        assert len(drawn) == 3 and len(set(texts[drawn])) == 3
        assert not set(texts[drawn].tolist()) & {0, 7}
    assert len({tuple(outside(3, texts, np.array([0]), 12, key)) for key in range(20)}) > 10
    assert sorted(texts[outside(9, texts, np.array([0, 7]), 12, 1)]) == [2, 3, 5, 6]
    closed = np.where(texts == 3, -1, texts)
    assert sorted(texts[outside(9, closed, np.array([0, 7]), 12, 1)]) == [2, 5, 6]
    assert outside(9, np.array([0, 0]), np.array([0]), 12, 1).tolist() == []


def judged(
    scores: list[float], p: list[float], lowest_p: float, *, told: dict[str, Any], **rescore: Any
) -> list[str]:
    config = MiningConfig(
        negatives=4,
        relative_margin=told.pop("relative_margin", None),
        rescore={"model": "any", **rescore},  # type: ignore[arg-type]
    )
    opinion = Opinion(np.array([p]), np.array([lowest_p]))
    return names(select(facts(scores, **told), config, opinion))


def test_the_cross_encoder_vetoes_what_it_prefers_to_the_positive() -> None:
    p = [0.9, 0.71, 0.7, 0.2, np.nan]
    got = judged([0.9, 0.8, 0.7, 0.6, 0.5], p, 0.7, told={"known": (0,)})
    assert got == ["known", "veto", "kept", "kept", "unscored"]
    got = judged([0.9, 0.8, 0.7], [0.9, 0.6, 0.2], 0.7, told={}, veto_margin=-0.2)
    assert got == ["veto", "veto", "kept"]  # 0.6 > 0.7 - 0.2
    got = judged([0.9, 0.8], [0.4, 0.2], 0.9, told={}, veto_margin=None, veto_above=0.3)
    assert got == ["veto", "kept"]


def test_what_it_is_sure_of_becomes_a_positive_whatever_the_margins_say() -> None:
    p = [0.99, 0.97, 0.94, 0.98, 0.99]
    told = {"known": (4,), "lowest": 0.6, "relative_margin": 0.9}
    got = judged([0.9, 0.8, 0.7, 0.5, 0.4], p, 0.96, told=told, relabel=True, relabel_above=0.95)
    assert got == ["relabelled", "relabelled", "relative_margin", "relabelled", "known"]
    got = judged([0.9, 0.8], [0.97, 0.97], 0.98, told={}, relabel=True, relabel_above=0.95)
    assert got == ["kept", "kept"]  # sure, and less sure than of the positive


def test_rows_of_a_block_do_not_mix() -> None:
    """All queries at once, against the rules written down one candidate at a time."""
    generator = np.random.default_rng(7)
    count, width = 40, 30
    block = Evidence(
        positions=generator.integers(-1, 50, (count, width)),
        texts=generator.integers(0, 40, (count, width)),
        scores=-np.sort(-generator.normal(size=(count, width))).astype(np.float32),
        known=generator.random((count, width)) < 0.1,
        own=generator.random((count, width)) < 0.1,
        likeness=generator.random((count, width)),
        lowest=generator.normal(size=count),
        luck=generator.integers(0, 2**63, (count, width)).astype(np.uint64),
    )
    p = np.where(generator.random((count, width)) < 0.2, np.nan, generator.random((count, width)))
    opinion = Opinion(p, generator.random(count) * 0.5 + 0.5)
    config = MiningConfig(
        negatives=3,
        depth=25,
        skip=2,
        max_score=1.5,
        min_score=-0.5,
        absolute_margin=0.1,
        relative_margin=0.8,
        near_duplicate=0.95,
        rescore={"model": "any", "relabel": True, "veto_above": 0.9},  # type: ignore[arg-type]
    )
    got = select(block, config, opinion)
    assert (label(block, config) == KEPT).sum() > (got == KEPT).sum() > 0
    for row in range(count):
        assert names(got[row : row + 1]) == plain(block, opinion, config, row)
    assert {VERDICTS[code] for code in np.unique(got)} >= set(RULES) - {"too_few"}


def plain(e: Evidence, opinion: Opinion, config: MiningConfig, row: int) -> list[str]:
    """The reference: each candidate's first rule, in order."""
    verdicts, seen, unlabelled, taken = [], set(), 0, 0
    lowest, judge = float(e.lowest[row]), config.rescore
    assert e.likeness is not None and config.near_duplicate is not None
    assert config.max_score is not None and config.min_score is not None
    assert config.absolute_margin is not None and config.relative_margin is not None
    assert judge.veto_margin is not None and judge.veto_above is not None
    for place in range(e.positions.shape[1]):
        at, text = (row, place), int(e.texts[row, place])
        rules = {
            "absent": e.positions[at] < 0,
            "known": e.known[at],
            "repeat": text in seen,
            "own": e.own[at],
            "near_duplicate": e.likeness[at] > config.near_duplicate,
        }
        seen.add(text)
        unlabelled += not any(rules.values())
        score, p, best = float(e.scores[at]), opinion.candidates[at], opinion.lowest[row]
        rules |= {
            "window": unlabelled <= config.skip or place >= config.depth,
            "max_score": score > config.max_score,
            "min_score": score < config.min_score,
            "absolute_margin": score > lowest - config.absolute_margin,
            "relative_margin": score > lowest - (1 - config.relative_margin) * abs(lowest),
            "unscored": np.isnan(p),
            "veto": p > best + judge.veto_margin or p > judge.veto_above,
        }
        verdict = next((name for name, against in rules.items() if against), "kept")
        if verdict not in (*LABEL_RULES, "absent") and p > best and p >= judge.relabel_above:
            verdict = "relabelled"
        if verdict == "kept":
            verdict, taken = ("kept" if taken < config.negatives else "surplus"), taken + 1
        verdicts.append(verdict)
    return verdicts


def test_the_record_names_every_limit_that_was_set() -> None:
    config = MiningConfig(
        sampling="softmax",
        skip=2,
        min_score=0.1,
        rescore={"model": "x", "veto_margin": 0.1},  # type: ignore[arg-type]
    )
    assert rule_text(config) == (
        "softmax of ranks 3-100, score >= 0.1, score <= 0.95 of lowest positive, "
        "cross-encoder <= lowest positive + 0.1"
    )
