"""Several lists of candidates as one."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
BLOCK = 8_192  # queries at a time: bounds the memory, changes nothing else


def reciprocal_rank_fusion(lists: Sequence[Found], k: int, constant: float = 60.0) -> Found:
    """Scores (Q, k) and positions (Q, k): the largest sums of 1 / (constant + rank).

    lists: (scores (Q, k_i), positions (Q, k_i)) pairs over the same documents, best first, each
    document at most once in a row; ranks count from 1, and the lists' own scores are not compared.
    Position -1 is no document. Equal sums stand in the order of their positions; where fewer than
    k documents are in any list, the rest of the row has position -1 and score -inf.

    Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and individual
    Rank Learning Methods", SIGIR 2009, whose constant is 60.
    """
    if not lists or k < 1 or constant < 0:
        raise ValueError(f"need a list, k >= 1, constant >= 0; got {len(lists)}, {k}, {constant}")
    sizes = {len(positions) for _, positions in lists}
    if len(sizes) > 1:
        raise ValueError(f"lists of different numbers of queries: {sorted(sizes)}")
    queries = sizes.pop()
    scores = np.full((queries, k), -np.inf, dtype=np.float32)
    positions = np.full((queries, k), -1, dtype=np.int64)
    weights = np.concatenate([1.0 / (constant + 1 + np.arange(p.shape[1])) for _, p in lists])
    for start in range(0, queries, BLOCK):
        rows = slice(start, start + BLOCK)
        found = _fused(np.concatenate([p[rows] for _, p in lists], axis=1), weights, k)
        width = found[0].shape[1]
        scores[rows, :width], positions[rows, :width] = found
    return scores, positions


def _fused(positions: NDArray[np.int64], weights: NDArray[np.float64], k: int) -> Found:
    """The same for positions (Q, C) whose column c weighs weights[c]; at most k columns."""
    order = np.argsort(positions, axis=1, kind="stable")
    documents = np.take_along_axis(positions, order, axis=1)
    new = np.ones(documents.shape, dtype=bool)
    new[:, 1:] = documents[:, 1:] != documents[:, :-1]
    sums = np.full(documents.shape, -np.inf, dtype=np.float32)
    if new.size:  # added in float64, compared in float32: what is equal but for rounding ties
        sums[new] = np.add.reduceat(weights[order].ravel(), np.flatnonzero(new))
    sums[documents < 0] = -np.inf
    best = np.argsort(-sums, axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(sums, best, axis=1)
    found = np.take_along_axis(documents, best, axis=1)
    return scores, np.where(np.isneginf(scores), -1, found)
