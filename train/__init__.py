"""The loop: from a config to a trained checkpoint."""

from tercet.train.dry_run import Forecast, forecast
from tercet.train.run import Evaluate
from tercet.train.scale import Predicted, predict
from tercet.train.setup import Trained, finetune

__all__ = ["Evaluate", "Forecast", "Predicted", "Trained", "finetune", "forecast", "predict"]
