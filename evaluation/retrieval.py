"""What was found for a task in, a result with error bars out; and one result against another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tercet.data.leaks import Leakage
from tercet.data.rows import RetrievalTask
from tercet.errors import UserError
from tercet.evaluation.correlation import compare_correlations
from tercet.evaluation.handover import score_ranking, unanswered
from tercet.evaluation.ranking import Ranking
from tercet.evaluation.significance import Delta, bootstrap_intervals, compare
from tercet.versions import installed_versions

MAIN_METRIC = "ndcg@10"
SPEARMAN = "spearman"  # the one of STS
UNKNOWN_LANGUAGE = ("und-Zyyy",)  # ISO's codes for it; MTEB averages a list of none to NaN


@dataclass(frozen=True)
class Mean:
    """A mean over queries and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Similarities:
    """What people and a model say of each pair of sentences, in the order of the file."""

    gold: tuple[float, ...]
    given: tuple[float, ...]  # cosines


@dataclass(frozen=True)
class Result:
    """One model on one task: every query's score, and all that is needed to trust it."""

    model: str
    task: str
    split: str
    scores: dict[str, dict[str, float]]  # metric -> query id -> score; none of STS
    means: dict[str, Mean]  # metric -> over those queries
    counts: dict[str, int]  # what was scored, and the queries that were not
    fingerprints: dict[str, str]  # "task", and what the caller adds, such as "model"
    prompts: dict[str, str | None] = field(default_factory=dict)  # role -> text put before
    versions: dict[str, str] = field(default_factory=dict)  # package -> version
    seconds: float | None = None  # encoding and search
    languages: tuple[str, ...] = UNKNOWN_LANGUAGE  # as MTEB writes them: eng-Latn
    main: str = MAIN_METRIC  # which of the means stands for all
    leakage: Leakage | None = None  # where the training texts were named
    skip_self: bool = False  # whether the document with the query's own id was left out
    similarities: Similarities | None = None  # of STS
    by_mteb: dict[str, float] | None = None  # metric -> MTEB's own mean, where it was asked
    mteb: dict[str, Any] | None = None  # of its own tasks: revision, version, row of scores


def score_task(
    task: RetrievalTask,
    found: Ranking,
    *,
    model: str,
    metrics: Sequence[str] | None = None,
    fingerprints: Mapping[str, str] | None = None,
    prompts: Mapping[str, str | None] | None = None,
    seconds: float | None = None,
) -> Result:
    """Score what was found for `task` and put an interval round every mean.

    `metrics` None: all that the ranking is deep enough for.
    """
    scores = score_ranking(task, found, metrics)
    intervals = bootstrap_intervals(np.stack(list(scores.values())))
    return Result(
        model=model,
        task=task.name,
        split=task.split,
        scores={m: dict(zip(task.qrels, v.tolist(), strict=True)) for m, v in scores.items()},
        means={
            metric: Mean(float(values.mean()), float(low), float(high))
            for (metric, values), (low, high) in zip(scores.items(), intervals, strict=True)
        },
        counts={
            "queries": len(task.qrels),
            "documents": len(task.documents),
            "judgements": sum(map(len, task.qrels.values())),
            "unanswered": unanswered(task, found),
            "depth": found.scores.shape[1],
            "without_judgement": task.unjudged,
            "without_answer": task.answerless,
        },
        fingerprints={"task": task.fingerprint, **(fingerprints or {})},
        prompts=dict(prompts or {}),
        versions=installed_versions(),
        seconds=seconds,
    )


def comparison(a: Result, b: Result, metric: str = MAIN_METRIC) -> Delta:
    """b against the baseline a on one metric. Raises UserError if they measured other things."""
    refuse_others(a, b)
    if metric == SPEARMAN and a.similarities is not None and b.similarities is not None:
        sides = (a.similarities.gold, a.similarities.given, b.similarities.given)
        return compare_correlations(*(np.array(side) for side in sides))
    if metric not in a.scores or metric not in b.scores:
        raise UserError(f"unknown metric {metric!r}; these results hold {', '.join(a.scores)}")
    return compare(a.scores[metric], b.scores[metric])


def refuse_others(a: Result, b: Result) -> None:
    """Raise UserError unless both are of the same task, split and contents, searched alike."""
    for what, left, right in (
        ("task", a.task, b.task),
        ("split", a.split, b.split),
        ("task contents", a.fingerprints.get("task"), b.fingerprints.get("task")),
        ("--skip-self", a.skip_self, b.skip_self),
    ):
        if left != right:
            raise UserError(
                f"{a.model} and {b.model} cannot be compared: {what} {left!r} against {right!r}; "
                "evaluate both on the same data, in the same way"
            )
