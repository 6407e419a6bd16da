"""A global batch: each distinct text once, and no known positive among the negatives."""

import numpy as np
import pytest

from tercet.data.batch import Batch, Batches
from tercet.data.order import Order
from tercet.data.rows import Ragged, Texts, TrainingSet


def batches_of(
    rows: list[tuple[str, list[str], list[str]]], size: int | None = None, **options: object
) -> Batches:
    """Rows of (query, positives, negatives); ids are made up, one for every mention."""
    queries, documents = Texts([], []), Texts([], [])

    def add(texts: Texts, text: str) -> int:
        texts.ids.append(f"{len(texts)}")
        texts.texts.append(text)
        return len(texts) - 1

    asked = [add(queries, query) for query, _, _ in rows]
    positives = Ragged.of([[add(documents, d) for d in right] for _, right, _ in rows])
    negatives = Ragged.of([[add(documents, d) for d in wrong] for _, _, wrong in rows])
    offsets = np.array([0, len(rows)])
    data = TrainingSet(queries, documents, np.array(asked), positives, negatives, offsets)
    return Batches(data, Order((len(rows),), size or len(rows), 1), **options)  # type: ignore[arg-type]


def in_words(batches: Batches, batch: Batch, pairs: np.ndarray) -> list[tuple[str, str]]:
    queries, documents = batches.data.queries.texts, batches.data.documents.texts
    return sorted((queries[batch.queries[i]], documents[batch.documents[j]]) for i, j in pairs)


def test_a_text_that_occurs_twice_is_one_entry() -> None:
    batches = batches_of([("q", ["a"], ["x"]), ("q", ["b"], ["x"]), ("r", ["a"], ["a", "x"])])
    batch = batches(0)
    assert len(batch.queries) == 2
    texts = [batches.data.documents.texts[d] for d in batch.documents]
    assert sorted(texts) == sorted(set(texts))
    assert len(batch.asked) == 3 and len(batch.shown) == 6


def test_positives_and_own_negatives_are_pairs() -> None:
    batches = batches_of([("q", ["a", "b"], ["x"]), ("r", ["c"], [])])
    batch = batches(0)
    assert in_words(batches, batch, batch.positives) == [("q", "a"), ("q", "b"), ("r", "c")]
    assert in_words(batches, batch, batch.negatives) == [("q", "x")]


def test_a_positive_known_from_another_row_is_ignored() -> None:
    rows = [("q", ["a"], []), ("q", ["b"], []), ("r", ["c"], []), ("s", ["d"], [])]
    batches = batches_of(rows, size=3)
    for step in range(4):
        batch = batches(step)
        ignored = in_words(batches, batch, batch.ignored)
        texts = {batches.data.documents.texts[d] for d in batch.documents}
        asked = {batches.data.queries.texts[q] for q in batch.queries}
        expected = {("q", t) for t in texts & {"a", "b"} if "q" in asked}
        assert expected <= set(ignored)
    alone = batches_of(rows, known=False)
    batch = alone(0)
    assert in_words(alone, batch, batch.ignored) == in_words(alone, batch, batch.positives)


@pytest.mark.parametrize("variant", ["An  Answer", "an answer ", "AN ANSWER"])
def test_a_positive_in_other_case_or_spacing_is_ignored(variant: str) -> None:
    batches = batches_of([("q", ["an answer"], []), ("r", [variant], [])])
    batch = batches(0)
    assert len(batch.documents) == 2  # two different texts to the encoder
    assert ("q", variant) in in_words(batches, batch, batch.ignored)
    alone = batches_of([("q", ["an answer"], ["x"]), ("r", [variant], [])], known=False)
    batch = alone(0)
    both = ["an answer", variant]
    assert in_words(alone, batch, batch.ignored) == sorted((q, d) for q in "qr" for d in both)


def test_a_question_in_other_case_has_the_same_answers() -> None:
    batches = batches_of([("a question", ["a"], []), ("A  Question", ["b"], [])])
    batch = batches(0)
    assert len(in_words(batches, batch, batch.ignored)) == 4


def test_a_mined_negative_that_answers_the_query_is_ignored() -> None:
    batches = batches_of([("q", ["a"], ["b", "x"]), ("q", ["b"], [])], negatives_per_row=2)
    batch = batches(0)
    assert ("q", "b") in in_words(batches, batch, batch.ignored)


def test_ignored_pairs_hold_every_positive_once() -> None:
    batches = batches_of([("q", ["a", "b"], ["x"]), ("q", ["a"], []), ("r", ["b"], ["a"])])
    batch = batches(0)
    ignored = {tuple(pair) for pair in batch.ignored.tolist()}
    assert len(ignored) == len(batch.ignored)
    assert {tuple(pair) for pair in batch.positives.tolist()} <= ignored


def test_no_negatives_anywhere_give_an_empty_list_of_pairs() -> None:
    batch = batches_of([("q", ["a"], []), ("r", ["b"], [])])(0)
    assert batch.negatives.shape == (0, 2)
    none = batches_of([("q", ["a"], ["x"])], negatives_per_row=0)(0)
    assert none.negatives.shape == (0, 2) and len(none.documents) == 1


LETTERS = list("abcdefghij")


def test_draws_change_with_the_epoch_and_are_pure() -> None:
    rows = [(f"q{i}", [f"{c}{i}" for c in LETTERS], [f"-{c}{i}" for c in LETTERS]) for i in (0, 1)]

    def shown(step: int, positives: int = 3) -> list[list[int]]:
        batches = batches_of(rows, positives_per_row=positives, negatives_per_row=2)
        batch = batches(step)
        return [batch.positives.tolist(), batch.documents.tolist()]

    first = batches_of(rows, positives_per_row=3, negatives_per_row=2)(0)
    assert len(first.positives) == 6 and len(first.negatives) == 4
    assert shown(0) == shown(0)
    assert len({str(shown(epoch)) for epoch in range(6)}) == 6
    assert shown(0, positives=99)[0] == shown(1, positives=99)[0]  # all of them, every time


def test_draws_are_even() -> None:
    """1 of 10 over 500 epochs: chi-square with 9 degrees of freedom."""
    batches = batches_of([("q", LETTERS, [])], positives_per_row=1)
    counts = np.bincount([batches(epoch).documents[0] for epoch in range(500)], minlength=10)
    assert ((counts - 50) ** 2 / 50).sum() < 27.9  # p = 0.001
