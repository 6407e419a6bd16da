"""A checkpoint's model as a folder that `SentenceTransformer(path)` loads, proven on real texts."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig
from tercet.errors import UserError
from tercet.export.graph import check_exportable
from tercet.export.onnx_card import exported_section, without_section
from tercet.export.parity import refuse_stretched, stretch
from tercet.export.runtime import onnxruntime
from tercet.export.sample import edge_texts
from tercet.export.variants import OnnxOptions, write_variants
from tercet.files import (
    check_replaceable,
    disk_errors,
    library_errors,
    whole_folder,
    write_json,
)
from tercet.models import (
    Role,
    encode,
    load_encoder,
    max_length,
    model_fingerprint,
    resolve,
    route,
    truncate,
    vectors,
)
from tercet.models.quantise import Ranges, read_ranges, write_ranges

MODULES = "modules.json"  # by which a folder is known to be a model's
LONG = 2_000  # tokens that a text has at most here; graphs are asked with longer ones
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
    keep: Sequence[str | Path] = (),
) -> Exported:
    """Write a model, or that of `checkpoint`, to `out`: `card` as README.md, `results` as JSON.

    The folder is loaded back with sentence-transformers alone and must give the vectors that
    Tercet and the untouched checkpoint give for `texts` and a few awkward ones, compared as unit
    vectors, and cut to `truncate_dim` dimensions if it says so, or else the model's own settings.
    Their lengths, which a model compared by dot has, must be those that Tercet gives, to 0.1 %.
    Ranges of int8 vectors that were stored with `checkpoint` come along. `onnx` adds graphs and
    parity.json, and what they measured to the card, which tells the model's size in any case.
    Raises UserError, leaving nothing behind, if the vectors differ by more than 1e-6 or a graph
    is beyond its limit, if `checkpoint` is not a model, if the disk does not take the files, or if
    `out` exists without `overwrite`, is no model's folder, or holds `checkpoint` or one of `keep`.
    """
    sources = [*keep, *(onnx.sources if onnx is not None else ())]
    if not isinstance(checkpoint, SentenceTransformer):
        sources.append(resolve(str(checkpoint), "model"))
    check_replaceable(out, MODULES, overwrite=overwrite, keep=sources)
    if onnx is not None:
        onnxruntime()
    model, original = _load(checkpoint, trust_remote_code)
    ranges = _calibrated(checkpoint, model)
    dims = model.truncate_dim if truncate_dim is None else truncate_dim
    with model.truncate_embeddings(None), original.truncate_embeddings(None):
        made = model if dims is None else copy.deepcopy(model)
        if dims is not None:
            truncate(made, dims)
        if onnx is not None:
            check_exportable(made)
        with disk_errors(out), whole_folder(out) as partial:
            made.save(str(partial), create_model_card=False)
            if results is not None:
                write_json(partial / "results.json", results)
            longest = max(max_length(route(model, role)) for role in get_args(Role))
            sample = [*edge_texts(min(longest, LONG)), *texts]
            difference = _proven(partial, out, model, original, sample, dims, trust_remote_code)
            _keep_ranges(ranges, partial, trust_remote_code)
            parity: dict[str, Any] = {}
            if onnx is not None:

                def reference(texts: Sequence[str], role: Role) -> NDArray[np.float32]:
                    return np.asarray(vectors(model, texts, role, truncate_dim=dims))

                parity = write_variants(made, partial, onnx, reference, trust_remote_code)
                write_json(partial / "parity.json", parity)
            whole = without_section(card) + exported_section(made, parity)
            (partial / "README.md").write_text(whole, encoding="utf-8")
    return Exported(difference, parity)


def _proven(
    folder: Path,
    out: Path,
    model: SentenceTransformer,
    original: SentenceTransformer,
    texts: Sequence[str],
    dims: int | None,
    trust_remote_code: bool,
) -> float:
    """The largest difference of a component between `folder` and both models cut to `dims`.

    Raises UserError naming `out` if it is beyond the limit, if a vector's length is not what
    Tercet gives to 0.1 %, or if the folder cannot be loaded.
    """
    with library_errors(f"{out}: sentence-transformers cannot load it", "nothing was written"):
        exported = SentenceTransformer(
            str(folder), device="cpu", trust_remote_code=trust_remote_code
        )
    written = exported.encode_query(texts), exported.encode_document(texts)
    ours = [encode(model, texts, role, truncate_dim=dims) for role in ("query", "document")]
    plain = [
        original.encode_query(texts, truncate_dim=dims),
        original.encode_document(texts, truncate_dim=dims),
    ]
    wanted = list(zip([*ours, *plain], [*written, *written], strict=True))
    found = float(np.max([_difference(a, b) for a, b in wanted]))  # NaN, if any is
    if not found <= TOLERANCE:
        raise UserError(
            f"{out}: the exported model differs from its checkpoint by {found:.2g} "
            f"(limit {TOLERANCE:.0e}); nothing was written"
        )
    # The model as sentence-transformers alone reads it may leave vectors to be normalised.
    refuse_stretched(str(out), max(stretch(a, b) for a, b in wanted[: len(ours)]))
    return found


def _keep_ranges(ranges: Mapping[int, Ranges], folder: Path, trust_remote_code: bool) -> None:
    """Store those of the checkpoint's ranges that are no wider than the model in `folder`."""
    if not ranges:
        return
    settings = ModelConfig(path=str(folder), trust_remote_code=trust_remote_code)
    model = load_encoder(settings, "export")
    width = model.get_embedding_dimension() or max(ranges)
    kept = {w: found for w, found in ranges.items() if w <= width}
    if kept:
        write_ranges(folder, kept, model_fingerprint(model))


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
