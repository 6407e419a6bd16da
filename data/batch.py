"""Batch t of a run, whole: its distinct texts and what is known of every pair among them.

`Batches` draws rows; `TextBatches` draws single texts, for a teacher that needs no pairs.
"""

from typing import NamedTuple

import numpy as np

from tercet.data.order import Order, lots
from tercet.data.rows import Indices, Ragged, TrainingSet
from tercet.data.scores import Scores

NONE: Scores = np.zeros(0, dtype=np.float32)
_POSITIVES, _NEGATIVES = 1, 2  # keys that keep the two draws of a row apart


class Batch(NamedTuple):
    """One global batch. Pairs are positions in `queries` and `documents`, not in the data."""

    rows: Indices  # (B,) what the order drew: rows of the training set, or texts
    queries: Indices  # (Q,) distinct, ascending
    documents: Indices  # (D,) distinct, ascending
    positives: Indices  # (P, 2)
    negatives: Indices  # (N, 2) the rows' own negatives
    ignored: Indices  # (I, 2) other known positives of a query among the documents
    asked: Indices  # (B,) the query of each row, repeats and all
    shown: Indices  # the documents drawn for the rows, repeats and all
    positive_scores: Scores  # (P,) that came with the data, NaN without; or none at all
    negative_scores: Scores  # (N,) the same


class Batches:
    """Batch t as a pure function of (data, order, t), the same on every process.

    A text that occurs several times in a batch, under one id or many, is one entry. What equals
    a query's positive after `normalise` is no negative of it; with `known`, neither is what
    answers it anywhere in the data.
    """

    def __init__(
        self,
        data: TrainingSet,
        order: Order,
        *,
        positives_per_row: int | None = None,
        negatives_per_row: int = 1,
        known: bool = True,
    ) -> None:
        self.data, self.order = data, order
        self.positives_per_row, self.negatives_per_row = positives_per_row, negatives_per_row
        self.known = data.known_positives if known else None

    def __call__(self, step: int) -> Batch:
        rows, epoch = self.order.batch(step)
        data = self.data
        asked = data.queries.identical[data.row_query[rows]]
        owner, positive = self._draw(
            data.positives, rows, self.positives_per_row, _POSITIVES, epoch
        )
        rival, negative = self._draw(
            data.negatives, rows, self.negatives_per_row, _NEGATIVES, epoch
        )
        queries, query_of_row = np.unique(asked, return_inverse=True)
        documents, place = np.unique(np.concatenate([positive, negative]), return_inverse=True)
        positives = np.stack([query_of_row[owner], place[: len(positive)]], axis=1)
        negatives = np.stack([query_of_row[rival], place[len(positive) :]], axis=1)
        positives, negatives = np.unique(positives, axis=0), np.unique(negatives, axis=0)
        return Batch(
            rows,
            queries,
            documents,
            positives,
            negatives,
            self._ignored(queries, documents, positives),
            asked,
            np.concatenate([positive, negative]),
            self._scores(queries, documents, positives),
            self._scores(queries, documents, negatives),
        )

    def ids(self, batch: Batch) -> list[str]:
        """Ids of the queries that the rows of a batch ask, for a person to look them up."""
        return [self.data.queries.ids[q] for q in self.data.row_query[batch.rows]]

    def _draw(
        self, lists: Ragged, rows: Indices, count: int | None, what: int, epoch: int
    ) -> tuple[Indices, Indices]:
        """At most `count` documents of each row (all if None), drawn anew each epoch."""
        owner, values = lists.take(rows)
        if count is not None:
            first = np.searchsorted(owner, owner)  # where the list that a value belongs to starts
            place = np.arange(len(owner)) - first
            luck = lots(rows[owner], place, self.order.seed, what, epoch)
            rank = np.empty_like(place)
            rank[np.lexsort((luck, owner))] = place  # sorting by luck moves values within lists
            owner, values = owner[rank < count], values[rank < count]
        return owner, self.data.documents.identical[values]

    def _scores(self, queries: Indices, documents: Indices, pairs: Indices) -> Scores:
        table = self.data.score_table
        return NONE if table is None else table.of(queries[pairs[:, 0]], documents[pairs[:, 1]])

    def _ignored(self, queries: Indices, documents: Indices, positives: Indices) -> Indices:
        if self.known is None:
            return _same_text(positives, self.data.documents.same[documents])
        owner, answer = self.known.take(queries)
        place = np.searchsorted(documents, answer)
        place[place == len(documents)] = 0
        there = documents[place] == answer
        return np.stack([owner[there], place[there]], axis=1)


def _same_text(pairs: Indices, text: Indices) -> Indices:
    """(n, 2) every (i, k) for which there is a pair (i, j) with text[k] equal to text[j]."""
    order = np.argsort(text, kind="stable")
    first, last = (
        np.searchsorted(text[order], text[pairs[:, 1]], side) for side in ("left", "right")
    )
    alike = Ragged.of(order[a:b].tolist() for a, b in zip(first, last, strict=True))
    pair, document = alike.take(np.arange(len(pairs)))
    return np.unique(np.stack([pairs[pair, 0], document], axis=1), axis=0)


class TextBatches:
    """Batch t of single texts, queries and documents alike, as a pure function of (data, order, t).

    Each distinct text of the data is drawn once in an epoch. The batches hold no pairs.
    """

    def __init__(self, data: TrainingSet, size: int, seed: int) -> None:
        self.data = data
        self.queries, self.documents = (
            np.unique(texts.identical) for texts in (data.queries, data.documents)
        )
        self.order = Order((len(self.queries) + len(self.documents),), size, seed)

    def __call__(self, step: int) -> Batch:
        rows, _ = self.order.batch(step)
        first = len(self.queries)
        queries = np.sort(self.queries[rows[rows < first]])
        documents = np.sort(self.documents[rows[rows >= first] - first])
        none = np.zeros((0, 2), dtype=np.int64)
        return Batch(rows, queries, documents, none, none, none, queries, documents, NONE, NONE)

    def ids(self, batch: Batch) -> list[str]:
        """Ids of the texts of a batch, for a person to look them up."""
        queries, documents = self.data.queries.ids, self.data.documents.ids
        return [*(queries[q] for q in batch.queries), *(documents[d] for d in batch.documents)]
