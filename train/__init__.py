"""The loop: from a config to a trained checkpoint."""

from tercet.train.finetune import Trained, finetune
from tercet.train.loop import Evaluate

__all__ = ["Evaluate", "Trained", "finetune"]
