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
    from tercet.stages import (
        compare,
        distil,
        evaluate,
        export_run,
        finetune,
        merge,
        merge_curve,
        mine,
        pair,
        student,
    )

# Loaded on first use: importing torch takes seconds, and `tercet --help` needs none of it.
_HOMES = {
    "Config": "tercet.configs",
    "UserError": "tercet.errors",
    "compare": "tercet.stages",
    "distil": "tercet.stages",
    "evaluate": "tercet.stages",
    "export_run": "tercet.stages",
    "finetune": "tercet.stages",
    "info_nce": "tercet.losses",
    "load": "tercet.configs",
    "merge": "tercet.stages",
    "merge_curve": "tercet.stages",
    "mine": "tercet.stages",
    "pair": "tercet.stages",
    "student": "tercet.stages",
}
__all__ = [
    "Config",
    "UserError",
    "compare",
    "distil",
    "evaluate",
    "export_run",
    "finetune",
    "info_nce",
    "load",
    "merge",
    "merge_curve",
    "mine",
    "pair",
    "student",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tercet' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
