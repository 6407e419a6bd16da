"""The second stage: the best documents of a search, read again by a cross-encoder."""

from pathlib import Path

import numpy as np

from tercet.data.rows import RetrievalTask
from tercet.evaluation.ranking import Ranking, in_trec_order
from tercet.models.cross import CrossScorer, cross_scores


def rerank(
    task: RetrievalTask,
    found: Ranking,
    scorer: CrossScorer,
    depth: int,
    *,
    folder: Path | None = None,
    title: str = "rerank",
) -> Ranking:
    """The first `depth` documents of each query in the cross-encoder's order, the rest behind them.

    The rest keep their order, so that recall at greater depths can still be told; their scores are
    the lowest of the first minus 1, 2, ... Pairs scored before are read from `folder` (default: the
    user's cache). A meeting of all processes. Raises UserError for a score that is not finite.
    """
    first = found.positions[:, :depth]
    rows, columns = np.nonzero(first >= 0)
    asked, texts = task.queries.texts, task.documents.texts
    pairs = [(asked[q], texts[d]) for q, d in zip(rows, first[rows, columns], strict=True)]
    scores = np.full(found.scores.shape, -np.inf, dtype=np.float32)
    scores[rows, columns] = cross_scores(scorer, pairs, folder=folder, title=title)
    lowest = np.where(first >= 0, scores[:, :depth], np.inf).min(axis=1, initial=np.inf)
    behind = lowest[:, None] - np.arange(1, found.scores.shape[1] - first.shape[1] + 1)
    scores[:, depth:] = np.where(found.positions[:, depth:] >= 0, behind, -np.inf)
    return in_trec_order(Ranking(scores, found.positions), task.documents.ids)
