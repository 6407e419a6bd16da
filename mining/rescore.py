"""A second opinion: which candidates a cross-encoder is asked about, and what came of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tercet.data.rows import Indices
from tercet.mining.candidates import Candidates, Space, inner_products
from tercet.mining.facts import Asked, blocks, lowest_scores, positive_scores
from tercet.mining.select import KEPT, Opinion
from tercet.models.cross import CrossScorer, cross_scores

Floats = NDArray[np.float32]
TOP_HITS = 10  # unlabelled candidates of a query that the false-negative rate is taken over
Z95 = 1.959964  # of the normal distribution


@dataclass(frozen=True)
class Rescored:
    """Scores of the cross-encoder, as it gives them: logits, mostly."""

    scorer: CrossScorer
    candidates: Floats  # (Q, C), NaN where it was not asked
    positives: Floats  # (P,) of `Asked.pairs`
    own: Floats  # of `Asked.own.values`

    def opinion(self, asked: Asked, block: slice) -> Opinion:
        """The same as probabilities, for the queries of `block`."""
        lowest = lowest_scores(asked, self.positives)[block]
        as_probability = self.scorer.probabilities
        return Opinion(as_probability(self.candidates[block]), as_probability(lowest))


@dataclass(frozen=True)
class FalseNegatives:
    """The share of unlabelled top hits that a judge ranks above the query's lowest positive."""

    judge: str
    hits: int
    above: int
    queries: int
    rate: float
    low: float  # 95 % interval
    high: float


def rescore(
    scorer: CrossScorer,
    asked: Asked,
    found: Candidates,
    labels: NDArray[np.int8],
    depth: int,
    *,
    folder: Path | None = None,
) -> Rescored:
    """Ask about positives, negatives that rows bring along, and unlabelled candidates.

    About the first `depth` of the last, of each query. labels (Q, C): the verdicts of
    `select.label`. A meeting of all processes.
    """
    queries, columns = np.nonzero(first_unlabelled(labels, depth))
    positives, own = asked.pairs, asked.own.take(np.arange(len(asked)))
    found_too = queries, np.asarray(found.positions)[queries, columns]
    numbers, documents = (np.concatenate(s) for s in zip(positives, own, found_too, strict=True))
    scores = scores_of(scorer, asked, numbers, documents, folder=folder)
    ends = np.cumsum([len(positives[0]), len(own[0])])
    of_positives, of_own, of_found = np.split(scores, ends)
    candidates = np.full(labels.shape, np.nan, dtype=np.float32)
    candidates[queries, columns] = of_found
    return Rescored(scorer, candidates, of_positives, of_own)


def scores_of(
    scorer: CrossScorer,
    asked: Asked,
    numbers: Indices,
    documents: Indices,
    *,
    folder: Path | None = None,
) -> Floats:
    """(N,) scores of the queries `numbers` with `documents`. A meeting of all processes."""
    return cross_scores(scorer, _Pairs(asked, numbers, documents), folder=folder)


class _Pairs(Sequence[tuple[str, str]]):
    """Pairs of texts that are made when they are asked for, since there may be tens of millions."""

    def __init__(self, asked: Asked, numbers: Indices, documents: Indices) -> None:
        self._queries, self._documents = asked.texts, asked.documents.texts
        self._pairs = (numbers, documents)

    def __len__(self) -> int:
        return len(self._pairs[0])

    def __getitem__(self, place: int) -> tuple[str, str]:  # type: ignore[override]
        query, document = (side[place] for side in self._pairs)
        return self._queries[query], self._documents[document]


def first_unlabelled(labels: NDArray[np.int8], count: int) -> NDArray[np.bool_]:
    """(Q, C) whether a candidate is among the first `count` of its row with verdict `KEPT`."""
    found = labels == KEPT
    for block in blocks(len(found)):
        found[block] &= np.cumsum(found[block], axis=1) <= count
    return found


def judged_by_cross_encoder(
    rescored: Rescored, asked: Asked, labels: NDArray[np.int8]
) -> FalseNegatives:
    """The estimate by the cross-encoder, over those of the top hits that it was asked about."""
    hits = first_unlabelled(labels, TOP_HITS) & ~np.isnan(rescored.candidates)
    lowest = lowest_scores(asked, rescored.positives)
    return _estimate(rescored.scorer.name, hits, rescored.candidates > lowest[:, None])


def judged_by_model(
    name: str, space: Space, asked: Asked, found: Candidates, labels: NDArray[np.int8]
) -> FalseNegatives:
    """The estimate by a second bi-encoder, whose vectors `space` holds."""
    hits = first_unlabelled(labels, TOP_HITS)
    queries, columns = np.nonzero(hits)
    lowest = lowest_scores(asked, positive_scores(asked, space))
    scores = inner_products(space, queries, np.asarray(found.positions)[queries, columns])
    above = np.zeros(hits.shape, dtype=bool)
    above[queries, columns] = scores > lowest[queries]
    return _estimate(name, hits, above)


def _estimate(judge: str, hits: NDArray[np.bool_], above: NDArray[np.bool_]) -> FalseNegatives:
    """Rate and interval. Hits of one query are alike, so they count for less than their number.

    Wilson's interval, with the number of hits divided by the design effect (Kish, 1965): the
    variance of the rate by the ratio estimator over queries, against that of independent hits.
    Where none or all are above, all hits of a query count as one.
    """
    asked, flagged = hits.sum(axis=1), (hits & above).sum(axis=1)
    total, count, queries = int(asked.sum()), int(flagged.sum()), int((asked > 0).sum())
    if total == 0:
        return FalseNegatives(judge, 0, 0, 0, 0.0, 0.0, 1.0)
    rate = count / total
    independent = rate * (1 - rate) / total
    spread = float(((flagged - rate * asked) ** 2).sum()) / total**2
    spread *= queries / max(1, queries - 1)
    effect = spread / independent if independent and queries > 1 else total / queries
    low, high = wilson(rate, total / max(1.0, effect))
    return FalseNegatives(judge, total, count, queries, rate, low, high)


def wilson(rate: float, count: float) -> tuple[float, float]:
    """95 % interval of a rate seen in `count` independent trials (Wilson, 1927).

    >>> [round(end, 3) for end in wilson(0.1, 100)]
    [0.055, 0.174]
    """
    square = Z95**2 / count
    middle = (rate + square / 2) / (1 + square)
    half = math.sqrt(rate * (1 - rate) * square + square**2 / 4) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)
