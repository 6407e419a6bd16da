"""Rankings: scored as trec_eval scores the whole run, without handing the whole run over."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from tercet.data import RetrievalTask, Texts, read_task, write_task
from tercet.errors import UserError
from tercet.evaluation import handover
from tercet.evaluation.bm25 import bm25_ranking
from tercet.evaluation.handover import down_to_last_relevant, score_ranking, unanswered
from tercet.evaluation.metrics import METRICS, cut_of, score_runs
from tercet.evaluation.ranking import Ranking, in_trec_order, ranking_of, run_of, search
from tercet.evaluation.retrieval import score_task
from tercet.mining.search import MEMORY


def task_of(queries: int, documents: int, seed: int) -> RetrievalTask:
    """Graded judgements; ids whose order is not that of their positions."""
    generator = np.random.default_rng(seed)
    names = [f"d{i}" for i in generator.permutation(documents)]
    qrels = {}
    for q in generator.permutation(queries):
        judged = generator.choice(
            documents, int(generator.integers(1, min(30, documents))), replace=False
        )
        qrels[f"q{q}"] = {names[d]: int(generator.integers(0, 4)) for d in judged}
    return RetrievalTask(
        "random",
        "test",
        Texts(names, [f"text {name}" for name in names]),
        Texts([f"q{i}" for i in range(queries)], [f"ask {i}" for i in range(queries)]),
        qrels,
    )


def random_ranking(task: RetrievalTask, depth: int, seed: int) -> Ranking:
    """Scores with many ties; some rows short, one empty."""
    generator = np.random.default_rng(seed)
    rows, columns = len(task.queries), len(task.documents)
    positions = np.stack([generator.permutation(columns)[:depth] for _ in range(rows)])
    levels = generator.integers(1, 60, rows)
    scores = np.stack([generator.integers(0, n, depth) / np.float32(7) for n in levels])
    scores = -np.sort(-scores.astype(np.float32), axis=1)
    for row, length in enumerate(generator.integers(max(1, depth // 2), depth + 1, rows)):
        positions[row, length if row else 0 :] = -1
        scores[row, length if row else 0 :] = -np.inf
    return Ranking(scores, positions)


@pytest.mark.parametrize(("seed", "depth"), [(0, 150), (1, 150), (2, 12), (3, 1), (4, 100)])
def test_scores_are_those_of_the_whole_run(
    seed: int, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "QUERIES", 7)  # several pieces, the last one short
    monkeypatch.setattr(handover, "PAIRS", 50)
    task = task_of(40, 150, seed)
    found = random_ranking(task, depth, seed)
    got, want = score_ranking(task, found), score_runs(task.qrels, run_of(task, found))
    assert set(got) == {m for m in METRICS if depth == 150 or cut_of(m) <= depth}
    for metric, values in got.items():
        assert values.tolist() == want[metric].tolist(), metric
    run = run_of(task, found)
    assert unanswered(task, found) == sum(not run[query] for query in task.qrels) == 1
    for metric, values in score_ranking(task, ranking_of(task, run), METRICS).items():
        assert values.tolist() == want[metric].tolist(), metric


def test_equal_to_trec_eval_run_directly() -> None:
    task = task_of(30, 150, 5)
    found = random_ranking(task, 150, 5)
    measures = {"ndcg_cut.1,3,5,10,20,100", "map", "recall.10,100,1000", "P.1,10", "success.10,100"}
    whole = pytrec_eval.RelevanceEvaluator(task.qrels, measures).evaluate(run_of(task, found))
    got = score_ranking(task, found)
    names = {"ndcg": "ndcg_cut", "precision": "P", "hit_rate": "success"}
    for metric in METRICS:
        family, _, cut = metric.partition("@")
        if family == "mrr":
            continue
        for row, query in enumerate(task.qrels):
            name = f"{names.get(family, family)}_{cut}" if cut else family
            want = whole.get(query, {}).get(name, 0.0)
            assert abs(got[metric][row] - want) <= 1e-12


def test_only_what_stands_above_the_last_relevant_document_is_handed_over() -> None:
    task = task_of(20, 150, 6)
    found = in_trec_order(random_ranking(task, 150, 6), task.documents.ids)
    needed = down_to_last_relevant(task, found)
    for row, query in enumerate(task.queries.ids):
        documents = [task.documents.ids[d] for d in found.positions[row] if d >= 0]
        hits = [i for i, d in enumerate(documents, 1) if task.qrels[query].get(d, 0) > 0]
        assert needed[row] == max(hits, default=0)


def test_judgements_of_documents_outside_the_corpus_still_count_as_missed() -> None:
    task = task_of(3, 20, 7)
    found = random_ranking(task, 20, 7)
    more = replace(task, qrels={q: grades | {"gone": 1} for q, grades in task.qrels.items()})
    got, want = score_ranking(more, found), score_runs(more.qrels, run_of(more, found))
    assert got["recall@100"].tolist() == want["recall@100"].tolist()
    assert (got["recall@100"] <= score_ranking(task, found)["recall@100"]).all()


def test_nan_is_refused_by_query_and_document() -> None:
    task = task_of(3, 20, 8)
    found = random_ranking(task, 20, 8)
    found.scores[2, 1] = np.nan
    name = task.documents.ids[found.positions[2, 1]]
    with pytest.raises(UserError, match=f"query 'q2', document '{name}': the score is NaN"):
        score_ranking(task, found)
    vectors = np.ones((20, 4), dtype=np.float32)
    vectors[7] = np.nan
    with pytest.raises(UserError, match="document vectors, row 7: not finite"):
        search(task, np.ones((3, 4), dtype=np.float32), vectors, 5)


def test_skip_self_leaves_out_the_query_and_nothing_else() -> None:
    ids = [f"x{i}" for i in range(6)]
    task = RetrievalTask(
        "same ids",
        "test",
        Texts(ids, ids),
        Texts(ids[:3] + ["apart"], ids[:3] + ["apart"]),
        {"x0": {"x1": 1}, "x1": {"x0": 1}, "x2": {"x3": 1}, "apart": {"x5": 1}},
    )
    vectors = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    asked = vectors[[0, 1, 2, 5]]
    for k in (1, 3, 5, 6, 9):
        whole = run_of(task, search(task, asked, vectors, 6))
        got = run_of(task, search(task, asked, vectors, k, skip_self=True))
        for query, documents in whole.items():
            others = {d: s for d, s in documents.items() if d != query}
            assert got[query] == dict(itertools.islice(others.items(), k))
    lexical = run_of(task, bm25_ranking(task, 2, skip_self=True))
    assert lexical == {"x0": {}, "x1": {}, "x2": {}, "apart": {}}  # only itself shares its word


def test_a_ranking_is_scored_only_as_deep_as_it_is() -> None:
    task = task_of(10, 150, 9)
    shallow = score_task(task, random_ranking(task, 20, 9), model="m")
    assert "recall@10" in shallow.means and not {"recall@100", "map"} & shallow.means.keys()
    assert shallow.counts["depth"] == 20 and shallow.counts["unanswered"] == 1


def test_the_order_of_the_corpus_file_changes_nothing(tmp_path: Path) -> None:
    """Where a search is cut among equal scores, the documents of highest id stay."""
    task = task_of(8, 60, 10)
    backwards = Texts(task.documents.ids[::-1], task.documents.texts[::-1])
    scores = []
    for name, texts in (("a", task.documents), ("b", backwards)):
        write_task(replace(task, documents=texts), tmp_path / name)
        read = read_task(tmp_path / name)
        queries = np.ones((len(read.queries), 4), dtype=np.float32)
        same = np.ones((60, 4), dtype=np.float32)
        found = search(read, queries, same, 10)
        assert set(run_of(read, found)[read.queries.ids[0]]) == set(sorted(read.documents.ids)[50:])
        scores.append(score_ranking(read, found)["ndcg@10"].tolist())
    assert scores[0] == scores[1]


def test_queries_without_judgement_or_answer_are_counted(tmp_path: Path) -> None:
    task = task_of(4, 20, 11)
    first, second, *_ = task.qrels
    grades = {first: {"d0": 1}, second: {"d1": 0}}
    write_task(replace(task, qrels=grades), tmp_path / "some")
    read = read_task(tmp_path / "some")
    result = score_task(read, random_ranking(read, 20, 0), model="m")
    assert result.counts["queries"] == 1
    assert result.counts["without_judgement"] == 2 and result.counts["without_answer"] == 1


def test_less_memory_for_the_search_gives_the_same_bytes() -> None:
    generator = np.random.default_rng(12)
    task = task_of(2_100, 300, 12)
    queries, documents = (generator.normal(size=(n, 8)).astype(np.float32) for n in (2_100, 300))
    wide, narrow = (search(task, queries, documents, 20, memory=n) for n in (MEMORY, 1))
    assert wide.scores.tobytes() == narrow.scores.tobytes()
    assert wide.positions.tobytes() == narrow.positions.tobytes()
