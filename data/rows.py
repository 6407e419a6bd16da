"""What readers return and later stages take: texts with ids, and rows pointing at them."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from tercet.data.scores import PairScores, ScoreTable
from tercet.files import fingerprint

Indices = NDArray[np.int64]


def normalise(text: str) -> str:
    """NFKC, case folded, white space collapsed: texts equal after this are the same document.

    >>> normalise("  The  ﬁrst\\nLINE ")
    'the first line'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_key(text: str) -> int:
    """64-bit hash of a text's normalised form."""
    return xxhash.xxh3_64_intdigest(normalise(text).encode())


def text_hash(text: str) -> str:
    """Id of a text that was given none: its key in hex."""
    return f"{text_key(text):016x}"


@dataclass(frozen=True)
class Texts:
    """Texts with stable ids; a position in these lists is the index used everywhere else."""

    ids: list[str]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each id."""
        return {id_: i for i, id_ in enumerate(self.ids)}

    def and_also(self, texts: Sequence[str]) -> "Texts":
        """These, then those of `texts` that are new, named by their hash."""
        there = set(self.texts)
        new = {text_hash(text): text for text in texts if text not in there}
        fresh = {id_: text for id_, text in new.items() if id_ not in self.index}
        return Texts([*self.ids, *fresh], [*self.texts, *fresh.values()])

    @cached_property
    def identical(self) -> Indices:
        """(N,) position of the first text that is exactly equal to each one."""
        first: dict[str, int] = {}
        return np.array([first.setdefault(t, i) for i, t in enumerate(self.texts)], dtype=np.int64)

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """(N,) `text_key` of each text: equal where texts are after `normalise`."""
        return np.fromiter(map(text_key, self.texts), dtype=np.uint64, count=len(self.texts))

    @cached_property
    def same(self) -> Indices:
        """(N,) position of the first text that is equal to each one after `normalise`."""
        _, first, number = np.unique(self.keys, return_index=True, return_inverse=True)
        return first[number]


@dataclass(frozen=True)
class Ragged:
    """A list of integer lists: list i is values[offsets[i]:offsets[i + 1]]."""

    offsets: Indices  # (R + 1,)
    values: Indices  # (offsets[-1],)

    @classmethod
    def of(cls, lists: Iterable[Sequence[int] | Indices]) -> "Ragged":
        """
        >>> Ragged.of([[3, 1], [], [2]])[0].tolist()
        [3, 1]
        """
        rows = [np.asarray(row, dtype=np.int64) for row in lists]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        return cls(offsets, np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Indices:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def take(self, rows: Indices) -> tuple[Indices, Indices]:
        """The lists of `rows` end to end: for each value its place in `rows`, and the value.

        >>> [part.tolist() for part in Ragged.of([[3, 1], [], [2]]).take(np.array([2, 0]))]
        [[0, 1, 1], [2, 3, 1]]
        """
        start, count = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        owner = np.repeat(np.arange(len(rows)), count)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        return owner, self.values[start[owner] + within]

    def pick(self, rows: Indices) -> "Ragged":
        """The lists of `rows` alone.

        >>> Ragged.of([[3, 1], [], [2]]).pick(np.array([2, 0])).offsets.tolist()
        [0, 1, 3]
        """
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(self.offsets[rows + 1] - self.offsets[rows], out=offsets[1:])
        return Ragged(offsets, self.take(rows)[1])


@dataclass(frozen=True)
class TrainingSet:
    """Rows to train on. Row r asks queries[row_query[r]].

    Its positives and its own negatives are positions in `documents`. Rows of one source are
    neighbours: source s holds rows source_offsets[s] to source_offsets[s + 1].
    """

    queries: Texts
    documents: Texts
    row_query: Indices  # (R,)
    positives: Ragged  # R lists, none empty
    negatives: Ragged  # R lists, possibly empty
    source_offsets: Indices  # (S + 1,)
    left_out: int = 0  # documents of BEIR folders that only queries of other splits ask for
    scores: PairScores = field(default_factory=lambda: PairScores.of(()))  # a teacher's, of pairs
    elsewhere: tuple[tuple[int, int], ...] = ()  # query's `text_key`, document: by other splits
    extra: int = 0  # the last documents: those that came without rows, which are not mined

    def __len__(self) -> int:
        return len(self.row_query)

    @classmethod
    def empty(cls) -> "TrainingSet":
        """No text and no row."""
        none = np.zeros(0, dtype=np.int64)
        nothing = Texts([], [])
        return cls(nothing, nothing, none, Ragged.of([]), Ragged.of([]), np.zeros(1, np.int64))

    def with_texts(self, queries: Sequence[str], documents: Sequence[str]) -> "TrainingSet":
        """The same rows beside more texts, named by their hash; known ones are left out."""
        sides = self.queries.and_also(queries), self.documents.and_also(documents)
        extra = self.extra + len(sides[1]) - len(self.documents)
        return replace(self, queries=sides[0], documents=sides[1], extra=extra)

    def with_only(self, documents: Indices) -> "TrainingSet":
        """The same rows over some of the documents, (D',) positions, in that order.

        Every positive has to be among them. Negatives that are not are left out, and so are the
        scores of pairs.
        """
        place = np.full(len(self.documents), -1, dtype=np.int64)
        place[documents] = np.arange(len(documents))
        owner, negatives = self.negatives.take(np.arange(len(self)))
        there = place[negatives] >= 0
        counts = np.bincount(owner[there], minlength=len(self))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        chosen = documents.tolist()
        return replace(
            self,
            documents=Texts(
                [self.documents.ids[d] for d in chosen], [self.documents.texts[d] for d in chosen]
            ),
            positives=Ragged(self.positives.offsets, place[self.positives.values]),
            negatives=Ragged(offsets, place[negatives[there]]),
            scores=PairScores.of(()),
            elsewhere=tuple((q, int(place[d])) for q, d in self.elsewhere if place[d] >= 0),
            extra=0,
        )

    def replaced(self, **changes: Any) -> "TrainingSet":
        """`dataclasses.replace` that keeps `known_positives` if nothing they depend on changes."""
        found, needed = replace(self, **changes), {"queries", "documents", "row_query", "positives"}
        if "known_positives" in vars(self) and not needed & changes.keys():
            vars(found)["known_positives"] = self.known_positives
        return found

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every text and row: what the batches of a run are a function of."""
        ragged = (self.positives, self.negatives)
        arrays = [
            self.row_query,
            self.source_offsets,
            *(a for r in ragged for a in vars(r).values()),
            *(vars(self.scores).values() if len(self.scores) else ()),
        ]
        texts = [*self.queries.texts, *self.documents.texts]
        return fingerprint([*texts, *(array.tobytes() for array in arrays)])

    @cached_property
    def score_table(self) -> ScoreTable | None:
        """The scores that came with the data, by the positions that batches use; None if none did.

        Raises UserError if two scores of one pair differ.
        """
        if not len(self.scores):
            return None
        return ScoreTable(self.scores, self.queries.identical, self.documents.identical)

    @cached_property
    def known_positives(self) -> Ragged:
        """For each query, every document known to answer it, in any row and under any id.

        Two ids whose texts are equal after `normalise` count as one text, on both sides.
        """
        same_query, same_document = self.queries.same, self.documents.same
        row_of_value = np.repeat(np.arange(len(self)), np.diff(self.positives.offsets))
        owner = same_query[self.row_query[row_of_value]]
        answers: dict[int, set[int]] = {}
        for query, document in zip(owner, same_document[self.positives.values], strict=True):
            answers.setdefault(int(query), set()).add(int(document))
        members: dict[int, list[int]] = {}
        for document, first in enumerate(same_document):
            members.setdefault(int(first), []).append(document)
        return Ragged.of(
            sorted(d for first in answers.get(int(query), ()) for d in members[first])
            for query in same_query
        )


@dataclass(frozen=True)
class RetrievalTask:
    """A BEIR folder in memory. Documents read `title + " " + text`, as BEIR encodes them.

    Their order decides which of equally good documents are kept where a search is cut off;
    `read_task` gives them by id, highest first, which is how trec_eval orders them.
    """

    name: str  # folder name
    split: str
    documents: Texts
    queries: Texts  # those with at least one judgement in this split
    qrels: dict[str, dict[str, int]]  # query id -> document id -> grade (0: judged, not relevant)
    unjudged: int = 0  # queries of the folder that have no judgement in this split
    answerless: int = 0  # queries whose every judgement is 0: left out as well

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the documents, queries and judgements: equal only if the task is."""
        grades = ((q, d, str(grade)) for q, row in self.qrels.items() for d, grade in row.items())
        sides = (self.documents.ids, self.documents.texts, self.queries.ids, self.queries.texts)
        return fingerprint([*map(fingerprint, sides), fingerprint(p for g in grades for p in g)])
