"""A ranking scored by trec_eval, without a dictionary of all its documents.

Building a dictionary of a thousand documents for each of thousands of queries takes far longer than
scoring them. No metric here depends on what stands below a query's last relevant document, so only
what stands above it is handed over; which that is, is found in arrays.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tercet.data.rows import RetrievalTask
from tercet.errors import UserError
from tercet.evaluation.metrics import METRICS, Scorer, Scores, metrics_within
from tercet.evaluation.ranking import Ranking, in_trec_order, run_rows

QUERIES = 512  # handed over at a time: bounds the dictionaries
PAIRS = 4_096  # judgements looked up at a time: bounds a table of (pairs, depth)


def score_ranking(
    task: RetrievalTask, found: Ranking, metrics: Sequence[str] | None = None
) -> Scores:
    """`score_runs` of the same run: each metric's value (Q,), in the order of `task.qrels`.

    `metrics` None: those that the ranking is deep enough for; all, if it holds every document.
    Raises UserError naming a score that is NaN, and for a task without judgements.
    """
    refuse_nan(task, found)
    depth = found.scores.shape[1]
    if metrics is None:
        metrics = METRICS if depth >= len(task.documents) else metrics_within(depth)
    scorer = Scorer(task.qrels, metrics)
    ordered = in_trec_order(found, task.documents.ids)
    needed = down_to_last_relevant(task, ordered)
    cut = np.arange(depth) < needed[:, None]
    kept = Ranking(ordered.scores, np.where(cut, ordered.positions, -1))
    run, parts, queries = run_rows(task, kept), [], task.queries.ids
    for start in range(0, len(queries), QUERIES):
        some = queries[start : start + QUERIES]
        parts.append(scorer({q: docs for _, (q, docs) in zip(some, run, strict=False)}, some))
    place = np.array([task.queries.index[query] for query in task.qrels], dtype=np.int64)
    return {metric: np.concatenate([p[metric] for p in parts])[place] for metric in parts[0]}


def down_to_last_relevant(task: RetrievalTask, found: Ranking) -> NDArray[np.int64]:
    """(Q,) how many documents of each row reach down to its last relevant one; 0 without any."""
    rows, columns = task.queries.index, task.documents.index
    pairs = np.array(
        [
            (rows[query], columns[document])
            for query, grades in task.qrels.items()
            for document, grade in grades.items()
            if grade > 0 and document in columns
        ],
        dtype=np.int64,
    ).reshape(-1, 2)
    needed = np.zeros(len(rows), dtype=np.int64)
    for start in range(0, len(pairs), PAIRS):
        some = pairs[start : start + PAIRS]
        same: NDArray[np.bool_] = found.positions[some[:, 0]] == some[:, 1:]
        pair, column = np.nonzero(same)
        np.maximum.at(needed, some[pair, 0], column + 1)
    return needed


def unanswered(task: RetrievalTask, found: Ranking) -> int:
    """How many judged queries have no document at all."""
    answered = np.any(found.positions >= 0, axis=1).tolist()
    return sum(not answered[task.queries.index[query]] for query in task.qrels)


def refuse_nan(task: RetrievalTask, found: Ranking) -> None:
    """Raise UserError naming the first score that is NaN."""
    bad = np.argwhere(np.isnan(found.scores))
    if len(bad):
        row, column = bad[0]
        raise UserError(
            f"run: query {task.queries.ids[row]!r}, document "
            f"{task.documents.ids[found.positions[row, column]]!r}: the score is NaN; "
            "a NaN has no rank, so find out which vector holds it"
        )
