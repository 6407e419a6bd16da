"""What a model has seen in training of the texts it is tested on: whole, or long runs of words."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from tercet.data.rows import RetrievalTask, TrainingSet, normalise, text_hash
from tercet.progress import progress

WORDS = 8  # of an n-gram: shorter ones are idioms, longer ones miss what was edited lightly
COVERED = 0.5  # a text counts as seen if so much of it stands in n-grams of the training texts
CHUNK = 4_096  # training texts hashed at a time: bounds memory
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a word's hash is lost
WORD = re.compile(r"\w+")
Codes = NDArray[np.uint64]


@dataclass(frozen=True)
class Leakage:
    """Test queries, and documents that answer them, that are among the texts trained on.

    By hash: equal after `normalise`. By n-grams: at least `COVERED` of the words stand in runs of
    `WORDS` words that training has, those found by hash included.
    """

    of_queries: int
    of_documents: int
    queries_by_hash: int
    documents_by_hash: int
    queries: tuple[str, ...]  # ids, by hash or by n-grams
    documents: tuple[str, ...]
    touched: tuple[str, ...]  # queries that were seen, or one of whose answers was


def leakage(trained: Sequence[str], task: RetrievalTask) -> Leakage:
    """Look for the queries of `task`, and the documents that answer them, in the texts `trained`.

    Of training rows those are `trained_texts`: a document of a shared corpus may be in no row.
    """
    hashes = {text_hash(text) for text in trained}
    ids = {d for grades in task.qrels.values() for d, grade in grades.items() if grade > 0}
    documents = [i for i, id_ in enumerate(task.documents.ids) if id_ in ids]
    texts = [*task.queries.texts, *(task.documents.texts[i] for i in documents)]
    names = [*task.queries.ids, *(task.documents.ids[i] for i in documents)]
    whole = np.array([text_hash(text) in hashes for text in texts], dtype=bool)
    seen = whole | (covered(texts, trained) >= COVERED)
    asked = len(task.queries)
    found = {names[i] for i in np.flatnonzero(seen[:asked])}
    answers = {names[asked + i] for i in np.flatnonzero(seen[asked:])}
    return Leakage(
        of_queries=asked,
        of_documents=len(documents),
        queries_by_hash=int(whole[:asked].sum()),
        documents_by_hash=int(whole[asked:].sum()),
        queries=tuple(sorted(found)),
        documents=tuple(sorted(answers)),
        touched=tuple(
            query
            for query, grades in task.qrels.items()
            if query in found or any(g > 0 and d in answers for d, g in grades.items())
        ),
    )


def trained_texts(rows: TrainingSet) -> list[str]:
    """Every text that a row reads: queries, positives and its own negatives."""
    used = np.unique(np.concatenate([rows.positives.values, rows.negatives.values]))
    queries = (rows.queries.texts[i] for i in np.unique(rows.row_query))
    return [*(rows.documents.texts[i] for i in used), *queries]


def covered(texts: Sequence[str], seen: Iterable[str], n: int = WORDS) -> NDArray[np.float64]:
    """(N,) share of each text's words that stand in a run of `n` words which occurs in `seen`.

    Words are runs of letters, digits and _ after `normalise`. A text of fewer than n words has
    share 0: it can only be compared as a whole. Runs are compared by 64-bit hashes.

    >>> covered(["a b c d x", "a b"], ["z A b, c. d!"], n=3).tolist()
    [0.8, 0.0]
    """
    codes, owner = _words(texts)
    grams, starts = _grams(codes, owner, n)
    wanted = np.unique(grams)
    found = np.zeros(len(wanted), dtype=bool)
    seen = list(seen)
    with progress("look for test texts in training", len(seen)) as advance:
        for first in range(0, len(seen) if len(wanted) else 0, CHUNK):
            part = seen[first : first + CHUNK]
            there = _grams(*_words(part), n)[0]
            places = np.minimum(np.searchsorted(wanted, there), len(wanted) - 1)
            found[places[wanted[places] == there]] = True
            advance(len(part))
    hits = starts[found[np.searchsorted(wanted, grams)]]
    change = np.zeros(len(codes) + 1, dtype=np.int64)  # of how many runs a word stands in
    np.add.at(change, hits, 1)
    np.add.at(change, hits + n, -1)
    inside = np.cumsum(change)[:-1] > 0
    lengths = np.bincount(owner, minlength=len(texts))
    return np.bincount(owner[inside], minlength=len(texts)) / np.maximum(lengths, 1)


def _words(texts: Sequence[str]) -> tuple[Codes, NDArray[np.int64]]:
    """A hash for every word of all texts end to end, and which text it belongs to."""
    known: dict[str, int] = {}
    codes: list[int] = []
    lengths = np.zeros(len(texts), dtype=np.int64)
    for number, text in enumerate(texts):
        words = WORD.findall(normalise(text))
        lengths[number] = len(words)
        for word in words:
            code = known.get(word)
            if code is None:
                code = known[word] = xxhash.xxh3_64_intdigest(word.encode())
            codes.append(code)
    return np.array(codes, dtype=np.uint64), np.repeat(np.arange(len(texts)), lengths)


def _grams(codes: Codes, owner: NDArray[np.int64], n: int) -> tuple[Codes, NDArray[np.int64]]:
    """A hash for every run of n words within one text, and where it starts."""
    count = max(0, len(codes) - n + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(n):
        hashes = hashes * FACTOR + codes[offset : offset + count]
    starts = np.flatnonzero(owner[:count] == owner[n - 1 : n - 1 + count])
    return hashes[starts], starts
