"""Which candidates become negatives. Pure: what is known of them in, a verdict on each out."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tercet.configs.schema import MiningConfig, RescoreConfig
from tercet.data.order import lots, permute

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Indices = NDArray[np.int64]

# In the order they are applied: the first rule that speaks against a candidate is its verdict.
LABEL_RULES = ("known", "repeat", "own", "near_duplicate")
SCORE_RULES = ("window", "max_score", "min_score", "absolute_margin", "relative_margin")
RULES = (*LABEL_RULES, *SCORE_RULES, "unscored", "relabelled", "veto", "surplus", "too_few")
VERDICTS = ("kept", *RULES, "absent")  # absent: the list ended before this place
CODE = {name: np.int8(number) for number, name in enumerate(VERDICTS)}
KEPT, RELABELLED, ABSENT = CODE["kept"], CODE["relabelled"], CODE["absent"]


@dataclass(frozen=True)
class Evidence:
    """What is known of the candidates of Q queries, C to each, best first."""

    positions: Indices  # (Q, C) in the documents; -1 where a list is shorter
    texts: Indices  # (Q, C) equal where normalised texts are
    scores: Floats  # (Q, C)
    known: Bools  # (Q, C) whether it answers the query
    own: Bools  # (Q, C) whether it is one of the query's own negatives already
    likeness: Floats | None  # (Q, C) its highest cosine to a positive, if a rule needs it
    lowest: Floats  # (Q,) score of the positive least like the query
    luck: NDArray[np.uint64]  # (Q, C) what decides random draws


@dataclass(frozen=True)
class Opinion:
    """What a cross-encoder thinks: probabilities, NaN where it was not asked."""

    candidates: Floats  # (Q, C)
    lowest: Floats  # (Q,) of the positive it likes least


def label(evidence: Evidence, config: MiningConfig) -> NDArray[np.int8]:
    """Verdicts (Q, C) after the rules that look at labels alone; what is `KEPT` is unlabelled.

    In order, a candidate falls to

    - known: it answers the query, under whichever id its normalised text stands;
    - repeat: its normalised text stood at a better rank already;
    - own: a row of the query brings it as a negative, and keeps it whatever is mined;
    - near_duplicate: its cosine to a positive of the query is above `near_duplicate`.
    """
    verdicts = np.where(evidence.positions < 0, ABSENT, KEPT)
    _drop(verdicts, "known", evidence.known)
    _drop(verdicts, "repeat", ~_first_seen(evidence.texts))
    _drop(verdicts, "own", evidence.own)
    if config.near_duplicate is not None and evidence.likeness is not None:
        _drop(verdicts, "near_duplicate", evidence.likeness > config.near_duplicate)
    return verdicts


def select(
    evidence: Evidence,
    config: MiningConfig,
    opinion: Opinion | None = None,
    *,
    labels: NDArray[np.int8] | None = None,
) -> NDArray[np.int8]:
    """Verdicts (Q, C) after all rules: an index into `VERDICTS` for each candidate.

    After those of `label` (`labels`, if they are known already), in order, a candidate falls to

    - window: its rank is beyond `depth`, or it is among the first `skip` that are unlabelled;
    - max_score, min_score: it scores above or below these;
    - absolute_margin: it scores above the lowest positive minus this;
    - relative_margin: it scores above `ceiling` of the lowest positive;
    - unscored, relabelled, veto: see `_judge`; only with an `opinion`;
    - surplus: it was fit, but `negatives` others were taken: the first ones (sampling: top), any
      (random), or more likely the higher the score (softmax).

    A query may keep fewer than `negatives`, or none; where `too_few` is "drop", what it kept then
    falls to too_few.
    """
    verdicts = label(evidence, config) if labels is None else labels.copy()
    _drop(verdicts, "window", ~_in_window(verdicts == KEPT, config.skip, config.depth))
    for rule, against in limits(evidence.scores, evidence.lowest[:, None], config):
        _drop(verdicts, rule, against)
    if opinion is not None:
        _judge(verdicts, opinion, config.rescore)
    _drop(verdicts, "surplus", ~_sampled(verdicts == KEPT, evidence, config))
    if config.too_few == "drop":
        kept = (verdicts == KEPT).sum(axis=1, keepdims=True)
        _drop(verdicts, "too_few", np.broadcast_to(kept < config.negatives, verdicts.shape))
    return verdicts


def limits(
    scores: Floats, lowest_positive: Floats, config: MiningConfig
) -> Iterator[tuple[str, Bools]]:
    """The rules on scores that are set, in their order, each with what it speaks against.

    scores of any shape; those of the lowest positives of the same, or one that is broadcast to it.
    """
    if config.max_score is not None:
        yield "max_score", scores > config.max_score
    if config.min_score is not None:
        yield "min_score", scores < config.min_score
    if config.absolute_margin is not None:
        yield "absolute_margin", scores > lowest_positive - config.absolute_margin
    if config.relative_margin is not None:
        yield "relative_margin", scores > ceiling(lowest_positive, config.relative_margin)


def ceiling(lowest_positive: Floats, margin: float) -> Floats:
    """Highest score a negative may have: s - (1 - margin) |s| for a lowest positive score s.

    For s > 0 this is margin * s, TopK-PercPos of NV-Retriever (arXiv:2407.15831, section 3.2).
    For s < 0, margin * s would lie above s and let false negatives through; this stays below.

    >>> ceiling(np.array([0.8, -0.8]), 0.95).round(6).tolist()
    [0.76, -0.84]
    """
    return lowest_positive - (1.0 - margin) * np.abs(lowest_positive)


def outside(count: int, texts: Indices, banned: Indices, seed: int, key: int) -> Indices:
    """At most `count` of D documents, drawn by (seed, key), none of a banned text.

    texts (D,) tells equal texts, as in `Evidence`, and is -1 for documents nobody may draw; no text
    is drawn twice. The draw walks a keyed permutation of the corpus, so it needs no list of it.
    """
    total = len(texts)
    drawn: list[int] = []
    seen = {-1, *banned.tolist()}
    for start in range(0, total, _WALK):
        steps = np.arange(start, min(start + _WALK, total))
        for document in permute(steps, total, seed, key).tolist():
            if len(drawn) == count:
                return np.array(drawn, dtype=np.int64)
            if (text := int(texts[document])) not in seen:
                seen.add(text)
                drawn.append(document)
    return np.array(drawn, dtype=np.int64)


_WALK = 64  # documents of the permutation looked at in one go


def rule_text(config: MiningConfig) -> str:
    """What a kept negative went through, in a few words, for the record.

    >>> rule_text(MiningConfig(sampling="random", max_score=0.8))
    'random of ranks 1-100, score <= 0.8, score <= 0.95 of lowest positive'
    """
    judge = config.rescore
    bounds = [
        ("cosine to positives <= {:g}", config.near_duplicate),
        ("score <= {:g}", config.max_score),
        ("score >= {:g}", config.min_score),
        ("score <= lowest positive - {:g}", config.absolute_margin),
        ("score <= {:g} of lowest positive", config.relative_margin),
        ("cross-encoder <= lowest positive + {:g}", judge.model and judge.veto_margin),
        ("cross-encoder <= {:g}", judge.model and judge.veto_above),
    ]
    start = f"{config.sampling} of ranks {config.skip + 1}-{config.depth}"
    return ", ".join([start, *(text.format(n) for text, n in bounds if n is not None)])


def _drop(verdicts: NDArray[np.int8], rule: str, against: Bools) -> None:
    verdicts[(verdicts == KEPT) & against] = CODE[rule]


def _first_seen(texts: Indices) -> Bools:
    """Whether no place before it in its row holds the same number."""
    order = np.argsort(texts, axis=1, kind="stable")
    ordered = np.take_along_axis(texts, order, axis=1)
    first = np.ones(texts.shape, dtype=bool)
    np.put_along_axis(first, order[:, 1:], ordered[:, 1:] != ordered[:, :-1], axis=1)
    return first


def _in_window(alive: Bools, skip: int, depth: int) -> Bools:
    return (np.cumsum(alive, axis=1) > skip) & (np.arange(alive.shape[1]) < depth)


def _judge(verdicts: NDArray[np.int8], opinion: Opinion, config: RescoreConfig) -> None:
    """The cross-encoder's rules; p is its probability that a candidate is an answer.

    - unscored: it was not asked about the candidate;
    - relabelled: p is above the lowest positive's and at least `relabel_above`: by its judgement
      an answer that nobody labelled (RLHN, arXiv:2505.16967). These look past the margins: a false
      negative usually scores too high for them. Nothing that a label rule dropped is looked at;
    - veto: p is above the lowest positive's plus `veto_margin`, or above `veto_above`.
    """
    p, lowest = opinion.candidates, opinion.lowest[:, None]
    _drop(verdicts, "unscored", np.isnan(p))
    if config.relabel:
        unlabelled = ~np.isin(verdicts, [CODE[rule] for rule in (*LABEL_RULES, "absent")])
        verdicts[unlabelled & relabelled(p, lowest, config)] = RELABELLED
    _drop(verdicts, "veto", vetoed(p, lowest, config))


def relabelled(p: Floats, lowest: Floats, config: RescoreConfig) -> Bools:
    """Whether the cross-encoder calls an answer what has probability p; False where p is NaN."""
    return config.relabel & (p > lowest) & (p >= config.relabel_above)


def vetoed(p: Floats, lowest: Floats, config: RescoreConfig) -> Bools:
    """Whether it forbids to take it as a negative; `lowest` is p of the least liked positive."""
    against = np.zeros(p.shape, dtype=bool)
    if config.veto_margin is not None:
        against |= p > lowest + config.veto_margin
    if config.veto_above is not None:
        against |= p > config.veto_above
    return against


def _sampled(fit: Bools, evidence: Evidence, config: MiningConfig) -> Bools:
    """The `negatives` fit candidates of each row with the largest keys.

    Softmax sampling without replacement is taking the largest of score / temperature + Gumbel
    noise (Gumbel-top-k; Kool, van Hoof and Welling, 2019, arXiv:1903.06059).
    """
    if config.sampling == "top":
        keys = np.broadcast_to(-np.arange(fit.shape[1], dtype=np.float64), fit.shape)
    else:
        # uniform in (0, 1), the ends left out
        keys = ((evidence.luck >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        if config.sampling == "softmax":
            keys = evidence.scores.astype(np.float64) / config.temperature - np.log(-np.log(keys))
    order = np.argsort(np.where(fit, -keys, np.inf), axis=1, kind="stable")
    taken = np.zeros(fit.shape, dtype=bool)
    np.put_along_axis(taken, order[:, : config.negatives], True, axis=1)
    return taken


def luck_of(queries: Indices, documents: NDArray[np.integer], seed: int) -> NDArray[np.uint64]:
    """(Q, C) random numbers of (seed, query key, document key): no order of work changes a draw."""
    return lots(queries[:, None], documents, seed)
