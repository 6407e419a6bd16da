"""The program behind "Does it pay?" in docs/mining.md."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import mining_quality as quality
from tercet.data import read_task


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
    text = quality.tables({"names": found})["mining_quality"]
    assert "| names | filtered, rescored |" in text
    assert "| +0.300 [+0.300, +0.300], p < 0.001 |" in text
    assert "24 training queries, 9 steps. Negatives per query: unfiltered 2.50" in text


def test_a_collection_is_cut_to_its_size(beir: Path, tmp_path: Path) -> None:
    task = quality.Task("names", rows=10, max_length=16, test_queries=5, documents=30)
    quality.write_data(task, beir, tmp_path / "cut")
    train, test = (read_task(tmp_path / "cut", split) for split in ("train", "test"))
    assert (len(train.queries), len(test.queries)) == (10, 5)
    answers = {d for side in (train, test) for judged in side.qrels.values() for d in judged}
    assert answers < set(train.documents.ids) and len(train.documents) == 30
    whole = read_task(beir, "train").documents
    assert train.documents.ids == [d for d in whole.ids if d in set(train.documents.ids)]


@pytest.mark.slow
def test_the_program_measures_seed_by_seed(
    beir: Path, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a handful of texts, with the real model; stopped in the midst it repeats nothing."""
    for task in quality.TASKS.values():
        (tmp_path / task.name).symlink_to(beir)
    words = ["--shared", tmp_path, "--work", tmp_path / "work", "--out", tmp_path / "out"]
    words += ["--small", 12, "--seeds", 12, 13]
    monkeypatch.setattr(sys, "argv", ["mining_quality", *map(str, words)])
    train = quality.train
    trained: list[Any] = []

    def stop_after_nine(config: Any, condition: str, *rest: Any) -> dict[str, Any]:
        if len(trained) == 9:  # both collections under the first seed, and one run of the second
            raise KeyboardInterrupt
        trained.append((rest[1].name, condition, config.train.seed))
        return train(config, condition, *rest)

    monkeypatch.setattr(quality, "train", stop_after_nine)
    with pytest.raises(KeyboardInterrupt):
        quality.main()
    result = tmp_path / "out" / "mining_quality.json"
    first = json.loads(result.read_text(encoding="utf-8"))
    assert [task["seeds"] for task in first.values()] == [[12], [12]]
    monkeypatch.setattr(quality, "train", lambda *given: trained.append(given) or train(*given))
    quality.main()
    assert len(trained) == 2 * 2 * len(quality.CONDITIONS)
    found = json.loads(result.read_text(encoding="utf-8"))
    for name, task in found.items():
        assert task["seeds"] == [12, 13] and task["steps"] >= 1, name
        assert task["mined"]["unfiltered"]["kept"] > 0 and task["judge"]["contests"] >= 1, name
        assert all(len(spent) == 2 and min(spent) > 0 for spent in task["seconds"].values()), name
    text = quality.tables(found)["mining_quality"]
    assert "nan" not in text and text.count("| untrained |") == 2
