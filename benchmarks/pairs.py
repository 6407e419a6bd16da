"""Real text for every benchmark: docstrings and code of packages that are installed anyway."""

import numpy as np

from tercet.configs import Source
from tercet.data import TrainingSet, read_training
from tercet.data.code import COLUMNS, IGNORE, code_task
from tercet.data.rows import Indices, Ragged, Texts
from tercet.files import cache_folder

STDLIB = ("stdlib",)
MANY = ("stdlib", "torch", "transformers", "scipy", "pandas", "sympy", "networkx", "matplotlib")


def code_pairs(packages: tuple[str, ...] = STDLIB) -> TrainingSet:
    """Docstring-code pairs of the packages; built once, then read from the cache folder."""
    folder = cache_folder() / "benchmarks" / "-".join(packages)
    if not (folder / "train.jsonl").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        code_task(packages, [], [], folder)
    path = str(folder / "train.jsonl")
    return read_training([Source(path=path, columns=COLUMNS, ignore=IGNORE)])


def subset(data: TrainingSet, rows: Indices) -> TrainingSet:
    """The training set of these rows alone; each row has one positive and no negatives."""
    queries, documents = data.row_query[rows], data.positives.take(rows)[1]
    if len(documents) != len(rows):
        raise ValueError("rows with several positives")
    return TrainingSet(
        _pick(data.queries, queries),
        _pick(data.documents, documents),
        np.arange(len(rows)),
        Ragged.of([[i] for i in range(len(rows))]),
        Ragged.of([[] for _ in rows]),
        np.array([0, len(rows)]),
    )


def draw(data: TrainingSet, size: int, seed: int, usable: np.ndarray | None = None) -> TrainingSet:
    """`size` distinct rows at random, out of those marked in `usable` (R,) if given."""
    rows = np.arange(len(data)) if usable is None else np.flatnonzero(usable)
    if len(rows) < size:
        raise ValueError(f"{len(rows)} pairs, {size} wanted")
    return subset(data, np.random.default_rng(seed).permutation(rows)[:size])


def _pick(texts: Texts, places: Indices) -> Texts:
    return Texts([texts.ids[i] for i in places], [texts.texts[i] for i in places])
