"""Scores that came with the data: a teacher's opinion of pairs, looked up batch by batch."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tercet.errors import UserError

Scores = NDArray[np.float32]
SAME = 1e-3  # two scores of one pair may differ by this, relative and absolute: batching, rounding


@dataclass(frozen=True)
class PairScores:
    """A score for each of n pairs; queries and documents are positions in a training set."""

    queries: NDArray[np.int64]  # (n,)
    documents: NDArray[np.int64]  # (n,)
    values: Scores  # (n,) finite

    @classmethod
    def of(cls, triples: Iterable[tuple[int, int, float]]) -> "PairScores":
        """From (query, document, score)."""
        columns = np.array(list(triples), dtype=np.float64).reshape(-1, 3)
        queries, documents = columns[:, :2].T.astype(np.int64)
        return cls(queries, documents, columns[:, 2].astype(np.float32))

    def __len__(self) -> int:
        return len(self.values)

    def and_also(self, others: "PairScores") -> "PairScores":
        """These, then the others."""
        both = zip(vars(self).values(), vars(others).values(), strict=True)
        return PairScores(*(np.concatenate(pair) for pair in both))


class ScoreTable:
    """The scores of pairs by the position of their texts; equal texts share one position.

    same_query (Q,) and same_document (D,) hold that position for each query and document of the
    training set. Raises UserError if two scores of one pair differ.
    """

    def __init__(
        self,
        scores: PairScores,
        same_query: NDArray[np.int64],
        same_document: NDArray[np.int64],
    ) -> None:
        self._width = len(same_document)
        codes = self._codes(same_query[scores.queries], same_document[scores.documents])
        order = np.argsort(codes, kind="stable")
        codes, values = codes[order], scores.values[order]
        again = np.flatnonzero(codes[1:] == codes[:-1])
        unlike = again[~np.isclose(values[again], values[again + 1], rtol=SAME, atol=SAME)]
        if len(unlike):
            raise UserError(
                f"teacher scores: {len(unlike)} pairs of a query and a document have two scores, "
                f"the first {values[unlike[0]]:g} and {values[unlike[0] + 1]:g}; keep one of each"
            )
        first = np.concatenate([[True], codes[1:] != codes[:-1]])[: len(codes)]
        self._known, self._values = codes[first], values[first]

    def of(self, queries: NDArray[np.int64], documents: NDArray[np.int64]) -> Scores:
        """(n,) the score of each pair of positions; NaN where there is none."""
        wanted = self._codes(queries, documents)
        if not len(self._known):
            return np.full(len(wanted), np.nan, dtype=np.float32)
        place = np.searchsorted(self._known, wanted).clip(max=len(self._known) - 1)
        return np.where(self._known[place] == wanted, self._values[place], np.float32(np.nan))

    def _codes(self, queries: NDArray[np.int64], documents: NDArray[np.int64]) -> NDArray[np.int64]:
        return queries * self._width + documents
