"""What shorter vectors cost in quality: fewer dimensions, fewer bytes for each, rescoring."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tercet.data.rows import RetrievalTask
from tercet.evaluation.handover import score_ranking
from tercet.evaluation.ranking import Ranking, search
from tercet.evaluation.retrieval import MAIN_METRIC, Mean
from tercet.evaluation.significance import bootstrap_interval
from tercet.mining.pairs import best_first, pair_scores
from tercet.mining.search import Rows
from tercet.models.quantise import (
    Precision,
    Ranges,
    bits,
    calibrate,
    int8_codes,
    numbers,
    signs,
    truncated,
    vector_bytes,
)

DIMS = (256, 128, 64)  # that Matryoshka models are usually cut to
PRECISIONS: tuple[Precision, ...] = ("float32", "int8", "binary")
K = 10  # documents that are scored, as deep as MAIN_METRIC looks
CANDIDATES = 100  # of the compact search that are scored again


@dataclass(frozen=True)
class Compressed:
    """One form of a model's vectors on one task, against the full float32 vectors."""

    dims: int
    precision: Precision
    rescored: bool  # the first CANDIDATES by the float32 query and full int8 document vectors
    bytes: int  # of a vector that is searched
    rescoring_bytes: int  # more for each document, read for candidates alone; may be on a disk
    mean: float  # MAIN_METRIC
    kept: float  # mean / that of the full float32 vectors; 1 where that is 0
    delta: Mean  # difference to the full float32 vectors, over queries


def compressions(
    task: RetrievalTask,
    queries: Rows,
    documents: Rows,
    *,
    unit: bool,
    dims: Sequence[int] = DIMS,
    ranges: Mapping[int, Ranges] | None = None,
    skip_self: bool = False,
) -> list[Compressed]:
    """MAIN_METRIC for every width, precision, and with and without rescoring; the full one first.

    queries (Q, H), documents (D, H). Widths of H or more are left out. `unit`: cut vectors are made
    unit vectors again. `ranges` by width, where they were calibrated before; others are
    calibrated on these documents. Both sides are coded by the same ranges. `skip_self` is that of
    `search`.
    """
    full = documents.shape[1]
    widths = [full, *sorted({width for width in dims if width < full}, reverse=True)]
    given = ranges or {}
    fine = numbers(int8_codes(documents, given.get(full) or calibrate(documents)))
    scores: dict[tuple[int, Precision, bool], dict[str, float]] = {}
    for width in widths:
        for precision, (asked, shown) in _forms(queries, documents, width, unit, given.get(width)):
            found = search(task, asked, shown, CANDIDATES, skip_self=skip_self)
            scores[width, precision, False] = main_scores(task, found)
            if (width, precision) != (full, "float32"):
                again = scored_again(queries, fine, found.positions)
                scores[width, precision, True] = main_scores(task, again)
    exact = scores[full, "float32", False]
    return [_compressed(form, exact, found, full) for form, found in scores.items()]


def coded(vectors: Rows, precision: Precision, ranges: Ranges) -> Rows:
    """(N, H) vectors as a search over that precision sees them."""
    if precision == "int8":
        return numbers(int8_codes(vectors, ranges))
    return signs(bits(vectors), vectors.shape[1]) if precision == "binary" else vectors


def scored_again(
    queries: Rows, documents: Rows, positions: NDArray[np.int64], k: int = K
) -> Ranking:
    """The k best of positions (Q, C) by inner products of queries (Q, H) and documents (D, H)."""
    return Ranking(*best_first(pair_scores(queries, documents, positions), positions, k))


def main_scores(task: RetrievalTask, found: Ranking) -> dict[str, float]:
    """MAIN_METRIC of each query."""
    scores = score_ranking(task, found, (MAIN_METRIC,))[MAIN_METRIC]
    return dict(zip(task.qrels, scores.tolist(), strict=True))


def mean_score(scores: Mapping[str, float]) -> float:
    """Mean over queries."""
    return sum(scores.values()) / len(scores)


def share_kept(mean: float, full: float) -> float:
    """`mean` as a share of `full`; 1 where there is nothing to lose.

    >>> share_kept(0.45, 0.5), share_kept(0.0, 0.0)
    (0.9, 1.0)
    """
    return mean / full if full else 1.0


def _forms(
    queries: Rows, documents: Rows, width: int, unit: bool, ranges: Ranges | None
) -> Iterator[tuple[Precision, tuple[Rows, Rows]]]:
    """Queries and documents of `width` in each precision."""
    asked, shown = queries, documents
    if width < documents.shape[1]:
        asked, shown = (truncated(rows, width, unit) for rows in (queries, documents))
    ranges = ranges or calibrate(shown)
    for precision in PRECISIONS:
        yield precision, (coded(asked, precision, ranges), coded(shown, precision, ranges))


def _compressed(
    form: tuple[int, Precision, bool],
    exact: dict[str, float],
    found: dict[str, float],
    full: int,
) -> Compressed:
    width, precision, rescored = form
    mean, best = mean_score(found), mean_score(exact)
    differences = np.array([found[query] - exact[query] for query in exact])
    return Compressed(
        dims=width,
        precision=precision,
        rescored=rescored,
        bytes=vector_bytes(precision, width),
        rescoring_bytes=vector_bytes("int8", full) if rescored else 0,
        mean=mean,
        kept=share_kept(mean, best),
        delta=Mean(float(differences.mean()), *bootstrap_interval(differences)),
    )
