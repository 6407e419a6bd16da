"""Text -> vectors."""

from tercet.models.encode import encode, pad, token_batches, tokenise
from tercet.models.load import (
    EMBEDDED,
    Role,
    default_device,
    freeze_unused,
    load_encoder,
    max_length,
    prompt_of,
    resolve,
    set_dropout,
)
from tercet.models.shards import Vectors
from tercet.models.store import model_fingerprint, vectors

__all__ = [
    "EMBEDDED",
    "Role",
    "Vectors",
    "default_device",
    "encode",
    "freeze_unused",
    "load_encoder",
    "max_length",
    "model_fingerprint",
    "pad",
    "prompt_of",
    "resolve",
    "set_dropout",
    "token_batches",
    "tokenise",
    "vectors",
]
