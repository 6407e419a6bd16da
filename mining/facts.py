"""What is known of queries and documents before any model is asked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import xxhash
from numpy.typing import NDArray

from tercet.configs.schema import MiningConfig
from tercet.data.rows import Indices, Ragged, RetrievalTask, Texts, TrainingSet, text_key
from tercet.files import fingerprint
from tercet.mining.candidates import Candidates, Space, cosines, inner_products
from tercet.mining.select import Evidence, luck_of

BLOCK = 4_096  # queries whose candidates are looked at together: bounds memory, changes no byte


@dataclass(frozen=True)
class Asked:
    """The queries that rows ask, Q of them, and what is known of each."""

    rows: TrainingSet  # over the D documents that candidates are taken from
    read: Texts  # the documents of the data as they were read
    taken: Indices  # (D,) where the documents of `rows` stand among those read
    queries: Indices  # (Q,) positions in rows.queries, ascending
    positives: Ragged  # Q lists of documents that answer the query, under any id; none is empty
    own: Ragged  # Q lists of the negatives that its rows bring along, each once

    def __len__(self) -> int:
        return len(self.queries)

    def only(self, queries: Indices) -> "Asked":
        """The same of some of the queries: positions in rows.queries, ascending."""
        kept = np.searchsorted(self.queries, queries)
        own, positives = self.own.pick(kept), self.positives.pick(kept)
        return replace(self, queries=queries, positives=positives, own=own)

    @property
    def documents(self) -> Texts:
        """The D documents that candidates are taken from."""
        return self.rows.documents

    @cached_property
    def ids(self) -> list[str]:
        """(Q,) ids of the queries."""
        return [self.rows.queries.ids[q] for q in self.queries]

    @cached_property
    def texts(self) -> list[str]:
        """(Q,) texts of the queries."""
        return [self.rows.queries.texts[q] for q in self.queries]

    @cached_property
    def keys(self) -> Indices:
        """(Q,) hashes of the ids: what random draws of a query depend on."""
        return np.array([int(fingerprint([id_])[:15], 16) for id_ in self.ids], dtype=np.int64)

    @cached_property
    def document_keys(self) -> NDArray[np.uint64]:
        """(D,) the same of the documents."""
        hashed = (xxhash.xxh3_64_intdigest(id_.encode()) for id_ in self.documents.ids)
        return np.fromiter(hashed, dtype=np.uint64, count=len(self.documents))

    @cached_property
    def pairs(self) -> tuple[Indices, Indices]:
        """(P,) query number and document of every known positive, in order."""
        return self.positives.take(np.arange(len(self)))


def asked_queries(
    rows: TrainingSet,
    known: Sequence[TrainingSet] = (),
    taken: Indices | None = None,
) -> Asked:
    """The queries that `rows` ask.

    `known` are further pairs whose positives answer a query of the same normalised text, as are
    the judgements of other splits that `rows` brings along; documents that are not in `rows` are
    passed over. `taken` are the documents to look at, as `searchable` gives them (default: all).
    """
    read = rows.documents
    if taken is None:
        taken = np.arange(len(read))
    else:
        rows = rows.with_only(taken)
    queries = np.unique(rows.row_query)
    positives = _with_rows_of(rows, known).known_positives
    owner = np.searchsorted(queries, rows.row_query)
    own: list[dict[int, None]] = [{} for _ in queries]
    for row, query in enumerate(owner.tolist()):
        own[query].update(dict.fromkeys(rows.negatives[row].tolist()))
    answers = Ragged.of([positives[q] for q in queries])
    return Asked(rows, read, taken, queries, answers, Ragged.of([list(found) for found in own]))


def searchable(rows: TrainingSet, held_out: Sequence[RetrievalTask] = ()) -> Indices:
    """Positions of the documents that mining looks at, in the order of their ids.

    In that order neither ties nor draws depend on the order of a file. Left out are documents
    that answer a query of a `held_out` task and are no positive of a row: they take no place in
    any list of candidates.
    """
    allowed = np.flatnonzero(~_held_out(rows, held_out)).tolist()
    return np.array(sorted(allowed, key=rows.documents.ids.__getitem__), dtype=np.int64)


def blocks(total: int) -> Iterator[slice]:
    """The queries 0 to before `total`, `BLOCK` at a time."""
    for start in range(0, total, BLOCK):
        yield slice(start, min(start + BLOCK, total))


def lowest_scores(asked: Asked, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """(Q,) lowest of the scores (P,) that `asked.pairs` have."""
    return np.minimum.reduceat(scores, asked.positives.offsets[:-1])


def evidence(
    asked: Asked,
    found: Candidates,
    space: Space | None,
    lowest: NDArray[np.float32],
    block: slice,
    config: MiningConfig,
) -> Evidence:
    """What the rules look at, for the queries of `block`; `lowest` as `lowest_scores` gives it.

    Without `space` the likeness to positives is left out, which costs the most by far and which
    the rules after those of `select.label` do not look at.
    """
    positions, scores = np.asarray(found.positions[block]), np.asarray(found.scores[block])
    texts = np.where(positions < 0, -1, asked.documents.same[positions])
    numbers = np.arange(len(asked))[block]
    return Evidence(
        positions=positions,
        texts=texts,
        scores=scores,
        known=_among(texts, asked, asked.positives, numbers),
        own=_among(texts, asked, asked.own, numbers),
        likeness=(
            None
            if space is None or config.near_duplicate is None
            else likeness(positions, asked, space, numbers)
        ),
        lowest=lowest[block],
        luck=luck_of(asked.keys[block], asked.document_keys[positions], config.seed),
    )


def _with_rows_of(rows: TrainingSet, known: Sequence[TrainingSet]) -> TrainingSet:
    """The queries and positives of `rows` and of those in `known` whose texts `rows` has as well.

    And what `rows` was told of its queries elsewhere. Its other fields are those of `rows`.
    """
    if not known and not rows.elsewhere:
        return rows
    queries = _by_text(rows.queries)
    asking, answers = rows.row_query.tolist(), [rows.positives[r] for r in range(len(rows))]
    for key, document in rows.elsewhere:
        if key in queries:
            asking.append(queries[key])
            answers.append(np.array([document]))
    documents = _by_text(rows.documents) if known else {}
    for other in known:
        query_at = [queries.get(key) for key in other.queries.keys.tolist()]
        document_at = [documents.get(key) for key in other.documents.keys.tolist()]
        for row, query in enumerate(other.row_query.tolist()):
            there = [document_at[d] for d in other.positives[row]]
            found = [d for d in there if d is not None]
            if query_at[query] is not None and found:
                asking.append(query_at[query])
                answers.append(np.array(found))
    return replace(rows, row_query=np.array(asking, dtype=np.int64), positives=Ragged.of(answers))


def _by_text(texts: Texts) -> dict[int, int]:
    return {key: position for position, key in enumerate(texts.keys.tolist())}


def _held_out(rows: TrainingSet, tasks: Sequence[RetrievalTask]) -> NDArray[np.bool_]:
    """(D,) by normalised text; a document that a row gives as a positive was seen anyway."""
    answers: set[int] = set()
    for task in tasks:
        ids = {d for grades in task.qrels.values() for d, grade in grades.items() if grade > 0}
        answers |= {text_key(task.documents.texts[task.documents.index[id_]]) for id_ in ids}
    if not answers:
        return np.zeros(len(rows.documents), dtype=bool)
    keys = rows.documents.keys
    asked = np.isin(keys, np.fromiter(answers, np.uint64, len(answers)))
    return asked & ~np.isin(keys, keys[rows.positives.values])


def _among(texts: Indices, asked: Asked, lists: Ragged, numbers: Indices) -> NDArray[np.bool_]:
    """(Q, C) whether a candidate has the text of a document in its query's list."""
    owner, values = lists.take(numbers)
    total = len(asked.documents)
    wanted = owner * total + asked.documents.same[values]
    return np.isin(np.arange(len(texts))[:, None] * total + texts, wanted)


def likeness(
    positions: Indices, asked: Asked, space: Space, numbers: Indices
) -> NDArray[np.float32]:
    """(Q, C) highest cosine of documents at positions (Q, C) to a positive of query numbers[q]."""
    owner, positives = asked.positives.take(numbers)
    width = positions.shape[1]
    candidates = positions[owner].ravel()  # every positive against all candidates of its query
    found = cosines(space.documents, np.maximum(candidates, 0), np.repeat(positives, width))
    highest = np.full(positions.shape, -1.0, dtype=np.float32)
    np.maximum.at(highest, owner, found.reshape(-1, width))
    return highest


def positive_scores(asked: Asked, space: Space) -> NDArray[np.float32]:
    """(P,) scores of `asked.pairs`."""
    return inner_products(space, *asked.pairs)
