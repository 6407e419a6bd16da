"""Scores of given pairs of queries and documents, and what they say of a search."""

import numpy as np
from numpy.typing import NDArray

from tercet.mining.search import Found, Rows
from tercet.progress import progress

QUERIES = 16_384  # that share one pass over the documents
DOCUMENTS = 8_192  # read at a time
PAIRS = 8_192  # multiplied at a time


def pair_scores(
    queries: Rows, documents: Rows, positions: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Inner products (Q, C) of each query with the documents at its row of positions (Q, C).

    Position -1 is no document and scores -inf. Documents are read in order, in slices, and the
    memory beyond queries and answer is bounded.
    """
    scores = np.full(positions.shape, -np.inf, dtype=np.float32)
    blocks = range(0, len(queries), QUERIES)
    with progress("score candidates", len(blocks) * len(documents)) as advance:
        for first in blocks:
            asked = np.asarray(queries[first : first + QUERIES], dtype=np.float32)
            wanted = positions[first : first + QUERIES]
            rows, columns = np.unravel_index(np.argsort(wanted, axis=None), wanted.shape)
            wanted = wanted[rows, columns]
            for start in range(0, len(documents), DOCUMENTS):
                stop = min(start + DOCUMENTS, len(documents))
                low, high = np.searchsorted(wanted, (start, stop))
                shown = documents[start : stop if low < high else start]
                for at in range(low, high, PAIRS):
                    some = slice(at, min(at + PAIRS, high))
                    pair = asked[rows[some]], shown[wanted[some] - start]
                    scores[first + rows[some], columns[some]] = np.einsum("ph,ph->p", *pair)
                advance(stop - start)
    return scores


def best_first(scores: NDArray[np.float32], positions: NDArray[np.int64], k: int) -> Found:
    """The k best columns of (Q, C) each, equal scores in the order of their positions."""
    order = np.lexsort((positions, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)


def recall(exact: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """Mean share of each row of exact (Q, K) that is in the same row of found (Q, any); 1 if Q = 0.

    Position -1, no document, is not counted in `exact`.
    """
    rows = zip(exact, found, strict=True)
    shares = [np.isin(e[e >= 0], f).mean() for e, f in rows if (e >= 0).any()]
    return float(np.mean(shares)) if shares else 1.0
