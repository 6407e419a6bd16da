"""Metrics equal trec_eval's, and a reference short enough to read."""

import math

import numpy as np
import pytest
import pytrec_eval

from tercet.errors import UserError
from tercet.evaluation.metrics import METRICS, Qrels, Run, known_metric, score_runs
from tercet.evaluation.retrieval import MAIN_METRIC


def ranked(scores: dict[str, float]) -> list[str]:
    """Best first; scores compared as float32, equal ones by document id, highest first."""
    return sorted(scores, key=lambda d: (float(np.float32(scores[d])), d), reverse=True)


def reference(grades: dict[str, int], scores: dict[str, float]) -> dict[str, float]:
    """Every metric for one query, straight from its definition."""
    order = ranked(scores)
    relevant = {d for d, grade in grades.items() if grade >= 1}
    hits = [d in relevant for d in order]
    gains = [max(grades.get(d, 0), 0) for d in order]
    ideal = sorted((max(g, 0) for g in grades.values()), reverse=True)

    def ndcg(cut: int) -> float:
        dcg, best = (
            sum(g / math.log2(rank + 1) for rank, g in enumerate(row[:cut], start=1))
            for row in (gains, ideal)
        )
        return dcg / best if best else 0.0

    at = [rank for rank, hit in enumerate(hits, start=1) if hit]
    count = max(len(relevant), 1)
    return {
        **{f"ndcg@{cut}": ndcg(cut) for cut in (1, 3, 5, 10, 20, 100)},
        **{f"recall@{cut}": sum(hits[:cut]) / count for cut in (10, 100, 1000)},
        **{f"precision@{cut}": sum(hits[:cut]) / cut for cut in (1, 10)},
        **{f"hit_rate@{cut}": float(any(hits[:cut])) for cut in (10, 100)},
        "mrr@10": 1 / at[0] if at and at[0] <= 10 else 0.0,
        "map": sum(i / rank for i, rank in enumerate(at, start=1)) / count,
    }


def random_task(seed: int, queries: int = 40, documents: int = 150) -> tuple[Qrels, Run]:
    """Graded judgements, and scores with many ties; few documents found for some queries."""
    generator = np.random.default_rng(seed)
    names = [f"d{i}" for i in range(documents)]
    qrels: Qrels = {}
    run: Run = {}
    for q in range(queries):
        judged = generator.choice(documents, int(generator.integers(1, 30)), replace=False)
        qrels[f"q{q}"] = {names[d]: int(generator.integers(0, 4)) for d in judged}
        found = generator.choice(documents, int(generator.integers(1, documents)), replace=False)
        levels = int(generator.integers(1, 40))
        run[f"q{q}"] = {names[d]: float(generator.integers(0, levels)) / 7 for d in found}
    return qrels, run


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_the_definitions_on_graded_judgements_with_ties(seed: int) -> None:
    qrels, run = random_task(seed)
    got = score_runs(qrels, run)
    assert tuple(got) == METRICS and MAIN_METRIC in METRICS
    for i, query in enumerate(qrels):
        want = reference(qrels[query], run[query])
        assert {m: got[m][i] for m in METRICS} == pytest.approx(want, abs=1e-12)


def test_equal_to_pytrec_eval_with_mrr_from_a_run_cut_at_ten() -> None:
    qrels, run = random_task(9)
    got = score_runs(qrels, run)
    whole = pytrec_eval.RelevanceEvaluator(
        qrels, {"ndcg_cut.10", "map", "recall.100", "P.10"}
    ).evaluate(run)
    cut = {q: {d: docs[d] for d in ranked(docs)[:10]} for q, docs in run.items()}
    mrr = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(cut)
    for i, q in enumerate(qrels):
        assert got["ndcg@10"][i] == whole[q]["ndcg_cut_10"]
        assert got["map"][i] == whole[q]["map"]
        assert got["recall@100"][i] == whole[q]["recall_100"]
        assert got["precision@10"][i] == whole[q]["P_10"]
        assert got["mrr@10"][i] == mrr[q]["recip_rank"]


@pytest.mark.parametrize(("rank", "value"), [(1, 1.0), (10, 0.1), (11, 0.0)])
def test_mrr_counts_rank_ten_and_not_eleven(rank: int, value: float) -> None:
    run = {"q": {f"d{i}": float(-i) for i in range(1, 20)}}
    assert score_runs({"q": {f"d{rank}": 1}}, run)["mrr@10"].tolist() == [value]


def test_equal_scores_stand_by_document_id_highest_first() -> None:
    run = {"q": {"a": 0.5, "b": 0.5}}
    assert score_runs({"q": {"b": 1}}, run)["mrr@10"].tolist() == [1.0]
    assert score_runs({"q": {"a": 1}}, run)["mrr@10"].tolist() == [0.5]


def test_scores_that_differ_beyond_float32_are_equal() -> None:
    run = {"q": {"a": 1.0 + 1e-12, "b": 1.0}}
    assert score_runs({"q": {"a": 1}}, run)["mrr@10"].tolist() == [0.5]


def test_a_query_the_run_does_not_answer_scores_zero_in_its_place() -> None:
    qrels = {"z": {"d": 1}, "a": {"d": 1}, "m": {"d": 0}, "e": {"d": 1}}
    run: Run = {"e": {"d": 1.0}, "z": {}, "m": {"d": 1.0}, "stranger": {"d": 1.0}}
    for values in score_runs(qrels, run).values():
        assert values[:3].tolist() == [0.0, 0.0, 0.0] and values[3] > 0
        assert values.shape == (4,) and values.dtype == np.float64


def test_nan_is_refused_by_query_and_document() -> None:
    with pytest.raises(UserError, match="query 'q', document 'd2': the score is NaN"):
        score_runs({"q": {"d": 1}}, {"q": {"d": 1.0, "d2": math.nan}})


def test_no_judgements_are_refused() -> None:
    with pytest.raises(UserError, match="qrels are empty"):
        score_runs({}, {"q": {"d": 1.0}})


def test_a_misspelt_metric_is_told_the_nearest() -> None:
    assert [known_metric(name) for name in METRICS] == list(METRICS)
    for wrong, right in (
        ("ndgc@10", "ndcg@10"),
        ("NDCG@10", "ndcg@10"),
        ("recal@100", "recall@100"),
    ):
        with pytest.raises(UserError, match=f"unknown metric '{wrong}'; did you mean '{right}'"):
            known_metric(wrong)
    with pytest.raises(UserError, match="unknown metric 'x'; metrics: ndcg@1, "):
        known_metric("x")
