"""Retrieval scores per query, in trec_eval's own arithmetic.

Conventions, all trec_eval's: nDCG takes the grade as the gain (linear) and log2(rank + 1) as the
discount; for the other metrics a document counts as relevant from grade 1; documents without a
judgement are not relevant. Scores are compared as float32, and equal ones are ordered by document
id, highest first, whatever their order in the run: a scorer that gives every document the same
value gains nothing from the order of the corpus.
"""

import difflib
import math
from collections.abc import Mapping

import numpy as np
import pytrec_eval
from numpy.typing import NDArray

from tercet.errors import UserError

Qrels = dict[str, dict[str, int]]  # query id -> document id -> grade
Run = dict[str, dict[str, float]]  # query id -> document id -> score, higher is better

_TREC = {  # our name -> the measure asked for, the name it is returned under
    "ndcg@10": ("ndcg_cut.10", "ndcg_cut_10"),
    "mrr@10": ("recip_rank", "recip_rank"),
    "map": ("map", "map"),
    "recall@100": ("recall.100", "recall_100"),
    "precision@10": ("P.10", "P_10"),
}
METRICS = tuple(_TREC)
_MRR_CUT = 10


def score_runs(qrels: Qrels, run: Run) -> dict[str, NDArray[np.float64]]:
    """Each metric's value (Q,) for each query, in the order of `qrels`.

    A query without an answer in the run, or without a relevant document, scores 0 and is counted
    (see `absent`). `map` is over all the run holds, so it grows with the depth of the run.
    trec_eval cuts recip_rank nowhere; the first relevant document stands within rank 10 exactly
    when it is at least 1/10, which makes mrr@10. Raises UserError naming a score that is NaN and
    an empty `qrels`.
    """
    if not qrels:
        raise UserError("no judgements to score against: the qrels are empty")
    _refuse_nan(run)
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {measure for measure, _ in _TREC.values()})
    found = evaluator.evaluate({query: docs for query, docs in run.items() if docs})
    scores = {
        metric: np.array([found.get(query, {}).get(name, 0.0) for query in qrels])
        for metric, (_, name) in _TREC.items()
    }
    mrr = scores["mrr@10"]
    scores["mrr@10"] = np.where(mrr > 1 / (_MRR_CUT + 0.5), mrr, 0.0)
    return scores


def known_metric(name: str) -> str:
    """`name` itself if it is one of METRICS, else UserError naming the nearest.

    >>> known_metric("ndcg@10")
    'ndcg@10'
    """
    if name in METRICS:
        return name
    near = difflib.get_close_matches(name.lower(), METRICS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"unknown metric {name!r}; {hint}metrics: {', '.join(METRICS)}")


def absent(qrels: Qrels, run: Run) -> int:
    """How many judged queries the run does not answer.

    >>> absent({"a": {"d": 1}, "b": {"d": 1}}, {"a": {"d": 0.5}, "c": {}})
    1
    """
    return sum(not run.get(query) for query in qrels)


def _refuse_nan(run: Mapping[str, Mapping[str, float]]) -> None:
    for query, documents in run.items():
        for document, score in documents.items():
            if math.isnan(score):
                raise UserError(
                    f"run: query {query!r}, document {document!r}: the score is NaN; "
                    "a NaN has no rank, so find out which vector holds it"
                )
