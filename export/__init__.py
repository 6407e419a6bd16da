"""What leaves the trainer: a complete model folder, proven equal to its checkpoint."""

from tercet.export.card import made_card, model_card
from tercet.export.folder import MODULES, Exported, export_model
from tercet.export.hub import check_push, push
from tercet.export.parity import MAX_LOSS, variant_rows
from tercet.export.variants import OnnxOptions

__all__ = [
    "MAX_LOSS",
    "MODULES",
    "Exported",
    "OnnxOptions",
    "check_push",
    "export_model",
    "made_card",
    "model_card",
    "push",
    "variant_rows",
]
