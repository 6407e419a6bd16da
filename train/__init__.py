"""The loop: from a config to a trained checkpoint."""

from tercet.train.dry_run import Forecast, forecast
from tercet.train.loop import Evaluate
from tercet.train.setup import Trained, finetune

__all__ = ["Evaluate", "Forecast", "Trained", "finetune", "forecast"]
