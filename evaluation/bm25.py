"""The lexical baseline every table carries: BM25 as bm25s computes it."""

import logging

import bm25s
import numpy as np

from tercet.data.rows import RetrievalTask
from tercet.evaluation.metrics import Run
from tercet.progress import progress

NAME = "BM25"


def bm25_run(task: RetrievalTask, k: int = 100) -> Run:
    """The k best documents of each query by BM25; documents sharing no word are left out.

    bm25s with its own defaults: Lucene's formula, k1 = 1.5, b = 0.75; lower-cased words of two or
    more letters or digits, English stop words removed, no stemmer; title and text as one field.
    Nothing in it is tuned to a task. Equal scores are cut in the order of the corpus.
    """
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    words = _words(task.documents.texts)
    if not any(words):
        return {query: {} for query in task.queries.ids}
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    run: Run = {}
    with progress("BM25", len(task.queries)) as advance:
        for query, asked in zip(task.queries.ids, _words(task.queries.texts), strict=True):
            known = [word for word in asked if word in index.vocab_dict]
            scores = index.get_scores(known) if known else np.zeros(len(words), dtype=np.float32)
            found = np.flatnonzero(scores > 0)
            best = found[np.argsort(-scores[found], kind="stable")[:k]]
            run[query] = {task.documents.ids[d]: float(scores[d]) for d in best}
            advance()
    return run


def _words(texts: list[str]) -> list[list[str]]:
    return bm25s.tokenize(texts, return_ids=False, show_progress=False)  # type: ignore[return-value]
