"""Look at training data before hours are spent on it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tercet.configs import ModelConfig, Source, load
from tercet.configs.load import recipes
from tercet.data import read_task
from tercet.data.check import FolderReport, Report, check_folder, check_sources
from tercet.errors import UserError
from tercet.models import (
    EMBEDDED,
)
from tercet.models.tokenizer import load_tokenizer
from tercet.progress import say


def check_data(
    path: str, overrides: Sequence[str] = (), model: str = EMBEDDED
) -> Report | FolderReport:
    """Diagnose a BEIR folder, a file of pairs, or everything a config or recipe trains on.

    Mistakes are gathered in the report's `problems` instead of raised. Token lengths are those
    of `model`'s tokenizer and maximum length, or of the config's model; if that has no tokenizer
    at hand they are left out, which is said.
    """
    is_recipe = path in recipes() and not Path(path).exists()
    if is_recipe or path.endswith((".yaml", ".yml")):
        config = load(path, overrides)
        held_out = [read_task(folder) for folder in config.data.held_out]
        return check_sources(config.data.train, *_tokenizer(config.model), held_out)
    tokenizer, longest = _tokenizer(ModelConfig(path=model))
    if (Path(path) / "qrels").is_dir():
        return check_folder(path, tokenizer, longest)
    return check_sources([Source(path=path)], tokenizer, longest)


def _tokenizer(model: ModelConfig) -> tuple[Any, int | None]:
    """A tokenizer and its maximum length, or neither: data can be checked without one."""
    try:
        return load_tokenizer(model)
    except UserError as error:
        say(f"token lengths are left out: {error}")
        return None, None
