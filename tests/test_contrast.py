"""Scores of pairs: who is similar, who was sampled, and what the figures say of them."""

import numpy as np
import pytest

from tercet.data.rows import RetrievalTask, Texts
from tercet.errors import UserError
from tercet.evaluation.contrast import contrast, sampled_pairs


def task(qrels: dict[str, dict[str, int]], documents: int) -> RetrievalTask:
    ids, asked = [f"d{i}" for i in range(documents)], list(qrels)
    return RetrievalTask("toy", "test", Texts(ids, ids), Texts(asked, asked), qrels)


def test_dissimilar_ones_are_any_but_the_relevant_ones() -> None:
    toy = task({"a": {"d0": 1, "d3": 2, "d4": 0}, "b": {"d5": 1}}, 6)
    similar, dissimilar = sampled_pairs(toy, 600, seed=0)
    assert similar.tolist() == [[0, 3], [5, -1]]
    counts = np.bincount(dissimilar[0], minlength=6)
    assert counts[[0, 3]].tolist() == [0, 0]
    assert counts[[1, 2, 4, 5]].min() > 100  # 150 expected: d4 was judged and is not relevant
    assert set(dissimilar[1]) == {0, 1, 2, 3, 4}
    assert (sampled_pairs(toy, 600, seed=0)[1] == dissimilar).all()
    assert (sampled_pairs(toy, 600, seed=1)[1] != dissimilar).any()


def test_the_document_of_the_query_s_own_id_is_left_out() -> None:
    toy = task({"d1": {"d0": 1}, "other": {"d0": 1}}, 4)
    _, dissimilar = sampled_pairs(toy, 300, seed=0, skip_self=True)
    assert set(dissimilar[0]) == {2, 3} and set(dissimilar[1]) == {1, 2, 3}


def test_the_figures_are_those_of_the_pairs() -> None:
    toy = task({"a": {"d0": 1, "d1": 1}, "b": {"d2": 3}}, 4)
    rows = [[0.9, 0.5, 0.1, 0.7], [0.2, 0.3, 0.6, 0.6]]
    scores = np.array(rows, dtype=np.float32)  # query x document
    queries, documents = np.eye(2, dtype=np.float32), np.ascontiguousarray(scores.T)
    found = contrast(toy, queries, documents, sampled=3)
    drawn = sampled_pairs(toy, 3, seed=12)[1]
    far = np.take_along_axis(scores, drawn, axis=1).astype(float)
    assert found.similar.pairs == 3 and found.dissimilar.pairs == 6
    assert found.similar.mean == pytest.approx((0.7 + 0.6) / 2)
    assert found.dissimilar.mean == pytest.approx(far.mean())
    difference = found.contrast
    assert difference.mean == pytest.approx(found.similar.mean - found.dissimilar.mean)
    assert difference.low <= difference.mean <= difference.high
    assert found.similar.quantiles["0.5"] == pytest.approx(0.6)
    near = ([0.9, 0.5], [0.6])
    shares = [
        np.mean([1.0 if a > b + 1e-6 else 0.5 if abs(a - b) < 1e-6 else 0.0 for a in n for b in f])
        for n, f in zip(near, far, strict=True)
    ]
    assert found.separation == pytest.approx(np.mean(shares))


def test_a_query_that_every_document_answers_has_no_contrast() -> None:
    documents, one = np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)
    everything = {"d0": 1, "d1": 1}
    found = contrast(task({"a": {"d0": 1}, "b": everything}, 2), one, documents)
    assert found.similar.pairs == 1 and found.contrast.mean == 1.0
    with pytest.raises(UserError, match="toy: every document is relevant"):
        contrast(task({"a": everything, "b": everything}, 2), one, documents)
