"""What leaves the trainer: a complete model folder, proven equal to its checkpoint."""

from tercet.export.card import made_card, model_card
from tercet.export.folder import export_model

__all__ = ["export_model", "made_card", "model_card"]
