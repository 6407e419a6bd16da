"""Ranges of int8 codes, measured once and stored with the model."""

from collections.abc import Sequence
from pathlib import Path

from tercet.configs import ModelConfig
from tercet.data import read_corpus
from tercet.errors import UserError
from tercet.evaluation.compression import DIMS
from tercet.models import (
    EMBEDDED,
    default_device,
    load_encoder,
    model_fingerprint,
    resolve,
    vectors,
)
from tercet.models.encode import vector_width
from tercet.models.quantise import FILE, calibrate, read_ranges, truncated, write_ranges
from tercet.models.routes import gives_unit_vectors
from tercet.peers import together
from tercet.processes import on_main
from tercet.stages.names import refuse_wide
from tercet.train.checkpoint import TENSORS


@together()
def calibrate_model(
    model: str,
    data: Sequence[str | Path],
    *,
    dims: Sequence[int] = DIMS,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """Measure ranges on the documents of `data` and write them into the model's folder.

    For the model's full width and every width of `dims` below it. `data` is what `read_corpus`
    takes. Returns the file. Raises UserError for a model that is not a folder of one's own, for one
    that has ranges of these weights already, unless `overwrite`, and for a width that is none of
    the usual ones and not below the model's.
    """
    resolve(model, "model")
    folder = Path(model).expanduser()
    if model == EMBEDDED or not folder.is_dir():
        raise UserError(
            f"{model}: ranges are stored in a model's folder, and this is none; export it to one "
            "first (tercet export)"
        )
    if (folder.parent / TENSORS).exists():
        raise UserError(
            f"{model}: a checkpoint stays as it was written; calibrate the run's model/ folder, or "
            "an export"
        )
    texts = read_corpus(data)
    encoder = load_encoder(ModelConfig(path=model, trust_remote_code=trust_remote_code), "model")
    fingerprint = model_fingerprint(encoder)
    if not overwrite and _has_ranges(folder, fingerprint):
        raise UserError(
            f"{folder / FILE}: the model has ranges, and codes made with them cannot be compared "
            "with codes of others; --overwrite replaces them"
        )
    refuse_wide(dims, vector_width(encoder))
    found = vectors(encoder.to(default_device()), texts, "document")
    width, unit = found.shape[1], gives_unit_vectors(encoder)
    widths = [width, *sorted({d for d in dims if d < width}, reverse=True)]

    def measure() -> Path:
        ranges = {w: calibrate(truncated(found, w, unit and w < width)) for w in widths}
        return write_ranges(folder, ranges, fingerprint)

    return on_main(measure)


def _has_ranges(folder: Path, fingerprint: str) -> bool:
    """Whether codes can have been made with what is stored there."""
    try:
        return bool(read_ranges(folder, fingerprint))
    except UserError:  # of other weights, or damaged
        return False
