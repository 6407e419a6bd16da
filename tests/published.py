"""What a benchmark program found, as it is read back and as the pages show it."""

import json
from pathlib import Path
from typing import Any

from benchmarks.machine import write_result


def read_back(name: str, found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The result of `benchmarks.NAME`, written and read again."""
    path = write_result(name, found, folder)
    return json.loads(path.read_text(encoding="utf-8"))


def as_shown(
    name: str, found: dict[str, Any], folder: Path
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The same in docs/benchmarks.md, by the names of its marks, and row by row in the README."""
    from benchmarks.tables import summary, tables  # which cannot be imported without FAISS

    results = {name: read_back(name, found, folder)}
    return tables(results), summary(results)
