"""A checkpoint's model as a folder that `SentenceTransformer(path)` loads, proven on real texts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig
from tercet.errors import UserError
from tercet.files import whole_folder
from tercet.models import encode, load_encoder

TOLERANCE = 1e-6  # largest difference of any component of a unit vector
EDGE_TEXTS = ("", "a", "naïve café", "日本語のテキスト", "🙂🙃", "word " * 2_000)


def export_model(
    checkpoint: str | Path,
    out: Path,
    *,
    card: str,
    texts: Sequence[str] = (),
    overwrite: bool = False,
) -> float:
    """Write the model of `checkpoint` to `out` with `card` as its README.md.

    The folder is loaded back with sentence-transformers alone and must give the vectors of the
    checkpoint for `texts` and a few awkward ones. Returns the largest difference seen.
    Raises UserError, leaving nothing behind, if it exceeds 1e-6, if `checkpoint` is not a model,
    or if `out` exists without `overwrite`.
    """
    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists; choose another folder or say --overwrite")
    model = load_encoder(ModelConfig(path=str(checkpoint)))
    sample = [*EDGE_TEXTS, *texts]
    with whole_folder(out) as partial:
        model.save(str(partial), create_model_card=False)
        (partial / "README.md").write_text(card, encoding="utf-8")
        loaded = SentenceTransformer(str(partial), device="cpu")
        difference = max(
            _difference(encode(model, sample, "query"), loaded.encode_query(sample)),
            _difference(encode(model, sample, "document"), loaded.encode_document(sample)),
        )
        if not difference <= TOLERANCE:
            raise UserError(
                f"{out}: the exported model differs from {checkpoint} by {difference:.2g} "
                f"(limit {TOLERANCE:.0e}); nothing was written"
            )
    return difference


def _difference(ours: object, theirs: object) -> float:
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())
