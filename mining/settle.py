"""From queries and vectors to negatives: find candidates, ask for opinions, apply the rules."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tercet.configs.schema import MiningConfig
from tercet.data.rows import Indices, Ragged
from tercet.mining.candidates import MODEL, Candidates, Space, find_candidates, inner_products
from tercet.mining.facts import (
    Asked,
    blocks,
    evidence,
    likeness,
    lowest_scores,
    positive_scores,
)
from tercet.mining.rescore import Rescored, rescore, scores_of
from tercet.mining.select import CODE, label, limits, outside, relabelled, select, vetoed
from tercet.models.cross import CrossScorer
from tercet.progress import progress

DRAWS = 8  # times that what fills a list is drawn anew for what was not fit


@dataclass(frozen=True)
class Chosen:
    """Documents taken for queries, N in all, those of a query together and in order."""

    queries: Indices  # (N,) ascending
    documents: Indices  # (N,)
    scores: NDArray[np.float32]  # (N,)
    ranks: NDArray[np.int64]  # (N,) among all candidates, from 1; 0 where it fills a list
    rescores: NDArray[np.float32] | None  # (N,) the cross-encoder's

    def __len__(self) -> int:
        return len(self.queries)

    def counts(self, total: int) -> Indices:
        """(total,) how many each query has."""
        return np.bincount(self.queries, minlength=total)

    def where(self, these: NDArray[np.bool_]) -> "Chosen":
        """Some of them, (N,) as marked."""
        rescores = None if self.rescores is None else self.rescores[these]
        return Chosen(
            self.queries[these],
            self.documents[these],
            self.scores[these],
            self.ranks[these],
            rescores,
        )


@dataclass(frozen=True)
class Settled:
    """What became of the C candidates of each of Q queries."""

    asked: Asked
    found: Candidates
    of_positives: NDArray[np.float32]  # (P,) scores of `asked.pairs`
    lowest: NDArray[np.float32]  # (Q,) score of the positive least like each query
    labels: NDArray[np.int8]  # (Q, C) verdicts of the label rules alone
    verdicts: NDArray[np.int8]  # (Q, C)
    rescored: Rescored | None
    negatives: Chosen  # kept, and what fills the lists of queries that kept too few

    def with_verdict(self, name: str) -> Chosen:
        """The candidates that a rule, or none, spoke against."""
        return _with_verdict(self.found, self.verdicts, self.rescored, name)


def settle(
    asked: Asked,
    spaces: Mapping[str, Space],
    config: MiningConfig,
    scorer: CrossScorer | None = None,
    cache: Path | None = None,
) -> Settled:
    """Mine for `asked` with the vectors of `spaces`, as `stage.mine` says."""
    space, lists = spaces[MODEL], cache and cache / "candidates"
    texts = asked.documents.texts
    found = find_candidates(spaces, asked.texts, texts, config, folder=lists)
    of_positives = positive_scores(asked, space)
    lowest = lowest_scores(asked, of_positives)
    labels = np.empty(found.positions.shape, dtype=np.int8)
    verdicts = np.empty_like(labels)
    for block in _blocks(len(asked), "rules"):
        facts = evidence(asked, found, space, lowest, block, config)
        labels[block] = label(facts, config)
        if scorer is None:
            verdicts[block] = select(facts, config, labels=labels[block])
    rescored, pairs = None, cache and cache / "pairs"
    if scorer is not None:
        rescored = rescore(scorer, asked, found, labels, config.rescore.depth, folder=pairs)
        for block in _blocks(len(asked), "second opinion"):
            facts = evidence(asked, found, None, lowest, block, config)
            opinion = rescored.opinion(asked, block)
            verdicts[block] = select(facts, config, opinion, labels=labels[block])
    negatives = _with_verdict(found, verdicts, rescored, "kept")
    settled = Settled(asked, found, of_positives, lowest, labels, verdicts, rescored, negatives)
    return _filled(settled, space, config, pairs) if config.too_few == "fill" else settled


def _with_verdict(
    found: Candidates, verdicts: NDArray[np.int8], rescored: Rescored | None, name: str
) -> Chosen:
    queries, columns = np.nonzero(verdicts == CODE[name])
    return Chosen(
        queries,
        np.asarray(found.positions[queries, columns]),
        np.asarray(found.scores[queries, columns]),
        columns + 1,
        None if rescored is None else rescored.candidates[queries, columns],
    )


def _filled(settled: Settled, space: Space, config: MiningConfig, folder: Path | None) -> Settled:
    """With documents from outside the candidates for queries that kept too few.

    What is drawn must not be like a positive (near_duplicate), not score above max_score or a
    margin, and not be forbidden by the cross-encoder; others are drawn in its place, up to `DRAWS`
    times. A query may still end with too few.
    """
    asked, negatives = settled.asked, settled.negatives
    banned: dict[int, set[int]] = defaultdict(set)  # of each query, texts that were drawn before
    for _ in range(DRAWS):
        drawn = _drawn(settled, negatives, banned, space, config)
        if not len(drawn):
            break
        drawn, fit = _judged(settled, drawn, space, config, folder)
        for query, document in zip(drawn.queries.tolist(), drawn.documents.tolist(), strict=True):
            banned[query].add(int(asked.documents.same[document]))
        negatives = _joined(negatives, drawn.where(fit))
    return replace(settled, negatives=negatives)


def _drawn(
    settled: Settled,
    negatives: Chosen,
    banned: Mapping[int, set[int]],
    space: Space,
    config: MiningConfig,
) -> Chosen:
    """As many as are missing, of no text that is `banned` (as in `Texts.same`), by query."""
    asked, found = settled.asked, settled.found
    same = asked.documents.same
    drawn: list[Indices] = []
    for query, missing in enumerate((config.negatives - negatives.counts(len(asked))).tolist()):
        if missing <= 0:
            drawn.append(np.zeros(0, dtype=np.int64))
            continue
        listed = np.asarray(found.positions[query])
        never = same[
            np.concatenate([listed[listed >= 0], asked.positives[query], asked.own[query]])
        ]
        never = np.array([*never, *banned.get(query, ())], dtype=np.int64)
        drawn.append(outside(missing, same, never, config.seed, int(asked.keys[query])))
    queries, documents = Ragged.of(drawn).take(np.arange(len(asked)))
    scores = inner_products(space, queries, documents)
    return Chosen(queries, documents, scores, np.zeros_like(queries), None)


def _judged(
    settled: Settled, drawn: Chosen, space: Space, config: MiningConfig, folder: Path | None
) -> tuple[Chosen, NDArray[np.bool_]]:
    """What was drawn, with the cross-encoder's scores if one is asked, and what of it is fit."""
    asked, rescored, fit = settled.asked, settled.rescored, np.ones(len(drawn), dtype=bool)
    if config.near_duplicate is not None:
        like = likeness(drawn.documents[:, None], asked, space, drawn.queries)[:, 0]
        fit &= like <= config.near_duplicate
    for rule, against in limits(drawn.scores, settled.lowest[drawn.queries], config):
        if rule != "min_score":  # what is drawn at random is far away, and meant to be
            fit &= ~against
    if rescored is not None:
        scores = scores_of(rescored.scorer, asked, drawn.queries, drawn.documents, folder=folder)
        drawn = replace(drawn, rescores=scores)
        lowest = lowest_scores(asked, rescored.positives)[drawn.queries]
        p, lowest = (rescored.scorer.probabilities(s) for s in (scores, lowest))
        fit &= ~vetoed(p, lowest, config.rescore) & ~relabelled(p, lowest, config.rescore)
    return drawn, fit


def _joined(first: Chosen, second: Chosen) -> Chosen:
    """Both, for each query those of `first` before those of `second`."""
    order = np.argsort(np.concatenate([first.queries, second.queries]), kind="stable")

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(first, name), getattr(second, name)])[order]

    with_rescores = first.rescores is not None and second.rescores is not None
    return Chosen(
        joined("queries"),
        joined("documents"),
        joined("scores"),
        joined("ranks"),
        joined("rescores") if with_rescores else None,
    )


def _blocks(total: int, title: str) -> Iterator[slice]:
    with progress(title, total) as advance:
        for block in blocks(total):
            yield block
            advance(block.stop - block.start)
