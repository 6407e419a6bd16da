"""What models are called."""

from pathlib import Path

from tercet.models import (
    EMBEDDED,
)


def name_of(path: str) -> str:
    """What a model is called in tables: its folder, and for `<run>/model` the run."""
    if path == EMBEDDED:
        return "all-MiniLM-L6-v2"
    folder = Path(path).resolve() if Path(path).exists() else Path(path)
    return folder.parent.name if folder.name == "model" else folder.name
