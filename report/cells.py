"""Table cells that say where their number stands: each is made from the JSON it points into."""

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

Json = dict[str, Any]
Path = Sequence[str | int]
INDEX_NAMES = {
    "flat": "Flat",
    "hnsw": "HNSW",
    "ivf_flat": "IVF-Flat",
    "ivf_pq": "IVF-PQ",
    "pq": "PQ",
    "int8": "8-bit",
    "binary": "bits, rescored",
}


@dataclass(frozen=True)
class Cell:
    """What is shown, by what it is sorted, and the JSON pointer (RFC 6901) it was read from."""

    text: str
    order: str | float | None = None  # None: sorted last
    pointer: str | None = None


@dataclass(frozen=True)
class Sheet:
    """A table of a page."""

    caption: str
    columns: tuple[str, ...]  # the first holds names
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    folded: bool = False  # shown when asked for

    @property
    def source(self) -> str:
        """The JSON pointer of what holds all of the table's numbers."""
        cells = (cell.pointer.split("/") for row in self.rows for cell in row if cell.pointer)
        return "/".join(commonprefix(list(cells)))

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column is sorted by number."""
        return tuple(
            any(isinstance(row[place].order, (int, float)) for row in self.rows)
            for place in range(len(self.columns))
        )


def pointer(path: Path) -> str:
    """The JSON pointer of a path.

    >>> pointer(("tasks", 0, "a/b"))
    '/tasks/0/a~1b'
    """
    parts = (str(part).replace("~", "~0").replace("/", "~1") for part in path)
    return "".join(f"/{part}" for part in parts)


def value_at(found: Any, path: Path) -> Any:
    """What stands at a path."""
    for part in path:
        found = found[part]
    return found


def number(found: Json, path: Path, style: str = "{:,}", factor: float = 1) -> Cell:
    """The number at a path times `factor`, in a format's style; empty where it is null.

    >>> number({"a": [0.25]}, ("a", 0), "{:.1f} %", 100)
    Cell(text='25.0 %', order=25.0, pointer='/a/0')
    """
    value = value_at(found, path)
    if value is None:
        return Cell("", None, pointer(path))
    scaled = value * factor if factor != 1 else value
    return Cell(style.format(scaled), scaled, pointer(path))


def interval(found: Json, path: Path, style: str = "{:.3f}") -> Cell:
    """Mean, low and high of the object at a path, as `mean [low, high]`."""
    value = value_at(found, path)
    mean, low, high = (style.format(value[key]) for key in ("mean", "low", "high"))
    return Cell(f"{mean} [{low}, {high}]", value["mean"], pointer(path))


def p_value(found: Json, path: Path) -> Cell:
    """A p value of three digits."""
    value = value_at(found, path)
    text = "< 0.001" if value < 0.001 else f"{value:.3f}"
    return Cell(text, value, pointer(path))


def name(text: str) -> Cell:
    """A cell that names its row."""
    return Cell(text, text)
