"""Comparisons over several tasks: who is compared with whom, and what the p values become."""

import json
from pathlib import Path

import numpy as np
import pytest

from tercet.errors import UserError
from tercet.evaluation.comparisons import comparisons, write_comparisons
from tercet.evaluation.retrieval import COMPARISONS, Result
from tercet.evaluation.significance import holm


def result(model: str, task: str, shift: float = 0.0, content: str = "same") -> Result:
    generator = np.random.default_rng(len(task))
    values = generator.uniform(size=40) * 0.5
    noise = np.random.default_rng(len(model)).normal(0, 0.05, 40)
    scores = {f"q{i}": float(v) for i, v in enumerate(values + shift + noise)}
    return Result(model, task, "test", {"ndcg@10": scores}, {}, {}, {"task": content})


TASKS = {"one": 0.0, "three": 0.01, "fourth": 0.05}
RESULTS = [
    result(name, task, shift if name.startswith("tuned") else 0.0)
    for task, shift in TASKS.items()
    for name in ("base", "BM25", "tuned", "tuned + judge")
]


def test_each_pair_has_its_own_family_of_tasks() -> None:
    found = comparisons(RESULTS, "tuned")
    pairs = [("tuned", "base"), ("tuned", "BM25"), ("tuned + judge", "tuned")]
    assert [(one.model, one.base) for one in found] == pairs * 3
    assert [one.task for one in found] == [task for task in TASKS for _ in pairs]
    for model, base in pairs:
        family = [one for one in found if (one.model, one.base) == (model, base)]
        assert [one.holm for one in family] == holm([one.delta.p for one in family])
    assert any(one.holm > one.delta.p for one in found)


def test_a_single_task_leaves_p_as_it_is() -> None:
    (only,) = comparisons([result("base", "one"), result("tuned", "one", 0.02)], "tuned")
    assert only.holm == only.delta.p


def test_other_contents_are_refused_and_scores_of_texts_left_out() -> None:
    with pytest.raises(UserError, match="task contents"):
        comparisons([result("a", "one", content="x"), result("b", "one")], "b")
    whole = Result("b", "sts", "test", {}, {}, {}, {})
    assert comparisons([whole, Result("a", "sts", "test", {}, {}, {}, {})], "b") == []


def test_the_file_holds_every_number(tmp_path: Path) -> None:
    found = comparisons(RESULTS, "tuned")
    path = write_comparisons(found, tmp_path)
    assert path == tmp_path / COMPARISONS
    rows = json.loads(path.read_text())
    assert len(rows) == len(found)
    assert rows[0]["delta"].keys() == {"mean", "low", "high", "p", "queries", "effect"}
    assert rows[0]["holm"] == found[0].holm and rows[0]["base"] == "base"
