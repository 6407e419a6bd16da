"""Scores per query, error bars, and the baseline beside them."""

from tercet.evaluation.bm25 import bm25_ranking
from tercet.evaluation.comparisons import (
    PLUS,
    Comparison,
    comparisons,
    comparisons_in,
    read_comparisons,
    write_comparisons,
)
from tercet.evaluation.handover import score_ranking
from tercet.evaluation.metrics import (
    METRICS,
    Qrels,
    Run,
    cut_of,
    known_metric,
    metrics_within,
    score_runs,
)
from tercet.evaluation.ranking import (
    DEPTH,
    Ranking,
    ranking_of,
    run_of,
    run_rows,
    search,
)
from tercet.evaluation.rerank import rerank
from tercet.evaluation.results import (
    PREDICTIONS,
    read_result,
    refuse_foreign,
    result_files,
    result_path,
    safe_name,
    write_result,
)
from tercet.evaluation.retrieval import MAIN_METRIC, Mean, Result, comparison, score_task
from tercet.evaluation.runs import read_run, write_predictions, write_run
from tercet.evaluation.significance import (
    Delta,
    PerQuery,
    bootstrap_interval,
    bootstrap_intervals,
    compare,
    effect_size,
    holm,
    randomisation_test,
    ratio_interval,
)
from tercet.evaluation.similarity import cosines, score_similarity

__all__ = [
    "DEPTH",
    "MAIN_METRIC",
    "METRICS",
    "PLUS",
    "PREDICTIONS",
    "Comparison",
    "Delta",
    "Mean",
    "PerQuery",
    "Qrels",
    "Ranking",
    "Result",
    "Run",
    "bm25_ranking",
    "bootstrap_interval",
    "bootstrap_intervals",
    "compare",
    "comparison",
    "comparisons",
    "comparisons_in",
    "cosines",
    "cut_of",
    "effect_size",
    "holm",
    "known_metric",
    "metrics_within",
    "randomisation_test",
    "ratio_interval",
    "ranking_of",
    "read_comparisons",
    "read_result",
    "read_run",
    "refuse_foreign",
    "rerank",
    "result_files",
    "result_path",
    "run_of",
    "run_rows",
    "safe_name",
    "score_ranking",
    "score_runs",
    "score_similarity",
    "score_task",
    "search",
    "write_comparisons",
    "write_predictions",
    "write_result",
    "write_run",
]
