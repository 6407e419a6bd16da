"""BM25 as a source of candidates: bm25s' own scores, cut and ordered."""

import bm25s
import numpy as np

from tercet.mining import lexical_top_k

WORDS = [f"w{n}" for n in range(30)]


def test_equals_sorting_all_of_bm25s_scores() -> None:
    random = np.random.default_rng(0)
    documents = [" ".join(random.choice(WORDS, random.integers(0, 9))) for _ in range(200)]
    queries = [" ".join(random.choice([*WORDS, "unheard"], 3)) for _ in range(25)]
    scores, positions = lexical_top_k(queries, documents, 15)
    index = bm25s.BM25()
    index.index([text.split() for text in documents], show_progress=False)
    for row, query in enumerate(queries):
        all_scores = index.get_scores([word for word in query.split() if word in WORDS])
        order = np.argsort(-all_scores, kind="stable")[:15]
        order = order[all_scores[order] > 0]
        assert positions[row, : len(order)].tolist() == order.tolist()
        np.testing.assert_array_equal(scores[row, : len(order)], all_scores[order])
        assert (positions[row, len(order) :] == -1).all()


def test_what_is_not_found_has_no_position() -> None:
    scores, positions = lexical_top_k(["fox", "the", ""], ["red fox", "hen", "fox"], 2)
    assert positions.tolist() == [[2, 0], [-1, -1], [-1, -1]]
    assert np.isneginf(scores[1:]).all() and (scores[0] > 0).all()


def test_ties_at_the_cut_keep_the_earlier_documents() -> None:
    _, positions = lexical_top_k(["fox"], ["hen", "fox", "fox", "fox"], 2)
    assert positions.tolist() == [[1, 2]]


def test_k_is_clipped_and_nothing_may_be_there() -> None:
    assert lexical_top_k(["fox"], ["fox", "hen"], 9)[1].tolist() == [[0, -1]]
    assert lexical_top_k(["fox"], ["the", "of"], 9)[1].tolist() == [[-1, -1]]
    assert lexical_top_k(["fox"], [], 9)[1].shape == (1, 0)
    assert lexical_top_k([], ["fox"], 9)[1].shape == (0, 1)
