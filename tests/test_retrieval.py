"""Results: what is written is what was measured, and reads back the same."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tercet.data.rows import RetrievalTask, Texts
from tercet.errors import UserError
from tercet.evaluation.metrics import METRICS
from tercet.evaluation.ranking import ranking_of, run_of, search
from tercet.evaluation.results import FORMAT, read_result, write_result
from tercet.evaluation.retrieval import Result, comparison, score_task
from tercet.evaluation.runs import read_run, write_run
from tests.test_ranking import random_ranking, task_of

TASK = RetrievalTask(
    "toy",
    "test",
    Texts(["d0", "d1", "d2"], ["zero", "one", "two"]),
    Texts(["q0", "q1"], ["ask zero", "ask one"]),
    {"q1": {"d1": 2, "d0": 1}, "q0": {"d0": 1}},  # not in the order of the queries
)
DOCUMENTS = np.eye(3, dtype=np.float32)
# nDCG of q1, which finds grade 1 first and grade 2 second
SECOND = (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
QUERIES = np.array([[1.0, 0.5, 0.0], [0.9, 0.5, 0.1]], dtype=np.float32)


def result(model: str = "org/model") -> Result:
    return score_task(
        TASK,
        search(TASK, QUERIES, DOCUMENTS, 100),
        model=model,
        fingerprints={"model": "abc"},
        prompts={"query": "query: ", "document": None},
        seconds=1.5,
    )


def test_each_query_gets_its_nearest_documents() -> None:
    run = run_of(TASK, search(TASK, QUERIES, DOCUMENTS, 2))
    assert [list(run[q]) for q in ("q0", "q1")] == [["d0", "d1"], ["d0", "d1"]]
    assert run["q1"] == pytest.approx({"d0": 0.9, "d1": 0.5})
    with pytest.raises(ValueError, match="2 document vectors for 3 texts"):
        search(TASK, QUERIES, DOCUMENTS[:2], 2)


def test_scores_stand_under_their_own_query() -> None:
    got = result()
    assert got.scores["ndcg@10"]["q0"] == 1.0
    assert got.scores["ndcg@10"]["q1"] == pytest.approx(SECOND)
    mean = got.means["ndcg@10"]
    assert mean.mean == pytest.approx((1 + SECOND) / 2)
    assert mean.low <= mean.mean <= mean.high
    assert got.counts == {
        "queries": 2,
        "documents": 3,
        "judgements": 3,
        "unanswered": 0,
        "depth": 3,
        "without_judgement": 0,
        "without_answer": 0,
    }


def test_the_file_has_the_shape_of_mteb_and_reads_back_equal(tmp_path: Path) -> None:
    path = write_result(result(), tmp_path)
    assert path == tmp_path / "org__model" / "toy.test.json"
    written = json.loads(path.read_text())
    (row,) = written["scores"]["test"]
    assert written["task_name"] == "toy" and written["evaluation_time"] == 1.5
    assert written["dataset_revision"] == TASK.fingerprint
    assert row["main_score"] == row["ndcg_at_10"] == result().means["ndcg@10"].mean
    assert row["hf_subset"] == "default" and row["languages"] == ["und-Zyyy"]
    assert {"mrr_at_10", "map_at_1000", "recall_at_100", "precision_at_10"} < row.keys()
    assert row["map_at_1000"] == result().means["map"].mean and "map" not in row
    assert read_result(path) == result()


def test_map_of_more_documents_than_mteb_looks_at_has_no_name_of_its(tmp_path: Path) -> None:
    deep = replace(result(), counts=result().counts | {"depth": 1_001})
    path = write_result(deep, tmp_path)
    (row,) = json.loads(path.read_text())["scores"]["test"]
    assert not {"map", "map_at_1000"} & row.keys() and "recall_at_1000" in row
    assert read_result(path).means["map"] == result().means["map"]


@pytest.mark.parametrize("text", ["{", "[]", '{"task_name": "toy"}', '{"tercet": {"means": 3}}'])
def test_another_file_is_not_a_result(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"other\.json: not a result"):
        read_result(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_result(tmp_path / "nothing.json")


def test_a_result_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = write_result(result(), tmp_path)
    written = json.loads(path.read_text())
    written["tercet"]["format"] = FORMAT + 1
    path.write_text(json.dumps(written))
    with pytest.raises(UserError, match=rf"newer version of tercet \(format {FORMAT + 1}, this"):
        read_result(path)


def test_the_task_fingerprint_changes_with_any_of_its_parts() -> None:
    parts = [
        TASK,
        replace(TASK, documents=Texts(["d0", "d1", "d2"], ["zero", "one", "TWO"])),
        replace(TASK, queries=Texts(["q0", "x1"], ["ask zero", "ask one"])),
        replace(TASK, qrels={"q1": {"d1": 1, "d0": 1}, "q0": {"d0": 1}}),
    ]
    assert len({part.fingerprint for part in parts}) == len(parts)


def test_comparison_is_the_second_against_the_first() -> None:
    one = ranking_of(TASK, {"q0": {"d0": 1.0}, "q1": {}})
    worse = score_task(TASK, one, model="worse", metrics=METRICS)
    delta = comparison(worse, result())
    assert delta.mean == pytest.approx(SECOND / 2) and delta.queries == 2


def test_results_of_other_tasks_splits_data_or_metrics_are_refused() -> None:
    one = result()
    with pytest.raises(UserError, match="task 'toy' against 'other'"):
        comparison(one, replace(one, task="other"))
    with pytest.raises(UserError, match="split 'test' against 'dev'"):
        comparison(one, replace(one, split="dev"))
    with pytest.raises(UserError, match="task contents"):
        comparison(one, replace(one, fingerprints={"task": "x"}))
    with pytest.raises(UserError, match="unknown metric 'bleu'; these results hold ndcg@1,"):
        comparison(one, one, "bleu")


def test_a_trec_run_ranks_by_score_then_id_descending(tmp_path: Path) -> None:
    ids = ["a", "b", "c"]
    task = replace(TASK, documents=Texts(ids, ids), queries=Texts(["q"], ["q"]), qrels={"q": {}})
    run = {"q": {"a": 0.5, "c": 0.25, "b": 0.5}}
    write_run(task, ranking_of(task, run), tmp_path / "run.txt", "my model")
    assert (tmp_path / "run.txt").read_text().splitlines() == [
        "q Q0 b 1 0.5 my_model",
        "q Q0 a 2 0.5 my_model",
        "q Q0 c 3 0.25 my_model",
    ]


def test_ids_of_any_characters_survive_a_trec_run(tmp_path: Path) -> None:
    ids = ["a b", "a_b", "a%20b", "100%", "tab\tline\n\x1c\u2028\xa0end", "größe/ü", '"quoted",']
    task = replace(TASK, documents=Texts(ids, ids), queries=Texts(ids, ids), qrels={})
    run = {query: {document: 0.5 for document in ids} for query in ids}
    write_run(task, ranking_of(task, run), tmp_path / "run.txt", 'a "b"')
    assert "a%20b Q0 " in (tmp_path / "run.txt").read_text(encoding="utf-8")
    assert read_run(tmp_path / "run.txt") == run


def test_a_trec_run_is_that_of_a_plain_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sorted and formatted one line after the other; with ties, short rows and an empty one."""
    monkeypatch.setattr("tercet.evaluation.runs.QUERIES", 7)
    task = task_of(20, 60, 1)
    found = random_ranking(task, 40, 1)
    write_run(task, found, tmp_path / "run.txt", "m")
    lines = []
    for query, documents in run_of(task, found).items():
        best = sorted(documents.items(), key=lambda item: (item[1], item[0]), reverse=True)
        lines += [(query, "Q0", d, n, np.float32(s), "m") for n, (d, s) in enumerate(best, 1)]
    cells = [line.split(" ") for line in (tmp_path / "run.txt").read_text().splitlines()]
    assert [(q, z, d, int(n), np.float32(s), m) for q, z, d, n, s, m in cells] == lines
    assert len(lines) > 300
