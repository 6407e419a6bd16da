"""A checkpoint's model as a folder that `SentenceTransformer(path)` loads, proven on real texts."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig
from tercet.errors import UserError
from tercet.export.card import onnx_section, without_section
from tercet.export.graph import check_exportable
from tercet.export.runtime import onnxruntime
from tercet.export.sample import EDGE_TEXTS
from tercet.export.variants import OnnxOptions, write_variants
from tercet.files import whole_folder, writable_folder, write_json
from tercet.models import (
    Role,
    encode,
    load_encoder,
    model_fingerprint,
    resolve,
    truncate,
    vectors,
)
from tercet.models.quantise import Ranges, read_ranges, write_ranges

TOLERANCE = 1e-6  # largest difference of any component of a unit vector


@dataclass(frozen=True)
class Exported:
    """What was proven of a folder."""

    difference: float  # largest, of any component, between its vectors and the checkpoint's
    parity: dict[str, Any] = field(default_factory=dict)  # parity.json; empty without ONNX


def export_model(
    checkpoint: str | Path | SentenceTransformer,
    out: Path,
    *,
    card: str,
    texts: Sequence[str] = (),
    results: object = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    truncate_dim: int | None = None,
    onnx: OnnxOptions | None = None,
) -> Exported:
    """Write a model, or that of `checkpoint`, to `out`: `card` as README.md, `results` as JSON.

    The folder is loaded back with sentence-transformers alone and must give the vectors that
    Tercet and the untouched checkpoint give for `texts` and a few awkward ones, compared as unit
    vectors, and cut to `truncate_dim` dimensions if it says so. Ranges of int8 vectors that were
    stored with `checkpoint` come along. `onnx` adds graphs and parity.json, and what they measured
    to the card.
    Raises UserError, leaving nothing behind, if the vectors differ by more than 1e-6 or a graph
    is beyond its limit, if `checkpoint` is not a model, if `out` exists without `overwrite`, or
    if the disk does not take the files.
    """
    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists; choose another folder or say --overwrite")
    writable_folder(out.parent)
    if onnx is not None:
        onnxruntime()
    model, original = _load(checkpoint, trust_remote_code)
    ranges = _calibrated(checkpoint, model)
    made = model
    if truncate_dim is not None:
        made = copy.deepcopy(model)
        truncate(made, truncate_dim)
    if onnx is not None:
        check_exportable(made)
    sample = [*EDGE_TEXTS, *texts]
    with _disk(out), whole_folder(out) as partial:
        made.save(str(partial), create_model_card=False)
        if results is not None:
            write_json(partial / "results.json", results)
        exported = SentenceTransformer(
            str(partial), device="cpu", trust_remote_code=trust_remote_code
        )
        queries, documents = exported.encode_query(sample), exported.encode_document(sample)
        dims = truncate_dim
        difference = max(
            _difference(encode(model, sample, "query", truncate_dim=dims), queries),
            _difference(encode(model, sample, "document", truncate_dim=dims), documents),
            _difference(original.encode_query(sample, truncate_dim=dims), queries),
            _difference(original.encode_document(sample, truncate_dim=dims), documents),
        )
        if not difference <= TOLERANCE:
            raise UserError(
                f"{out}: the exported model differs from its checkpoint by {difference:.2g} "
                f"(limit {TOLERANCE:.0e}); nothing was written"
            )
        if ranges:
            width = exported.get_embedding_dimension() or max(ranges)
            kept = {w: found for w, found in ranges.items() if w <= width}
            settings = ModelConfig(path=str(partial), trust_remote_code=trust_remote_code)
            write_ranges(partial, kept, model_fingerprint(load_encoder(settings, "export")))
        parity: dict[str, Any] = {}
        if onnx is not None:

            def proven(texts: Sequence[str], role: Role) -> NDArray[np.float32]:
                return np.asarray(vectors(model, texts, role, truncate_dim=truncate_dim))

            parity = write_variants(made, partial, onnx, proven, trust_remote_code)
            write_json(partial / "parity.json", parity)
        whole = without_section(card) + (onnx_section(parity) if parity else "")
        (partial / "README.md").write_text(whole, encoding="utf-8")
    return Exported(difference, parity)


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


def _calibrated(
    checkpoint: str | Path | SentenceTransformer, model: SentenceTransformer
) -> dict[int, Ranges]:
    """The ranges stored with a checkpoint, by width; a model without a folder has none."""
    if isinstance(checkpoint, SentenceTransformer):
        return {}
    return read_ranges(Path(resolve(str(checkpoint), "model")), model_fingerprint(model))


def _difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Zero vectors, which a static model gives for a text without known tokens, stay zero."""
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12) for rows in (a, b)]
    return float(np.abs(units[0] - units[1]).max())


@contextmanager
def _disk(out: Path) -> Iterator[None]:
    """Say in one line that the disk did not take a file; safetensors has an error of its own."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{out}: cannot be written ({reason}); make room or choose another disk; nothing was "
            "left behind"
        ) from None
