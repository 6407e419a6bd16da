"""Vectors in fewer bytes that stay comparable: int8 codes and bits.

Codes can be compared only if all were made by one rule. So the ranges of an int8 code are
calibrated once, stored with the model, and applied to queries and documents alike; per-vector
codes bring their scale along, and bits need no ranges.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tercet.errors import UserError
from tercet.files import write_json

Precision = Literal["float32", "int8", "binary"]
Floats = NDArray[np.float32]
Codes = NDArray[np.int8]

FILE = "quantisation.json"  # beside a model's other files
FORMAT = 1
LEVEL = 127  # the largest code; -128 is left out, so that -x has the code of x with another sign
SAMPLE = 100_000  # vectors that ranges are calibrated on
BLOCK = 16_384  # rows read at a time


class Readable(Protocol):
    """(N, H) vectors that are read by slices: an array, a memory map, a store."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Ranges:
    """How far the numbers of a model's vectors reach: the least and largest of each dimension."""

    low: Floats  # (H,)
    high: Floats  # (H,)

    @property
    def largest(self) -> float:
        """The largest absolute value of any dimension; 1 where all are 0."""
        return float(max(np.abs(self.low).max(), np.abs(self.high).max())) or 1.0


class Mapped:
    """(N, width) float32 rows, made from those of `rows` as they are read."""

    def __init__(
        self, rows: Readable, change: Callable[[NDArray[Any]], Floats], width: int
    ) -> None:
        self.shape = (len(rows), width)
        self._rows, self._change = rows, change

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice, /) -> Floats:
        return self._change(self._rows[rows])


def calibrate(vectors: Readable, *, sample: int = SAMPLE, seed: int = 0) -> Ranges:
    """Ranges of (N, H) vectors: of all, or of a seeded sample of `sample` rows.

    Raises UserError if there are none, or if a number is not finite.
    """
    if not len(vectors):
        raise UserError("no vectors to calibrate on: give a collection with documents")
    count = min(sample, len(vectors))
    chosen = np.random.default_rng(seed).choice(len(vectors), count, replace=False)
    rows = rows_at(vectors, chosen)
    low, high = rows.min(axis=0), rows.max(axis=0)
    if not np.isfinite([low, high]).all():
        raise UserError("vectors to calibrate on: not finite; encode them again")
    return Ranges(low, high)


def rows_at(vectors: Readable, positions: NDArray[np.int64]) -> Floats:
    """(n, H) the rows at these positions (n,), in their order; read slice by slice."""
    order = np.argsort(positions, kind="stable")
    ordered = positions[order]
    found = np.empty((len(positions), vectors.shape[1]), dtype=np.float32)
    for start in range(0, len(vectors), BLOCK):
        low, high = np.searchsorted(ordered, (start, start + BLOCK))
        if low < high:
            part = vectors[start : start + BLOCK]
            found[order[low:high]] = part[ordered[low:high] - start]
    return found


def truncated(vectors: Readable, width: int, unit: bool) -> Mapped:
    """The first `width` dimensions of each vector; `unit`: made unit vectors again."""
    return Mapped(vectors, lambda rows: _cut(rows, width, unit), width)


def int8_codes(vectors: Readable, ranges: Ranges) -> Codes:
    """(N, H) codes round(127 x / r), r the largest absolute value of any dimension: one scale.

    Inner products of codes are those of the vectors times (127 / r)^2 up to rounding. What
    exceeds the ranges is clipped.
    """
    scale = np.float32(LEVEL / ranges.largest)
    return _blockwise(vectors, lambda rows: _rounded(rows * scale), np.int8)


def int8_codes_per_vector(vectors: Readable) -> tuple[Codes, Floats]:
    """(N, H) codes round(127 x / r) and (N,) scales r / 127, r the vector's own largest value.

    A code times its scale is its vector. Needs no ranges, and 4 bytes more.
    """
    codes = _blockwise(vectors, lambda rows: _rounded(rows / _scales(rows)[:, None]), np.int8)
    return codes, _blockwise(vectors, _scales, np.float32)


def int8_codes_min_max(vectors: Readable, ranges: Ranges) -> Codes:
    """(N, H) codes floor(255 (x - low) / (high - low)) - 128 of each dimension, clipped.

    As `sentence_transformers.util.quantize_embeddings` has them: a dimension's own offset and
    scale, so inner products of such codes are not those of the vectors.
    """
    steps = (ranges.high - ranges.low) / 255
    steps = np.where(steps == 0, 1, steps)

    def coded(rows: Floats) -> Codes:
        levels = np.floor((rows - ranges.low) / steps)
        return (np.clip(levels, 0, 255) - 128).astype(np.int8)

    return _blockwise(vectors, coded, np.int8)


def bits(vectors: Readable) -> NDArray[np.uint8]:
    """(N, ceil(H / 8)) bytes: bit 1 where a dimension is above 0, the first dimension highest."""
    return _blockwise(vectors, lambda rows: np.packbits(rows > 0, axis=1), np.uint8)


def signs(packed: Readable, width: int) -> Mapped:
    """Bits as rows (N, width) of +1 and -1: their inner product is width - 2 Hamming distance."""

    def unpacked(rows: NDArray[np.uint8]) -> Floats:
        return np.unpackbits(rows, axis=1, count=width).astype(np.float32) * 2 - 1

    return Mapped(packed, unpacked, width)


def numbers(codes: Codes, scales: Floats | None = None) -> Mapped:
    """int8 codes (N, H) as rows to multiply, each times its scale (N,) if they have one."""

    def decoded(at: NDArray[np.int64]) -> Floats:
        found = codes[at].astype(np.float32)
        return found if scales is None else found * scales[at, None]

    return Mapped(np.arange(len(codes)), decoded, codes.shape[1])


def vector_bytes(precision: Precision, width: int) -> int:
    """Bytes of one vector.

    >>> [vector_bytes(p, 384) for p in ("float32", "int8", "binary")]
    [1536, 384, 48]
    """
    return {"float32": 4 * width, "int8": width, "binary": -(-width // 8)}[precision]


def write_ranges(folder: Path, ranges: Mapping[int, Ranges], fingerprint: str) -> Path:
    """Store ranges, one for each width, with the model in `folder` whose fingerprint this is."""
    widths = {
        str(width): {"low": found.low.tolist(), "high": found.high.tolist()}
        for width, found in ranges.items()
    }
    path = folder / FILE
    write_json(path, {"format": FORMAT, "model_fingerprint": fingerprint, "widths": widths})
    return path


def read_ranges(folder: Path, fingerprint: str) -> dict[int, Ranges]:
    """The ranges stored with a model by width; none if it has no such file.

    Raises UserError if they are of other weights, of another version, or damaged.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise UserError(
                f"{path}: of another version of tercet (format {found['format']}, this one reads "
                f"{FORMAT}); calibrate again"
            )
        if found["model_fingerprint"] != fingerprint:
            raise UserError(
                f"{path}: calibrated on other weights than the model's; calibrate again"
            )
        return {int(width): _ranges(part, int(width)) for width, part in found["widths"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not readable ({error}); calibrate again") from None


def _ranges(part: Mapping[str, Any], width: int) -> Ranges:
    ranges = Ranges(*(np.array(part[side], dtype=np.float32) for side in ("low", "high")))
    if not ranges.low.shape == ranges.high.shape == (width,):
        raise ValueError(f"width {width} has {ranges.low.shape} numbers")
    return ranges


def _cut(rows: Floats, width: int, unit: bool) -> Floats:
    cut = np.ascontiguousarray(rows[:, :width], dtype=np.float32)
    if not unit:
        return cut
    return cut / np.linalg.norm(cut, axis=1, keepdims=True).clip(1e-12)


def _rounded(rows: Floats) -> Codes:
    return np.clip(np.rint(rows), -LEVEL, LEVEL).astype(np.int8)


def _scales(rows: Floats) -> Floats:
    """(n,) largest absolute value / 127; 1 for a zero vector, whose codes are zeros anyway."""
    largest = np.abs(rows).max(axis=1, initial=0.0) / LEVEL
    return np.where(largest > 0, largest, 1).astype(np.float32)


def _blockwise(vectors: Readable, change: Callable[[Any], Any], dtype: Any) -> NDArray[Any]:
    """What `change` makes of all rows, read block by block."""
    blocks = range(0, len(vectors), BLOCK)
    parts = [change(vectors[start : start + BLOCK]) for start in blocks]
    empty = change(np.empty((0, vectors.shape[1]), dtype=np.float32))
    return np.concatenate([empty, *parts]).astype(dtype, copy=False)
