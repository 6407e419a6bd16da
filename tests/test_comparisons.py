"""Comparisons over several tasks: who is compared with whom, and what the p values become."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tercet.errors import UserError
from tercet.evaluation.comparisons import (
    comparisons,
    comparisons_in,
    read_comparisons,
    write_comparisons,
)
from tercet.evaluation.results import COMPARISONS, write_result
from tercet.evaluation.retrieval import Mean, Result, Similarities
from tercet.evaluation.significance import holm
from tercet.files import write_json


def result(model: str, task: str, shift: float = 0.0, content: str = "same") -> Result:
    generator = np.random.default_rng(len(task))
    values = generator.uniform(size=40) * 0.5
    noise = np.random.default_rng(len(model)).normal(0, 0.05, 40)
    scores = {f"q{i}": float(v) for i, v in enumerate(values + shift + noise)}
    means = {"ndcg@10": Mean(float(np.mean(list(scores.values()))), 0.0, 1.0)}
    return Result(model, task, "test", {"ndcg@10": scores}, means, {}, {"task": content})


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
    with pytest.raises(UserError, match="--skip-self False against True"):
        comparisons([result("a", "one"), replace(result("b", "one"), skip_self=True)], "b")
    whole = Result("b", "sts", "test", {}, {}, {}, {})
    assert comparisons([whole, Result("a", "sts", "test", {}, {}, {}, {})], "b") == []


def test_a_later_run_into_the_folder_keeps_what_was_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if `evaluate` had been run three times: two tasks of one model, then another model."""
    runs = [(["base", "tuned"], "one"), (["base", "tuned"], "fourth"), (["base", "other"], "one")]
    for names, task in runs:
        results = [r for r in (result(n, task, 0.02 * len(n)) for n in names)]
        for one in results:
            write_result(one, tmp_path)
        write_comparisons(comparisons_in(tmp_path, results, names[-1]), tmp_path)
    found = read_comparisons(tmp_path)
    assert sorted((one.model, one.task) for one in found) == [
        ("other", "one"),
        ("tuned", "fourth"),
        ("tuned", "one"),
    ]
    family = [one for one in found if one.model == "tuned"]
    assert [one.holm for one in family] == holm([one.delta.p for one in family])

    changed = [result("tuned", "one", content="new")]
    write_result(changed[0], tmp_path)
    left = comparisons_in(tmp_path, changed, "tuned")
    assert sorted((one.model, one.task) for one in left) == [("other", "one"), ("tuned", "fourth")]
    assert "one (test): base and tuned cannot be compared: task contents" in capsys.readouterr().err


def test_a_file_that_is_no_comparison_is_refused(tmp_path: Path) -> None:
    assert read_comparisons(tmp_path) == []
    write_json(tmp_path / COMPARISONS, {"format": 9})
    with pytest.raises(UserError, match=r"comparisons\.json: not the comparisons of"):
        read_comparisons(tmp_path)


def test_correlations_are_compared_in_the_same_family() -> None:
    generator = np.random.default_rng(3)
    gold = generator.normal(size=60)
    means = {"spearman": Mean(0.0, 0.0, 0.0)}

    def sts(model: str, noise: float) -> Result:
        given = gold + generator.normal(0, noise, 60)
        both = Similarities(tuple(gold.tolist()), tuple(given.tolist()))
        facts = {"main": "spearman", "similarities": both}
        return Result(model, "sts", "test", {}, means, {}, {"task": "x"}, **facts)

    found = comparisons([*RESULTS[:3], sts("base", 2.0), sts("tuned", 0.2)], "tuned")
    (of_texts,) = (one for one in found if one.task == "sts")
    assert of_texts.metric == "spearman" and of_texts.delta.low > 0
    family = [one for one in found if one.base == "base"]
    assert [one.holm for one in family] == holm([one.delta.p for one in family])
    assert len(family) == 2


def test_the_file_holds_every_number(tmp_path: Path) -> None:
    found = comparisons(RESULTS, "tuned")
    path = write_comparisons(found, tmp_path)
    assert path == tmp_path / COMPARISONS
    rows = json.loads(path.read_text())
    assert len(rows) == len(found)
    assert rows[0]["delta"].keys() == {"mean", "low", "high", "p", "queries", "effect"}
    assert rows[0]["holm"] == found[0].holm and rows[0]["base"] == "base"
