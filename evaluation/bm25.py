"""The lexical baseline every table carries: BM25 as bm25s computes it."""

from tercet.data.rows import RetrievalTask
from tercet.evaluation.ranking import Ranking, without_self
from tercet.mining.lexical import lexical_top_k

NAME = "BM25"


def bm25_ranking(task: RetrievalTask, k: int, *, skip_self: bool = False) -> Ranking:
    """The k best documents of each query by BM25; documents sharing no word are left out.

    Title and text are one field; the settings are those of `lexical_top_k`. Nothing in it is tuned
    to a task. Equal scores are cut in the order of the corpus. `skip_self` leaves out the document
    that has the query's own id.
    """
    found = Ranking(*lexical_top_k(task.queries.texts, task.documents.texts, k + skip_self))
    return without_self(task, found, k) if skip_self else found
