"""What the benchmarks measured keeps what the documents promise of evaluation."""

import json
from statistics import mean
from typing import Any

import pytest

from benchmarks import evaluation, mteb_agreement
from benchmarks.machine import RESULTS


def measured(name: str) -> dict[str, Any]:
    """What `python -m benchmarks.NAME` wrote."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path.name} is not there; python -m benchmarks.{name} writes it")
    return json.loads(path.read_text(encoding="utf-8"))


def test_scoring_is_three_times_as_fast_as_the_peers() -> None:
    found = measured("evaluation")
    assert (found["queries"], found["documents"]) == (evaluation.QUERIES, evaluation.DOCUMENTS)
    assert found["times_faster"][evaluation.OURS] >= 3


def test_metrics_are_the_peers_and_memory_keeps_its_bound() -> None:
    found = measured("evaluation")
    assert len(found["same_metrics"]) >= 6 and found["largest_difference"] <= 1e-6
    wide, narrow = (
        found["memory"][name]["anonymous_mb"] for name in (evaluation.DEEP, evaluation.NARROW)
    )
    assert narrow < wide


def test_numbers_are_those_of_mteb() -> None:
    tasks = {task["task"]: task for task in measured("mteb_agreement")["tasks"]}
    assert tasks.keys() >= {*mteb_agreement.TASKS}
    for name, task in tasks.items():
        assert len(task["metrics"]) >= 14 and task["largest_difference"] <= 1e-5, name


@pytest.mark.parametrize(
    ("method", "least"), [("int8, one scale", 0.99), ("bits, rescored from int8", 0.97)]
)
def test_short_vectors_keep_their_quality(method: str, least: float) -> None:
    collections = measured("quantised")["collections"]
    assert len(collections) >= 4
    assert mean(one[method]["kept"] for one in collections.values()) >= least
