"""Pairs of sentences with a human's opinion of how similar they are: a TSV file."""

import difflib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tercet.data.records import text_lines
from tercet.errors import UserError

COLUMNS = ("score", "sentence1", "sentence2")
LEAST = 3  # pairs: with fewer a correlation says nothing


@dataclass(frozen=True)
class SimilarityTask:
    """Pair i: first[i] and second[i] are as similar as scores[i] says, on any scale."""

    name: str  # of the folder
    split: str  # of the file
    first: list[str]
    second: list[str]
    scores: NDArray[np.float64]  # (N,)

    def __len__(self) -> int:
        return len(self.scores)


def read_similarity(path: str | Path) -> SimilarityTask:
    """Read `score<tab>sentence1<tab>sentence2` under a header that names these columns.

    Their order is free and others are ignored; quotes have no meaning. Raises UserError naming the
    file, the line and what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a TSV with {', '.join(COLUMNS)}")
    places: list[int] = []
    width = 0
    rows: list[tuple[float, str, str]] = []
    for number, line in text_lines(path):
        cells = line.rstrip("\r\n").split("\t")
        if not places:
            places, width = _places(cells, f"{path}, line {number}"), len(cells)
        elif line.strip():
            rows.append(_row(cells, places, width, f"{path}, line {number}"))
    if len(rows) < LEAST:
        raise UserError(f"{path}: {len(rows)} pairs; a correlation needs at least {LEAST}")
    scores = np.array([score for score, _, _ in rows])
    if np.ptp(scores) == 0:
        raise UserError(f"{path}: every pair has the score {scores[0]:g}; there is no order in it")
    return SimilarityTask(
        path.resolve().parent.name,
        path.name.split(".")[0],
        [first for _, first, _ in rows],
        [second for _, _, second in rows],
        scores,
    )


def _places(header: list[str], where: str) -> list[int]:
    for column in COLUMNS:
        if column not in header:
            near = difflib.get_close_matches(column, header, n=1)
            hint = f"rename {near[0]!r}" if near else "write it above the column"
            raise UserError(f"{where}: no column {column!r} in the header; {hint}")
    return [header.index(column) for column in COLUMNS]


def _row(cells: list[str], places: list[int], width: int, where: str) -> tuple[float, str, str]:
    if len(cells) != width:
        raise UserError(f"{where}: {len(cells)} cells between tabs under a header of {width}")
    score, first, second = (cells[place].strip() for place in places)
    if not first or not second:
        raise UserError(f"{where}: a sentence is empty; fill it or remove the line")
    try:
        value = float(score)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: score {score!r} is not a number; write one")
    return value, first, second
