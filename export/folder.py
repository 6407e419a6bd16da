"""A checkpoint's model as a folder that `SentenceTransformer(path)` loads, proven on real texts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig
from tercet.errors import UserError
from tercet.files import whole_folder, writable_folder, write_json
from tercet.models import encode, load_encoder, resolve

TOLERANCE = 1e-6  # largest difference of any component of a unit vector
EDGE_TEXTS = ("", "a", "naïve café", "日本語のテキスト", "🙂🙃", "word " * 2_000)


def export_model(
    checkpoint: str | Path | SentenceTransformer,
    out: Path,
    *,
    card: str,
    texts: Sequence[str] = (),
    results: object = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> float:
    """Write a model, or that of `checkpoint`, to `out`: `card` as README.md, `results` as JSON.

    The folder is loaded back with sentence-transformers alone and must give the vectors that
    Tercet and the untouched checkpoint give for `texts` and a few awkward ones, compared as unit
    vectors. Returns the largest difference of any component.
    Raises UserError, leaving nothing behind, if it exceeds 1e-6, if `checkpoint` is not a model,
    or if `out` exists without `overwrite`.
    """
    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists; choose another folder or say --overwrite")
    writable_folder(out.parent)
    model, original = _load(checkpoint, trust_remote_code)
    sample = [*EDGE_TEXTS, *texts]
    with whole_folder(out) as partial:
        model.save(str(partial), create_model_card=False)
        (partial / "README.md").write_text(card, encoding="utf-8")
        if results is not None:
            write_json(partial / "results.json", results)
        exported = SentenceTransformer(
            str(partial), device="cpu", trust_remote_code=trust_remote_code
        )
        queries, documents = exported.encode_query(sample), exported.encode_document(sample)
        difference = max(
            _difference(encode(model, sample, "query"), queries),
            _difference(encode(model, sample, "document"), documents),
            _difference(original.encode_query(sample), queries),
            _difference(original.encode_document(sample), documents),
        )
        if not difference <= TOLERANCE:
            raise UserError(
                f"{out}: the exported model differs from its checkpoint by {difference:.2g} "
                f"(limit {TOLERANCE:.0e}); nothing was written"
            )
    return difference


def _load(
    checkpoint: str | Path | SentenceTransformer, trust_remote_code: bool
) -> tuple[SentenceTransformer, SentenceTransformer]:
    """The model as Tercet reads it, and as sentence-transformers alone does."""
    if isinstance(checkpoint, SentenceTransformer):
        return checkpoint, checkpoint
    settings = ModelConfig(path=str(checkpoint), trust_remote_code=trust_remote_code)
    model = load_encoder(settings, "model")
    original = SentenceTransformer(
        resolve(str(checkpoint), "model"), device="cpu", trust_remote_code=trust_remote_code
    )
    original.prompts = model.prompts
    if original.max_seq_length != model.max_seq_length:
        original.max_seq_length = model.max_seq_length
    return model, original


def _difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Zero vectors, which a static model gives for a text without known tokens, stay zero."""
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12) for rows in (a, b)]
    return float(np.abs(units[0] - units[1]).max())
