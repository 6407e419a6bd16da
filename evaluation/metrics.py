"""Retrieval scores per query, in trec_eval's own arithmetic.

Conventions, all trec_eval's: nDCG takes the grade as the gain (linear) and log2(rank + 1) as the
discount; for the other metrics a document counts as relevant from grade 1; documents without a
judgement are not relevant. Scores are compared as float32, and equal ones are ordered by document
id, highest first, whatever their order in the run: a scorer that gives every document the same
value gains nothing from the order of the corpus.
"""

import difflib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytrec_eval
from numpy.typing import NDArray

from tercet.errors import UserError

Qrels = dict[str, dict[str, int]]  # query id -> document id -> grade
Run = dict[str, dict[str, float]]  # query id -> document id -> score, higher is better
Scores = dict[str, NDArray[np.float64]]  # metric -> (Q,)

_CUTS = {  # our family of metrics -> trec_eval's measure, and the ranks it is taken at
    "ndcg": ("ndcg_cut", (1, 3, 5, 10, 20, 100)),
    "recall": ("recall", (10, 100, 1000)),
    "precision": ("P", (1, 10)),
    "hit_rate": ("success", (10, 100)),
}
_MRR = "mrr@10"
_TREC = {  # our name -> the measure asked for, the name it is returned under
    **{
        f"{family}@{cut}": (f"{measure}.{cut}", f"{measure}_{cut}")
        for family, (measure, cuts) in _CUTS.items()
        for cut in cuts
    },
    "map": ("map", "map"),
    _MRR: ("recip_rank", "recip_rank"),
}
METRICS = tuple(_TREC)
_MAP_DEPTH = 1_000  # documents of each query, as TREC's runs hold and MTEB looks at


def score_runs(qrels: Qrels, run: Run, metrics: Sequence[str] = METRICS) -> Scores:
    """Each metric's value (Q,) for each query, in the order of `qrels`.

    A query without an answer in the run, or without a relevant document, scores 0 and counts all
    the same. `map` is over all the run holds, so it grows with the depth of the run.
    trec_eval cuts recip_rank nowhere; the first relevant document stands within rank 10 exactly
    when it is at least 1/10, which makes mrr@10. Raises UserError naming a score that is NaN and
    an empty `qrels`.
    """
    _refuse_nan(run)
    return Scorer(qrels, metrics)(run)


class Scorer:
    """The judgements of a task, made ready once for any number of runs."""

    def __init__(self, qrels: Qrels, metrics: Sequence[str] = METRICS) -> None:
        if not qrels:
            raise UserError("no judgements to score against: the qrels are empty")
        self._metrics = {name: _TREC[known_metric(name)] for name in metrics}
        asked = {measure for measure, _ in self._metrics.values()}
        self._evaluator = pytrec_eval.RelevanceEvaluator(qrels, asked)
        self._queries = list(qrels)

    def __call__(self, run: Run, queries: Sequence[str] | None = None) -> Scores:
        """Scores (Q,) in the order of `queries`; None: of the judgements. No score may be NaN."""
        found = self._evaluator.evaluate({query: docs for query, docs in run.items() if docs})
        nothing: dict[str, float] = {}
        rows = [found.get(query, nothing) for query in queries or self._queries]
        scores = {
            metric: np.array([row.get(name, 0.0) for row in rows])
            for metric, (_, name) in self._metrics.items()
        }
        if _MRR in scores:
            scores[_MRR] = np.where(scores[_MRR] > 1 / (cut_of(_MRR) + 0.5), scores[_MRR], 0.0)
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


def cut_of(metric: str) -> int:
    """How many documents of a query have to be looked at to tell the metric.

    >>> cut_of("recall@100"), cut_of("map")
    (100, 1000)
    """
    return int(metric.partition("@")[2] or _MAP_DEPTH)


def metrics_within(depth: int) -> tuple[str, ...]:
    """Those metrics that a run of `depth` documents a query can tell.

    >>> "recall@1000" in metrics_within(100), "recall@100" in metrics_within(100)
    (False, True)
    """
    return tuple(metric for metric in METRICS if cut_of(metric) <= depth)


def _refuse_nan(run: Mapping[str, Mapping[str, float]]) -> None:
    for query, documents in run.items():
        for document, score in documents.items():
            if math.isnan(score):
                raise UserError(
                    f"run: query {query!r}, document {document!r}: the score is NaN; "
                    "a NaN has no rank, so find out which vector holds it"
                )
