"""Test texts found in training: the fast way finds what the plain one finds."""

import re
from dataclasses import replace

import numpy as np
import pytest

from tercet.data import RetrievalTask, Texts, TrainingSet, leakage, normalise
from tercet.data.leaks import covered, trained_texts
from tercet.data.rows import Ragged

WORDS = [f"w{i}" for i in range(30)]


def plain(texts: list[str], seen: list[str], n: int) -> list[float]:
    """Every run of n words of every text, looked for among every run of the others."""

    def words(text: str) -> list[str]:
        return re.findall(r"\w+", normalise(text))

    runs = {tuple(w[i : i + n]) for w in map(words, seen) for i in range(len(w) - n + 1)}
    shares = []
    for text in texts:
        own = words(text)
        inside = [False] * len(own)
        for i in range(len(own) - n + 1):
            if tuple(own[i : i + n]) in runs:
                inside[i : i + n] = [True] * n
        shares.append(sum(inside) / max(1, len(own)))
    return shares


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_the_share_in_runs_is_that_of_a_plain_search(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tercet.data.leaks.CHUNK", 3)
    generator = np.random.default_rng(n)

    def text(least: int) -> str:
        return " ".join(generator.choice(WORDS[: 4 + n], int(generator.integers(least, 25))))

    seen = [text(0) for _ in range(20)]
    texts = [text(0) for _ in range(30)] + ["", seen[3].upper(), f"{seen[4]}, {seen[5]}!"]
    assert covered(texts, seen, n).tolist() == pytest.approx(plain(texts, seen, n))


def test_a_run_does_not_reach_from_one_text_into_the_next() -> None:
    assert covered(["a b c"], ["x a b", "c y"], n=3).tolist() == [0.0]
    assert covered(["x a b", "c y"], ["a b c"], n=3).tolist() == [0.0, 0.0]
    assert covered([], ["a b c"], n=3).tolist() == []
    assert covered(["a b c"], [], n=3).tolist() == [0.0]


def trained(queries: list[str], documents: list[str]) -> list[str]:
    """Query i is answered by document i; documents after the last query are in no row."""
    count = np.arange(len(queries))
    rows = TrainingSet(
        Texts([f"q{i}" for i in count], queries),
        Texts([f"d{i}" for i in range(len(documents))], documents),
        count,
        Ragged.of([[i] for i in range(len(queries))]),
        Ragged.of([[] for _ in count]),
        np.array([0, len(queries)]),
    )
    return trained_texts(rows)


LONG = "the quick brown fox jumps over the lazy dog and runs into the forest at night"
TASK = RetrievalTask(
    "t",
    "test",
    Texts(["a", "b", "c", "d"], ["Alpha", LONG, "gamma", "delta"]),
    Texts(["1", "2", "3"], ["first?", "second?", "third?"]),
    {"1": {"a": 1, "d": 0}, "2": {"b": 2}, "3": {"c": 1}},
)


def test_queries_and_answers_are_found_by_hash_and_by_words() -> None:
    edited = LONG.replace("night", "dawn, they say")
    found = leakage(trained(["FIRST?  ", "other"], ["unseen", edited, "gamma"]), TASK)
    assert (found.of_queries, found.of_documents) == (3, 3)  # d answers nothing
    assert found.queries == ("1",) and found.queries_by_hash == 1
    assert found.documents == ("b",) and found.documents_by_hash == 0
    assert found.touched == ("1", "2")  # gamma is in the corpus and in no row


def test_an_answer_that_was_a_training_query_counts() -> None:
    found = leakage(trained(["ALPHA"], ["x"]), TASK)
    assert found.documents == ("a",) and found.documents_by_hash == 1
    assert found.touched == ("1",)


def test_less_than_half_of_a_text_is_no_leak() -> None:
    some = " ".join(LONG.split()[:8])  # half of the 16 words
    assert len(LONG.split()) == 16
    assert leakage(trained(["x"], [some]), TASK).documents == ("b",)
    longer = Texts(TASK.documents.ids, [*TASK.documents.texts])
    longer.texts[1] = LONG + " without a sound"
    assert leakage(trained(["x"], [some]), replace(TASK, documents=longer)).documents == ()
