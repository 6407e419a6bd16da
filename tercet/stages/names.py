"""What models are called."""

from collections.abc import Sequence
from pathlib import Path

from tercet.errors import UserError
from tercet.models import (
    EMBEDDED,
)


def name_of(path: str) -> str:
    """What a model is called in tables: its folder, and for `<run>/model` the run."""
    if path == EMBEDDED:
        return "all-MiniLM-L6-v2"
    folder = Path(path).resolve() if Path(path).exists() else Path(path)
    return folder.parent.name if folder.name == "model" else folder.name


def refuse_twice(what: str, names: Sequence[str]) -> None:
    """Raise UserError if two are of one name: results are filed by name, one would be lost."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two {what} are called {twice[0]!r}; rename a folder or evaluate apart")
