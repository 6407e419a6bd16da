"""A model's tokenizer without its weights: enough to count tokens."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer
from transformers.utils.hub import cached_file

from tercet.configs import ModelConfig
from tercet.errors import UserError
from tercet.models.load import resolve

SETTINGS = "sentence_bert_config.json"  # where sentence-transformers keeps the maximum length
NO_LIMIT = 1_000_000  # some tokenizers say 10 ** 30


def load_tokenizer(config: ModelConfig) -> tuple[Any, int]:
    """The tokenizer of `load_encoder(config)` and the maximum length in tokens.

    Raises UserError if there is no such model or it has no tokenizer.
    """
    path = resolve(config.path)
    trust = {"trust_remote_code": config.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **trust)
        body = AutoConfig.from_pretrained(path, **trust)
        stated = _stated_length(path)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model.path: {config.path}: no tokenizer can be loaded: {reason}"
        ) from None
    if tokenizer.vocab_size <= len(tokenizer.all_special_tokens):  # made up from config.json alone
        raise UserError(f"model.path: {config.path}: its tokenizer has no vocabulary")
    positions = getattr(body, "max_position_embeddings", None)
    limits = (stated, positions, tokenizer.model_max_length, NO_LIMIT)
    return tokenizer, config.max_length or min(limit for limit in limits if limit)


def _stated_length(path: str) -> int | None:
    settings = cached_file(path, SETTINGS, _raise_exceptions_for_missing_entries=False)
    if settings is None:
        return None
    return json.loads(Path(settings).read_text(encoding="utf-8")).get("max_seq_length")
