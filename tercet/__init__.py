"""Tercet: compact bi-encoders for retrieval, trained exactly and measured honestly.

A tercet is three lines: a query, a document that answers it, a document that almost does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tercet.configs import Config, load
    from tercet.errors import UserError
    from tercet.losses import info_nce
    from tercet.stages import compare, evaluate, export_run, finetune, mine

# Loaded on first use: importing torch takes seconds, and `tercet --help` needs none of it.
_HOMES = {
    "Config": "tercet.configs",
    "UserError": "tercet.errors",
    "compare": "tercet.stages",
    "evaluate": "tercet.stages",
    "export_run": "tercet.stages",
    "finetune": "tercet.stages",
    "info_nce": "tercet.losses",
    "load": "tercet.configs",
    "mine": "tercet.stages",
}
__all__ = [
    "Config",
    "UserError",
    "compare",
    "evaluate",
    "export_run",
    "finetune",
    "info_nce",
    "load",
    "mine",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tercet' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
