"""The program behind "Does it pay?" in docs/mining.md."""

from typing import Any

import pytest

from benchmarks import mining_quality as quality


def test_whether_mining_pays_is_told_by_condition() -> None:
    """Made-up scores of 24 queries under two seeds, each condition 0.1 above the one before."""
    better = {condition: 0.1 * place for place, condition in enumerate(quality.CONDITIONS)}

    def run(condition: str, seed: int = 0) -> dict[str, Any]:
        scores = {f"q{n}": 0.3 + better.get(condition, 0) + 0.001 * (n % 7) for n in range(24)}
        return {"scores": scores, "steps": 9, "seconds": 1.0 + seed}

    rate = {"rate": 0.1, "low": 0.05, "high": 0.2}
    judge = {"pairs": 90, "seconds": 60.0, "positive_first": 0.8, "contests": 10}
    mined = {"counts": {"kept": 60, "queries": 24}, "false_negatives": rate, "seconds": 2.0}
    sets = {condition: mined for condition in quality.CONDITIONS if condition != quality.NONE}
    runs = {condition: [run(condition, 1), run(condition, 2)] for condition in quality.CONDITIONS}
    task = quality.Task("names", rows=20, max_length=16)
    found = quality.section(task, run("base"), judge, sets, runs)
    assert found["deltas"].keys() == sets.keys()
    for condition, delta in found["deltas"].items():
        assert delta["mean"] == pytest.approx(better[condition])
    assert found["seconds"][quality.NONE] == [2.0, 3.0]
    text = quality.tables({"tasks": {"names": found}})["mining_quality"]
    assert "| names | filtered, rescored |" in text and "< 0.001" in text
    assert "24 training queries, 9 steps. Negatives per query: unfiltered 2.50" in text
