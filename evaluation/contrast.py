"""How far apart a model puts what belongs together and what does not."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tercet.data.rows import RetrievalTask
from tercet.errors import UserError
from tercet.evaluation.retrieval import Mean
from tercet.evaluation.significance import bootstrap_interval
from tercet.mining.pairs import pair_scores
from tercet.mining.search import Rows

SAMPLED = 20  # dissimilar documents of each query
SEED = 12
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Spread:
    """How the scores of pairs are spread."""

    pairs: int
    mean: float  # of the queries' means: each query weighs the same
    quantiles: dict[str, float]  # share of the pairs below -> score


@dataclass(frozen=True)
class Contrast:
    """Scores of similar pairs (judged relevant) beside those of sampled dissimilar ones."""

    similar: Spread
    dissimilar: Spread
    contrast: Mean  # mean of the similar minus mean of the dissimilar, over queries
    separation: float  # share of (similar, dissimilar) of a query in that order; ties count half


def contrast(
    task: RetrievalTask,
    queries: Rows,
    documents: Rows,
    *,
    sampled: int = SAMPLED,
    skip_self: bool = False,
    seed: int = SEED,
) -> Contrast:
    """Scores of every pair judged relevant and of `sampled` random others of each query.

    queries (Q, H), documents (D, H). The others are drawn with replacement from the documents of
    the corpus that are not judged relevant for the query; they are easy ones, which is what an
    absolute threshold meets most. `skip_self`: nor is the document with the query's own id drawn.
    Separation depends on no scale (the area under the ROC curve within a query), contrast does:
    compare it within models of one kind. Raises UserError if every document is relevant for every
    query.
    """
    similar, dissimilar = sampled_pairs(task, sampled, seed, skip_self)
    both = (similar >= 0).any(axis=1) & (dissimilar >= 0).any(axis=1)
    if not both.any():
        raise UserError(f"{task.name}: every document is relevant; nothing to contrast with")
    near, far = (
        np.where(p < 0, np.nan, pair_scores(queries, documents, p))[both].astype(np.float64)
        for p in (similar, dissimilar)
    )
    means = [np.nanmean(rows, axis=1) for rows in (near, far)]
    difference = means[0] - means[1]
    return Contrast(
        similar=_spread(near),
        dissimilar=_spread(far),
        contrast=Mean(float(difference.mean()), *bootstrap_interval(difference)),
        separation=float(np.mean([_separation(*pair) for pair in zip(near, far, strict=True)])),
    )


def sampled_pairs(
    task: RetrievalTask, sampled: int, seed: int, skip_self: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions (R, most relevant) and (R, sampled) of documents; -1 fills rows that are shorter.

    Row i belongs to query i. A query for which every document is relevant has no dissimilar one.
    """
    index, random = task.documents.index, np.random.default_rng(seed)
    similar, dissimilar = [], []
    for query in task.queries.ids:
        relevant = sorted(index[d] for d, grade in task.qrels[query].items() if grade > 0)
        out = {*relevant, index[query]} if skip_self and query in index else relevant
        others = len(task.documents) - len(out)
        drawn = random.integers(0, others, sampled) if others else np.zeros(0, dtype=np.int64)
        before = np.array(sorted(out)) - np.arange(len(out))  # others that stand before each
        similar.append(relevant)
        dissimilar.append((drawn + np.searchsorted(before, drawn, side="right")).tolist())
    return _padded(similar), _padded(dissimilar)


def _padded(rows: list[list[int]]) -> NDArray[np.int64]:
    filled = np.full((len(rows), max(map(len, rows), default=0)), -1, dtype=np.int64)
    for row, values in zip(filled, rows, strict=True):
        row[: len(values)] = values
    return filled


def _spread(scores: NDArray[np.float64]) -> Spread:
    there = scores[~np.isnan(scores)]
    values = np.quantile(there, QUANTILES).tolist()
    quantiles = {f"{share:g}": value for share, value in zip(QUANTILES, values, strict=True)}
    return Spread(len(there), float(np.nanmean(scores, axis=1).mean()), quantiles)


def _separation(near: NDArray[np.float64], far: NDArray[np.float64]) -> float:
    pairs = near[~np.isnan(near)][:, None] - far[~np.isnan(far)][None]
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())
