"""Documents that share words with a query: BM25 as bm25s computes it."""

import logging
from collections.abc import Sequence
from typing import Any

import bm25s
import numpy as np
from numpy.typing import NDArray

from tercet.progress import progress


def lexical_top_k(
    queries: Sequence[str], documents: Sequence[str], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores (Q, k) and positions (Q, k) of each query's best documents by BM25, best first.

    k is clipped to the number of documents. A document that shares no word with the query is not
    found: where fewer than k are, the rest of the row has position -1 and score -inf. Equal scores
    stand, and are cut, in the order of their positions.

    bm25s with its own defaults: Lucene's formula, k1 = 1.5, b = 0.75; lower-cased words of two or
    more letters or digits, English stop words removed, no stemmer.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    shape = (len(queries), min(k, len(documents)))
    scores = np.full(shape, -np.inf, dtype=np.float32)
    positions = np.full(shape, -1, dtype=np.int64)
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    words = bm25s.tokenize(list(documents), show_progress=False)
    if not words.vocab:  # type: ignore[union-attr]
        return scores, positions
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    with progress("BM25", len(queries)) as advance:
        for row, query in enumerate(queries):
            found, best = _search(index, query, k)
            scores[row, : len(best)], positions[row, : len(best)] = found, best
            advance()
    return scores, positions


def _search(index: bm25s.BM25, query: str, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores and positions of at most k documents; sorts only those that reach the k-th score."""
    words: Any = bm25s.tokenize(query, return_ids=False, show_progress=False)
    known: list[str] = [word for word in words[0] if word in index.vocab_dict]
    if not known:
        return np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)
    scores = index.get_scores(known)
    found = np.flatnonzero(scores > 0)
    if len(found) > k:
        found = found[scores[found] >= np.partition(scores[found], -k)[-k]]
    best = found[np.argsort(-scores[found], kind="stable")[:k]]
    return scores[best], best
