"""A training set while it grows: each id holds one text, each row points at positions."""

from array import array
from collections.abc import Iterable

import numpy as np

from tercet.data.rows import Indices, Ragged, Texts, TrainingSet, normalise
from tercet.data.scores import PairScores


class Pool:
    """Texts under their ids."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.index: dict[str, int] = {}

    def add(self, id_: str, text: str) -> int | None:
        """Position of the text; None if the id already names a different one.

        >>> pool = Pool()
        >>> pool.add("a", "One text"), pool.add("b", "two"), pool.add("a", "one  TEXT")
        (0, 1, 0)
        >>> pool.add("a", "another") is None
        True
        """
        at = self.index.setdefault(id_, len(self.ids))
        if at == len(self.ids):
            self.ids.append(id_)
            self.texts.append(text)
        elif self.texts[at] != text and normalise(self.texts[at]) != normalise(text):
            return None
        return at


class RaggedBuilder:
    """Lists of positions, kept flat: eight bytes for each instead of a Python list per row."""

    def __init__(self) -> None:
        self.offsets, self.values = array("q", [0]), array("q")

    def append(self, row: Iterable[int]) -> None:
        self.values.extend(row)
        self.offsets.append(len(self.values))

    def build(self) -> Ragged:
        return Ragged(_indices(self.offsets), _indices(self.values))


class Builder:
    """Rows in the order of their sources."""

    def __init__(self) -> None:
        self.queries, self.documents = Pool(), Pool()
        self.row_query = array("q")
        self.positives, self.negatives = RaggedBuilder(), RaggedBuilder()
        self.source_offsets = array("q", [0])
        self.left_out = 0  # documents that only other splits ask for
        self.elsewhere: list[tuple[int, int]] = []  # what other splits say, as in TrainingSet
        self.scored = array("q"), array("q"), array("d")  # query, document, score

    def add_row(
        self,
        query: int,
        positives: Iterable[int],
        negatives: Iterable[int] = (),
        scores: Iterable[tuple[int, float]] = (),  # of documents among them
    ) -> None:
        self.row_query.append(query)
        self.positives.append(dict.fromkeys(positives))  # a document named twice counts once
        self.negatives.append(dict.fromkeys(negatives))
        for document, score in scores:
            asked, shown, values = self.scored
            asked.append(query)
            shown.append(document)
            values.append(score)

    def end_source(self) -> None:
        self.source_offsets.append(len(self.row_query))

    def build(self) -> TrainingSet:
        asked, shown, values = self.scored
        return TrainingSet(
            Texts(self.queries.ids, self.queries.texts),
            Texts(self.documents.ids, self.documents.texts),
            _indices(self.row_query),
            self.positives.build(),
            self.negatives.build(),
            _indices(self.source_offsets),
            self.left_out,
            PairScores(_indices(asked), _indices(shown), np.array(values, dtype=np.float32)),
            tuple(self.elsewhere),
        )


def _indices(values: array) -> Indices:
    return np.array(values, dtype=np.int64)
