"""The best documents of each query, in arrays: what a search gives and what is scored."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tercet.data.rows import RetrievalTask
from tercet.evaluation.metrics import Run
from tercet.mining.search import MEMORY, Rows, shared_top_k, top_k

DEPTH = 1_000  # documents of each query that `tercet evaluate` looks at, as MTEB does


@dataclass(frozen=True)
class Ranking:
    """Row i belongs to query i of a task; best first. Where fewer were found the row ends in -1."""

    scores: NDArray[np.float32]  # (Q, k); -inf where there is no document
    positions: NDArray[np.int64]  # (Q, k) in the documents of the task; -1 where there is none


def search(
    task: RetrievalTask,
    queries: Rows,
    documents: Rows,
    k: int,
    *,
    skip_self: bool = False,
    together: bool = False,
    memory: int = MEMORY,
) -> Ranking:
    """The k documents of largest inner product for each query; row i belongs to position i.

    queries (Q, H), documents (D, H); k is clipped to D. `skip_self` leaves out the document that
    has the query's own id, as ArguAna and Quora need. `together` makes it a meeting of all
    processes, which share the work and all return the same bytes. `memory` bounds its candidates,
    as `top_k` says. Raises UserError for vectors that are not finite.
    """
    for vectors, texts, what in (
        (queries, task.queries, "query"),
        (documents, task.documents, "document"),
    ):
        if len(vectors) != len(texts):
            raise ValueError(f"{len(vectors)} {what} vectors for {len(texts)} texts")
    find = shared_top_k if together else top_k
    found = Ranking(*find(queries, documents, k + skip_self, memory=memory))
    return without_self(task, found, k) if skip_self else found


def without_self(task: RetrievalTask, found: Ranking, k: int) -> Ranking:
    """The first k of each row without the document that has the query's own id."""
    index = task.documents.index
    own = np.array([index.get(query, -2) for query in task.queries.ids], dtype=np.int64)
    itself = found.positions == own[:, None]
    scores = np.where(itself, np.float32(-np.inf), found.scores)
    positions = np.where(itself, -1, found.positions)
    order = np.argsort(itself, axis=1, kind="stable")[:, :k]
    return Ranking(
        np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)
    )


def in_trec_order(found: Ranking, ids: list[str]) -> Ranking:
    """The same documents, equal scores ordered by document id, highest first, as trec_eval does."""
    place = np.empty(len(ids) + 1, dtype=np.int64)
    place[sorted(range(len(ids)), key=ids.__getitem__, reverse=True)] = np.arange(len(ids))
    place[-1] = len(ids)  # what position -1 reads: after every document
    rising = ~(found.scores[:, 1:] < found.scores[:, :-1]).all(axis=1)
    rows = np.flatnonzero(rising)  # the others have no equal scores and are in order already
    order = np.lexsort((place[found.positions[rows]], -found.scores[rows]), axis=1)
    scores, positions = found.scores.copy(), found.positions.copy()
    scores[rows] = np.take_along_axis(scores[rows], order, axis=1)
    positions[rows] = np.take_along_axis(positions[rows], order, axis=1)
    return Ranking(scores, positions)


def run_rows(task: RetrievalTask, found: Ranking) -> Iterator[tuple[str, dict[str, float]]]:
    """Each query's id with its documents' ids and scores, one after the other."""
    ids = np.array(task.documents.ids, dtype=object)
    for query, scores, positions in zip(
        task.queries.ids, found.scores, found.positions, strict=True
    ):
        there = positions >= 0
        yield (
            query,
            dict(zip(ids[positions[there]].tolist(), scores[there].tolist(), strict=True)),
        )


def run_of(task: RetrievalTask, found: Ranking) -> Run:
    """The same as trec_eval's dictionary."""
    return dict(run_rows(task, found))


def ranking_of(task: RetrievalTask, run: Run) -> Ranking:
    """trec_eval's dictionary in arrays, best first; as wide as its longest answer.

    Raises KeyError for a document that the task does not hold.
    """
    depth = max((len(documents) for documents in run.values()), default=0)
    scores = np.full((len(task.queries), depth), -np.inf, dtype=np.float32)
    positions = np.full(scores.shape, -1, dtype=np.int64)
    for row, query in enumerate(task.queries.ids):
        documents = run.get(query, {})
        values = np.array(list(documents.values()), dtype=np.float32)
        places = np.array([task.documents.index[id_] for id_ in documents], dtype=np.int64)
        order = np.argsort(-values, kind="stable")
        scores[row, : len(order)], positions[row, : len(order)] = values[order], places[order]
    return Ranking(scores, positions)
