"""What a model may not do to who loads it: run a pickle, or read outside its own folder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tercet.files import pickled, refuse_outside

ROUTERS = ("router_config.json", "config.json")  # where a Router has, or once had, its settings
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


def refuse_escapes(modules: Path) -> None:
    """Raise ValueError if a model's modules.json names a folder that is not within its own.

    Nor may the settings of a Router, which name a folder for each part of its routes. Those of a
    hub's model that is yet to be fetched are not here: the hub's cache takes no such names.
    """
    folders = [str(module["path"]) for module in _json(modules)]
    refuse_outside(folders, modules.name)
    for settings in (modules.parent / folder / name for folder in folders for name in ROUTERS):
        found = _json(settings) if settings.is_file() else None
        if isinstance(found, dict) and "types" in found:
            refuse_outside(found["types"], settings.name)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
