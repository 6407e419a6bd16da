"""The loop: from a config to a trained checkpoint."""

from tercet.train.loop import Evaluate
from tercet.train.setup import Trained, finetune

__all__ = ["Evaluate", "Trained", "finetune"]
