"""Weights are read from safetensors; a pickle is read only if somebody says so."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tercet.files import pickled

ADVICE = (
    "its weights are pickled, and loading a pickle can run code; save the model as safetensors, or "
    "say model.allow_pickle=true if you trust it"
)


@contextmanager
def only_safetensors(allow_pickle: bool = False) -> Iterator[None]:
    """Make `torch.load` raise ValueError in the block, whichever library calls it.

    sentence-transformers falls back on it for a module without model.safetensors.
    """
    if allow_pickle:
        yield
        return
    plain = torch.load

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError(ADVICE)

    torch.load = refuse
    try:
        yield
    finally:
        torch.load = plain


def advice_for(folder: str) -> str:
    """What to add to a complaint about a model folder that has pickled weights and no others."""
    path = Path(folder)
    if not path.is_dir() or any(path.rglob("*.safetensors")):
        return ""
    return f": {ADVICE}" if any(pickled(file) for file in path.rglob("*.bin")) else ""
