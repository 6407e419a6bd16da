"""A token cache is used again only if everything that shaped it is the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tercet.data.tokens import token_cache
from tercet.errors import UserError
from tercet.files import cache_folder, whole_folder
from tests.disk import full_disk

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


@pytest.mark.parametrize("damage", ["cut", "empty", "offsets", "missing", "flip", "hashes"])
def test_a_cache_that_is_not_whole_is_made_again(damage: str) -> None:
    letters = Letters()
    before = token_cache(TEXTS, letters, "key").ids.tolist()
    (place,) = (cache_folder() / "tokens").iterdir()
    file = place / {"offsets": "offsets.npy", "hashes": "tokens.json"}.get(damage, "ids.npy")
    if damage == "missing":
        file.unlink()
    elif damage == "flip":  # as many, other tokens
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    else:
        data = file.read_bytes()
        file.write_bytes(data[:-8] if damage in ("cut", "offsets") else b"")
    assert token_cache(TEXTS, letters, "key").ids.tolist() == before
    assert letters.asked == 2 * len(TEXTS)


def test_no_texts_are_a_cache_too() -> None:
    assert token_cache([], Letters(), "key").lengths(np.zeros(0, np.int64)).tolist() == []


def test_a_full_disk_is_one_line_and_leaves_nothing() -> None:
    with full_disk(), pytest.raises(UserError, match=r"cannot be written \(File too large\); make"):
        token_cache(["a text of a hundred letters" * 20], Letters(), "key")
    assert list((cache_folder() / "tokens").iterdir()) == []


ROUNDS = 20  # how close two renames fall is left to chance


def fill_together(barrier: Barrier, folder: Path) -> None:
    """The work of each process: every cache is missing when both look for it."""

    def together(texts: Sequence[str]) -> list[NDArray[np.int32]]:
        barrier.wait(60)
        return Letters()(texts)

    for number in range(ROUNDS):
        cache = token_cache(TEXTS, together, f"key {number}", folder)
        assert cache[0].tolist() == [ord(letter) for letter in TEXTS[0]]
        barrier.wait(60)


def test_two_processes_that_fill_a_cache_at_once_both_read_it(tmp_path: Path) -> None:
    context = get_context("spawn")
    barrier = context.Barrier(2)
    processes = [context.Process(target=fill_together, args=(barrier, tmp_path)) for _ in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    caches = list(tmp_path.iterdir())  # whole folders, nothing partial beside them
    assert len(caches) == ROUNDS
    whole = {"ids.npy", "offsets.npy", "tokens.json", ".reading"}
    assert all({file.name for file in cache.iterdir()} == whole for cache in caches)


def test_the_folder_that_is_there_first_stays(tmp_path: Path) -> None:
    place = tmp_path / "cache"
    for text in ("first", "second"):
        with whole_folder(place, replace=False) as partial:
            (partial / "a").write_text(text)
    assert (place / "a").read_text() == "first"
    assert list(tmp_path.iterdir()) == [place]
    with pytest.raises(OSError), whole_folder(place / "a", replace=False):
        pass  # a file in the way is no cache
