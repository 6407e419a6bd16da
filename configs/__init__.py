"""What a run may be told, and how it is read from YAML."""

from tercet.configs.load import load, save
from tercet.configs.schema import (
    BatchConfig,
    Columns,
    Config,
    DataConfig,
    EvaluationConfig,
    FalseNegatives,
    LossConfig,
    Matryoshka,
    MiningConfig,
    ModelConfig,
    Prompts,
    RescoreConfig,
    Source,
    TrackingConfig,
    TrainConfig,
)

__all__ = [
    "BatchConfig",
    "Columns",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "FalseNegatives",
    "LossConfig",
    "Matryoshka",
    "MiningConfig",
    "ModelConfig",
    "Prompts",
    "RescoreConfig",
    "Source",
    "TrackingConfig",
    "TrainConfig",
    "load",
    "save",
]
