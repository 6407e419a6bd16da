"""The lexical baseline every table carries: BM25 as bm25s computes it."""

from tercet.data.rows import RetrievalTask
from tercet.evaluation.metrics import Run
from tercet.mining.lexical import lexical_top_k

NAME = "BM25"


def bm25_run(task: RetrievalTask, k: int = 100) -> Run:
    """The k best documents of each query by BM25; documents sharing no word are left out.

    Title and text are one field; the settings are those of `lexical_top_k`. Nothing in it is tuned
    to a task. Equal scores are cut in the order of the corpus.
    """
    scores, positions = lexical_top_k(task.queries.texts, task.documents.texts, k)
    ids = task.documents.ids
    return {
        query: {ids[d]: float(s) for d, s in zip(found, values, strict=True) if d >= 0}
        for query, found, values in zip(task.queries.ids, positions, scores, strict=True)
    }
