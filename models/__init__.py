"""Text -> vectors."""

from tercet.models.encode import encode, pad, single_encoder, token_batches, tokenise
from tercet.models.heads import add_dense, settle_width, truncate
from tercet.models.load import (
    EMBEDDED,
    Role,
    default_device,
    freeze_unused,
    is_cached,
    is_here,
    load_encoder,
    max_length,
    on_disk,
    prompt_of,
    prompts_of,
    resolve,
    set_dropout,
)
from tercet.models.merge import merge_line, merge_models
from tercet.models.routes import pair_models, refuse_pair, route
from tercet.models.shards import Vectors
from tercet.models.store import are_stored, model_fingerprint, vectors
from tercet.models.student import Size, Student, make_student
from tercet.models.vocabulary import Corpus

__all__ = [
    "EMBEDDED",
    "Corpus",
    "Role",
    "Size",
    "Student",
    "Vectors",
    "add_dense",
    "are_stored",
    "default_device",
    "encode",
    "freeze_unused",
    "is_cached",
    "is_here",
    "load_encoder",
    "make_student",
    "max_length",
    "merge_line",
    "merge_models",
    "model_fingerprint",
    "on_disk",
    "pad",
    "pair_models",
    "prompt_of",
    "prompts_of",
    "refuse_pair",
    "resolve",
    "route",
    "set_dropout",
    "settle_width",
    "single_encoder",
    "token_batches",
    "tokenise",
    "truncate",
    "vectors",
]
