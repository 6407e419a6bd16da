"""The second stage: a real cross-encoder reads the first documents again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import CrossEncoder

from tercet.data import RetrievalTask, Texts
from tercet.errors import UserError
from tercet.evaluation import Ranking, read_result, read_run, rerank, run_of, score_ranking
from tercet.models.cross import load_scorer
from tests.conftest import NAMES, PLACES, Run, answer, question
from tests.test_stages import small_task


def task_of(count: int = 16) -> RetrievalTask:
    """Each question asks for an animal of the place that the judge likes best."""
    numbers = range(count)
    best = [n for n in numbers if n % len(PLACES) == 0]
    return RetrievalTask(
        "places",
        "test",
        Texts([f"d{n}" for n in numbers], [answer(n) for n in numbers]),
        Texts([f"q{n}" for n in numbers], [question(n) for n in numbers]),
        {f"q{n}": {f"d{b}": 1 for b in best} for n in numbers},
    )


def found_for(task: RetrievalTask, depth: int) -> Ranking:
    generator = np.random.default_rng(0)
    rows, columns = len(task.queries), len(task.documents)
    positions = np.stack([generator.permutation(columns)[:depth] for _ in range(rows)])
    scores = -np.sort(-generator.uniform(size=(rows, depth)).astype(np.float32), axis=1)
    positions[1, 3:], scores[1, 3:] = -1, -np.inf  # fewer found than are read again
    positions[2], scores[2] = -1, -np.inf  # nothing found
    return Ranking(scores, positions)


def test_the_first_documents_are_in_the_judges_order_and_the_rest_behind(judge: Path) -> None:
    task, depth = task_of(), 6
    found = found_for(task, 12)
    got = rerank(task, found, load_scorer(str(judge)), depth)
    plain = CrossEncoder(str(judge), device="cpu")
    for row in range(len(task.queries)):
        there = [p for p in found.positions[row] if p >= 0]
        pairs = [(task.queries.texts[row], task.documents.texts[p]) for p in there[:depth]]
        scores = plain.predict(pairs) if pairs else []
        order = [there[i] for i in np.argsort(-np.asarray(scores), kind="stable")]
        ranked = [p for p in got.positions[row] if p >= 0]
        assert ranked == order + there[depth:]
        assert (np.diff(got.scores[row][: len(ranked)]) <= 0).all()
    assert list(run_of(task, got)["q2"]) == []


def test_what_the_judge_likes_comes_first_and_deep_recall_stays(judge: Path) -> None:
    task = task_of()
    found = found_for(task, 16)
    got = rerank(task, found, load_scorer(str(judge)), 10)
    before, after = score_ranking(task, found), score_ranking(task, got)
    assert after["ndcg@10"].mean() > before["ndcg@10"].mean() + 0.2
    assert after["recall@100"].tolist() == before["recall@100"].tolist()


def test_a_depth_beyond_the_search_reads_all(judge: Path) -> None:
    task = task_of()
    found = found_for(task, 5)
    scorer = load_scorer(str(judge))
    deep, exact = (rerank(task, found, scorer, depth) for depth in (50, 5))
    assert deep.positions.tolist() == exact.positions.tolist()


def test_the_command_puts_the_reranked_row_beside_the_model(
    run: Run, tiny_model: Path, judge: Path, pairs: Path, tmp_path: Path
) -> None:
    small_task(pairs, tmp_path / "pets", "test")
    words = ["evaluate", tiny_model, "--data", "pets", "--rerank", judge, "--rerank-depth", 10]
    status, out, err = run(*words)
    assert status == 0, err
    name = tiny_model.parent.name
    both = f"{name} + {judge.parent.name}"
    plain, second = (
        read_result(tmp_path / "results" / folder / "pets.test.json")
        for folder in (name, both.replace(" + ", "_"))
    )
    assert second.model == both and second.counts["reranked"] == 10
    assert second.fingerprints.keys() == {"task", "model", "reranker"}
    assert plain.means["recall@10"].mean == second.means["recall@10"].mean
    assert f"{both} - {name}: nDCG@10" in out and f"{name} - BM25: nDCG@10" in out
    runs = [read_run(p) for p in sorted((tmp_path / "results").rglob("*.run"))]
    assert len(runs) == 3
    found = json.loads((tmp_path / "results" / "comparisons.json").read_text())
    assert {(one["model"], one["base"]) for one in found} == {(name, "BM25"), (both, name)}


def test_an_embedding_model_is_no_reranker(
    run: Run, tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    small_task(pairs, tmp_path / "pets", "test")
    status, _, err = run("evaluate", tiny_model, "--data", "pets", "--rerank", tiny_model)
    assert status == 2 and err.startswith("error: --rerank: ") and "no cross-encoder" in err
    assert err.count("\n") == 1


def test_scores_of_a_task_without_queries_found_are_zero(judge: Path) -> None:
    task = task_of()
    nothing = Ranking(
        np.full((len(NAMES[:16]), 4), -np.inf, dtype=np.float32), np.full((16, 4), -1)
    )
    got = rerank(replace(task, name="none"), nothing, load_scorer(str(judge)), 2)
    assert (got.positions == -1).all()
    with pytest.raises(UserError, match="the qrels are empty"):
        score_ranking(replace(task, qrels={}), got)
