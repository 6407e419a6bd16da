"""Scores per query, error bars, and the baseline beside them."""

from tercet.evaluation.bm25 import bm25_run
from tercet.evaluation.metrics import METRICS, Qrels, Run, known_metric, score_runs
from tercet.evaluation.retrieval import (
    MAIN_METRIC,
    Mean,
    Result,
    comparison,
    evaluate_vectors,
    read_result,
    read_run,
    result_path,
    score_task,
    write_result,
    write_run,
)
from tercet.evaluation.significance import (
    Delta,
    PerQuery,
    bootstrap_interval,
    compare,
    randomisation_test,
)

__all__ = [
    "MAIN_METRIC",
    "METRICS",
    "Delta",
    "Mean",
    "PerQuery",
    "Qrels",
    "Result",
    "Run",
    "bm25_run",
    "bootstrap_interval",
    "compare",
    "comparison",
    "evaluate_vectors",
    "known_metric",
    "randomisation_test",
    "read_result",
    "read_run",
    "result_path",
    "score_runs",
    "score_task",
    "write_result",
    "write_run",
]
