"""A token cache is used again only if everything that shaped it is the same."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from tercet.data.tokens import token_cache

TEXTS = ["one", "three", ""]


@dataclass
class Letters:
    """Tokenises into letters and counts the texts it was asked for."""

    asked: int = 0

    def __call__(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        self.asked += len(texts)
        return [np.array([ord(letter) for letter in text], dtype=np.int32) for text in texts]


def test_ids_and_lengths_are_those_of_each_text() -> None:
    cache = token_cache(TEXTS, Letters(), "key")
    assert cache[1].tolist() == [ord(letter) for letter in "three"]
    assert cache.lengths(np.array([2, 0, 1])).tolist() == [0, 3, 5]


def test_the_second_run_tokenises_nothing() -> None:
    letters = Letters()
    first = token_cache(TEXTS, letters, "key")
    again = token_cache(TEXTS, letters, "key")
    assert letters.asked == len(TEXTS)
    assert np.array_equal(first.ids, again.ids) and np.array_equal(first.offsets, again.offsets)


@pytest.mark.parametrize(
    ("texts", "key"),
    [(["one", "three", "x"], "key"), (["three", "one", ""], "key"), (TEXTS, "other")],
    ids=["another text", "another order", "another key"],
)
def test_a_change_tokenises_anew(texts: list[str], key: str) -> None:
    letters = Letters()
    token_cache(TEXTS, letters, "key")
    token_cache(texts, letters, key)
    assert letters.asked == 2 * len(TEXTS)


def test_an_interrupted_write_leaves_no_cache() -> None:
    def fails(texts: Sequence[str]) -> list[NDArray[np.int32]]:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        token_cache(TEXTS, fails, "key")
    letters = Letters()
    token_cache(TEXTS, letters, "key")
    assert letters.asked == len(TEXTS)
