"""Fewer dimensions by truncation, PCA and random projection, and what each does to distances."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tercet.data.rows import RetrievalTask
from tercet.errors import UserError
from tercet.evaluation.compression import DIMS, K, main_scores, mean_score, share_kept
from tercet.evaluation.ranking import search
from tercet.mining.pairs import recall
from tercet.mining.search import Rows
from tercet.models.heads import principal_directions
from tercet.models.quantise import Mapped, rows_at
from tercet.progress import say

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
    needed: int | None  # dimensions the lemma needs to promise the largest error found; likewise


def reductions(
    task: RetrievalTask,
    queries: Rows,
    documents: Rows,
    *,
    dims: Sequence[int] = DIMS,
    skip_self: bool = False,
    seed: int = SEED,
) -> list[Reduced]:
    """Every method at every width below H, on vectors made unit vectors before and after.

    queries (Q, H), documents (D, H). Distances are measured before the second normalisation, as
    the lemma speaks of them. `skip_self` is that of `search`. No PCA is made to more dimensions
    than the documents span.
    """
    asked, shown = (_unit_rows(rows) for rows in (queries, documents))
    exact = search(task, asked, shown, K, skip_self=skip_self)
    best = mean_score(main_scores(task, exact))
    pairs = _pairs(shown, seed)
    found = []
    for method, width, matrix in _projections(task.name, shown, dims, seed):
        left, right = (_projected(rows, matrix) for rows in (asked, shown))
        reduced = search(task, left, right, K, skip_self=skip_self)
        mean = mean_score(main_scores(task, reduced))
        after = distortion(*pairs, matrix)
        random = method == "random projection"
        found.append(
            Reduced(
                method=method,
                dims=width,
                mean=mean,
                kept=share_kept(mean, best),
                recall=recall(exact.positions, reduced.positions),
                distortion=after,
                bound=lemma_bound(len(shown), width) if random else None,
                needed=lemma_dims(len(shown), after.largest) if random else None,
            )
        )
    return found


def _projections(
    name: str, documents: Rows, dims: Sequence[int], seed: int
) -> Iterator[tuple[Method, int, Floats]]:
    """Every method at every width below that of the documents, with its matrix."""
    for width in sorted({d for d in dims if d < documents.shape[1]}, reverse=True):
        for method in METHODS:
            try:
                yield method, width, projection(method, documents, width, seed)
            except UserError:
                say(f"{name}: no {method} to {width} dimensions, as its documents span fewer")


def projection(method: Method, documents: Rows, dims: int, seed: int = SEED) -> Floats:
    """(H, dims) the matrix a method multiplies vectors with.

    PCA: directions of the largest second moments of the documents (a seeded sample of them), not
    centred, as inner products are to be kept. Random projection: normal numbers / sqrt(dims).
    Raises UserError for a PCA to more dimensions than the documents span.
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


def lemma_dims(points: int, epsilon: float) -> int | None:
    """Dimensions in which some map keeps all squared distances within 1 +- epsilon.

    Johnson and Lindenstrauss (1984) in the form of Dasgupta and Gupta (2003): at least
    4 ln(points) / (epsilon^2 / 2 - epsilon^3 / 3). None unless 0 < epsilon < 1, of which it speaks.

    >>> lemma_dims(1000, 0.3802), lemma_dims(1000, 1.2)
    (513, None)
    """
    if not 0 < epsilon < 1:
        return None
    return math.ceil(4 * math.log(max(points, 2)) / (epsilon**2 / 2 - epsilon**3 / 3))


def lemma_bound(points: int, dims: int) -> float | None:
    """The smallest epsilon, to four digits, for which `lemma_dims` is within `dims`.

    >>> lemma_bound(1000, 512), lemma_bound(1000, 64)
    (0.3803, None)
    """
    known = (step / 10_000 for step in range(1, 10_000))
    return next((e for e in known if (lemma_dims(points, e) or math.inf) <= dims), None)


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
