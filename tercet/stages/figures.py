"""What `results.json` of a comparison says of results: differences, means over tasks, leaks."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tercet.data import Leakage
from tercet.evaluation import MAIN_METRIC, Result, comparison, holm
from tercet.evaluation.significance import (
    bootstrap_interval,
    compare_over_tasks,
    mean_over_tasks,
)
from tercet.export.cpu import cpu_name
from tercet.versions import installed_versions

Json = dict[str, Any]


def quality(result: Result) -> Json:
    """Every metric's mean with its interval."""
    return {
        "model": result.model,
        "means": {metric: asdict(mean) for metric, mean in result.means.items()},
        "unanswered": result.counts["unanswered"],
    }


def delta(base: Result, other: Result) -> Json:
    """`other` against the baseline on MAIN_METRIC, and by how much on each query."""
    differences = np.sort(_differences(base, other))
    return {
        "model": other.model,
        "against": base.model,
        **asdict(comparison(base, other)),
        "wins": int((differences > 0).sum()),
        "losses": int((differences < 0).sum()),
        "ties": int((differences == 0).sum()),
        "differences": differences.tolist(),
    }


def adjust(measured: Sequence[Json]) -> None:
    """Add to the differences of each model their p adjusted by Holm over the tasks."""
    for of_one_model in zip(*(task["deltas"] for task in measured), strict=True):
        for one, adjusted in zip(of_one_model, holm([d["p"] for d in of_one_model]), strict=True):
            one["p_holm"] = adjusted


def overall(results: Sequence[Sequence[Result]]) -> list[Json]:
    """Mean over tasks of each model's MAIN_METRIC, each weighing the same, and against the first.

    `results` of each task, the models in the same order.
    """
    rows = []
    for place, of_one_model in enumerate(zip(*results, strict=True)):
        scores = [np.array(list(one.scores[MAIN_METRIC].values())) for one in of_one_model]
        mean, low, high = mean_over_tasks(scores)
        differences = [_differences(task[0], task[place]) for task in results]
        against = asdict(compare_over_tasks(differences)) if place else None
        name = of_one_model[0].model
        rows.append({"model": name, "mean": mean, "low": low, "high": high, "delta": against})
    return rows


def mean_compression(place: int, measured: Sequence[Json]) -> list[Json]:
    """Each form of a model's vectors, its scores averaged over tasks; the full form first."""
    forms = zip(*(task["compression"][place] for task in measured), strict=True)
    same = ("dims", "precision", "rescored", "bytes", "rescoring_bytes")
    return [
        {
            **{key: form[0][key] for key in same},
            "mean": float(np.mean([one["mean"] for one in form])),
            "kept": float(np.mean([one["kept"] for one in form])),
            "kept_least": min(one["kept"] for one in form),
        }
        for form in forms
    ]


def leak_facts(leak: Leakage | None, results: Sequence[Result]) -> Json | None:
    """What of a task was seen in training, and each result without the queries concerned.

    The latter is left out where no query is concerned, or all are.
    """
    if leak is None:
        return None
    seen = {name: len(getattr(leak, name)) for name in ("queries", "documents", "touched")}
    partly = 0 < seen["touched"] < leak.of_queries
    without = [_without(result, set(leak.touched)) for result in results] if partly else []
    return {**asdict(leak), "seen": seen, "without": without}


def environment() -> Json:
    """The machine and the versions that the figures were measured with."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": installed_versions(),
    }


def _without(result: Result, left_out: set[str]) -> Json:
    kept = [s for query, s in result.scores[MAIN_METRIC].items() if query not in left_out]
    low, high = bootstrap_interval(np.array(kept))
    return {"model": result.model, "mean": float(np.mean(kept)), "low": low, "high": high}


def _differences(base: Result, other: Result) -> NDArray[np.float64]:
    """(Q,) by how much `other` is better on each query."""
    theirs, mine = base.scores[MAIN_METRIC], other.scores[MAIN_METRIC]
    return np.array([mine[query] - theirs[query] for query in theirs])
