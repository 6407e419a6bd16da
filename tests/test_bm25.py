"""BM25: the formula by hand, and real collections where they are at hand."""

import math
import os
from pathlib import Path

import pytest

from tercet.data.beir import read_task
from tercet.data.rows import RetrievalTask, Texts
from tercet.evaluation import Run, bm25_ranking, run_of
from tercet.evaluation.metrics import score_runs

SHARED = Path(
    os.environ.get("TERCET_SHARED_DATA") or Path(__file__).parents[1].parent / "shared/data"
)


def task(documents: list[str], queries: list[str]) -> RetrievalTask:
    return RetrievalTask(
        "t",
        "test",
        Texts([f"d{i}" for i in range(len(documents))], documents),
        Texts([f"q{i}" for i in range(len(queries))], queries),
        {f"q{i}": {"d0": 1} for i in range(len(queries))},
    )


def bm25_run(task: RetrievalTask, k: int = 100) -> Run:
    return run_of(task, bm25_ranking(task, k))


def test_scores_are_lucenes_formula() -> None:
    # idf = ln(1 + (N - n + 0.5) / (n + 0.5)); weight = tf / (tf + k1 (1 - b + b length / mean))
    run = bm25_run(task(["red red fox", "blue fox", "green hen"], ["red fox"]))
    mean = 7 / 3
    red = math.log(1 + 2.5 / 1.5) * 2 / (2 + 1.5 * (0.25 + 0.75 * 3 / mean))
    fox = [math.log(1 + 1.5 / 2.5) / (1 + 1.5 * (0.25 + 0.75 * n / mean)) for n in (3, 2)]
    assert run["q0"] == pytest.approx({"d0": red + fox[0], "d1": fox[1]}, rel=1e-5)


def test_a_document_without_a_shared_word_is_left_out() -> None:
    run = bm25_run(task(["red fox", "blue hen"], ["the fox", "unheard of", "the"]))
    assert list(run["q0"]) == ["d0"] and run["q1"] == {} and run["q2"] == {}


def test_k_cuts_and_ties_keep_the_order_of_the_corpus() -> None:
    run = bm25_run(task(["fox"] * 5 + ["hen"], ["fox"]), k=3)
    assert list(run["q0"]) == ["d0", "d1", "d2"]


def test_a_corpus_of_stop_words_answers_nothing() -> None:
    assert bm25_run(task(["the", "a of"], ["the fox"])) == {"q0": {}}


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    bm25_run(task(["red fox", "blue hen"], ["fox"]))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "at_least"), [("scifact", 0.66), ("cranfield", 0.46), ("stackfaq", 0.65)]
)
def test_the_baseline_is_as_strong_as_it_should_be(name: str, at_least: float) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is not there; set TERCET_SHARED_DATA")
    real = read_task(SHARED / name, "test")
    score = score_runs(real.qrels, bm25_run(real))["ndcg@10"].mean()
    assert at_least < score < at_least + 0.04
