"""Fewer dimensions by truncation, PCA and random projection, and what each does to distances."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tercet.data.rows import RetrievalTask
from tercet.evaluation.compression import DIMS, K, main_scores, mean_score, share_kept
from tercet.mining.pairs import recall
from tercet.mining.search import Rows, top_k
from tercet.models.heads import principal_directions
from tercet.models.quantise import Mapped, rows_at

Method = Literal["truncation", "PCA", "random projection"]
METHODS: tuple[Method, ...] = ("truncation", "PCA", "random projection")
Floats = NDArray[np.float32]
SEED = 12
PAIRS = 20_000  # of documents whose distance is measured
FITTED = 20_000  # documents that a PCA is taken of


@dataclass(frozen=True)
class Distortion:
    """Squared distance after / before, over pairs of unit vectors; 1 is none."""

    pairs: int
    mean: float
    p05: float
    p95: float
    largest: float  # |ratio - 1|, the lemma's epsilon as it turned out


@dataclass(frozen=True)
class Reduced:
    """One way to fewer dimensions on one task."""

    method: Method
    dims: int
    mean: float  # MAIN_METRIC
    kept: float  # of that of the full vectors
    recall: float  # mean share of the exact K best that is found
    distortion: Distortion
    bound: float | None  # epsilon that the lemma promises; None: none below 1, or no such promise


def reductions(
    task: RetrievalTask,
    queries: Rows,
    documents: Rows,
    *,
    dims: Sequence[int] = DIMS,
    seed: int = SEED,
) -> list[Reduced]:
    """Every method at every width below H, on vectors made unit vectors before and after.

    queries (Q, H), documents (D, H). Distances are measured before the second normalisation, as
    the lemma speaks of them.
    """
    asked, shown = (_unit_rows(rows) for rows in (queries, documents))
    exact = top_k(asked, shown, K)
    best = mean_score(main_scores(task, exact))
    pairs = _pairs(shown, seed)
    found = []
    for width in sorted({d for d in dims if d < shown.shape[1]}, reverse=True):
        for method in METHODS:
            matrix = projection(method, shown, width, seed)
            reduced = top_k(_projected(asked, matrix), _projected(shown, matrix), K)
            mean = mean_score(main_scores(task, reduced))
            found.append(
                Reduced(
                    method=method,
                    dims=width,
                    mean=mean,
                    kept=share_kept(mean, best),
                    recall=recall(exact[1], reduced[1]),
                    distortion=distortion(*pairs, matrix),
                    bound=lemma_bound(len(shown), width) if method == METHODS[-1] else None,
                )
            )
    return found


def projection(method: Method, documents: Rows, dims: int, seed: int = SEED) -> Floats:
    """(H, dims) the matrix a method multiplies vectors with.

    PCA: directions of the largest second moments of the documents (a seeded sample of them), not
    centred, as inner products are to be kept. Random projection: normal numbers / sqrt(dims).
    """
    width, random = documents.shape[1], np.random.default_rng(seed)
    if method == "truncation":
        return np.eye(width, dims, dtype=np.float32)
    if method == "PCA":
        count = min(FITTED, len(documents))
        chosen = np.sort(random.choice(len(documents), count, replace=False))
        return principal_directions(rows_at(documents, chosen), dims).T
    return (random.standard_normal((width, dims)) / math.sqrt(dims)).astype(np.float32)


def distortion(left: Floats, right: Floats, matrix: Floats) -> Distortion:
    """What `matrix` (H, dims) does to the squared distances of pairs left, right (P, H)."""
    differences = left - right
    before = np.einsum("ph,ph->p", differences, differences)
    after = np.square(differences @ matrix).sum(axis=1)
    ratio = after[before > 1e-9] / before[before > 1e-9]
    if not len(ratio):
        return Distortion(0, 1.0, 1.0, 1.0, 0.0)
    p05, p95 = np.quantile(ratio, [0.05, 0.95]).tolist()
    return Distortion(len(ratio), float(ratio.mean()), p05, p95, float(np.abs(ratio - 1).max()))


def lemma_bound(points: int, dims: int) -> float | None:
    """Epsilon such that some map to `dims` keeps all squared distances within 1 +- epsilon.

    Johnson and Lindenstrauss (1984) in the form of Dasgupta and Gupta (2003): dims >=
    4 ln(points) / (epsilon^2 / 2 - epsilon^3 / 3). None where that needs an epsilon of 1 or more.

    >>> lemma_bound(1000, 512), lemma_bound(1000, 64)
    (0.3802, None)
    """
    wanted = 4 * math.log(max(points, 2)) / dims
    if wanted >= 1 / 6:  # what epsilon = 1 gives; the left side grows up to there
        return None
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle**2 / 2 - middle**3 / 3 < wanted else (low, middle)
    return round(high, 4)


def _projected(rows: Rows, matrix: Floats) -> Mapped:
    return Mapped(rows, lambda some: _unit(some @ matrix), matrix.shape[1])


def _unit_rows(rows: Rows) -> Mapped:
    return Mapped(rows, _unit, rows.shape[1])


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.ascontiguousarray(rows / lengths.clip(1e-12), dtype=np.float32)


def _pairs(documents: Rows, seed: int) -> tuple[Floats, Floats]:
    """(P, H) both sides of seeded pairs of different documents."""
    count = min(PAIRS, len(documents) * (len(documents) - 1) // 2)
    random = np.random.default_rng(seed)
    first = random.integers(0, len(documents), count)
    other = (first + random.integers(1, max(2, len(documents)), count)) % len(documents)
    return rows_at(documents, first), rows_at(documents, other)
