"""Vectors on disk: files of rows, each with its hash, under a manifest that says what they are.

A store is a folder: `00000.npy`, `00001.npy`, ... of `shard_rows` rows each, and `manifest.json`.
While one is being filled, `00000.sha256` beside a shard holds its hash; the manifest takes the
hashes over when no shard is missing. Every file is written whole or not at all.
"""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tercet.cache import CACHE, keep, note_use, save_array
from tercet.errors import UserError
from tercet.files import DAY, disk_errors, sha256, whole_file, write_json, write_text

FORMAT = 3  # of a store; raised when a reader of today could not read it
MANIFEST = "manifest.json"
LEAST_ROWS = 64  # of a shard: what fewer lose to padding would be more than what they save
ENOUGH_ROWS = 512  # to sort well by length
SHARDS, MOST_SHARDS = 64, 128  # a killed run loses a part of this size; open files stay few


@dataclass(frozen=True)
class Manifest:
    """What a store holds and what made it."""

    fingerprint: str  # of everything that shapes the vectors, texts included
    model: str  # where it came from, for people
    model_fingerprint: str
    role: str
    prompt: str
    max_length: int  # tokens
    model_dtype: str
    dtype: str  # of the stored numbers
    dim: int
    rows: int
    shard_rows: int
    created: str  # ISO 8601, UTC
    hashes: tuple[str, ...] = ()  # SHA-256 of each shard; none before the last one is there

    @property
    def shards(self) -> int:
        """How many files the rows are in."""
        return -(-self.rows // self.shard_rows)

    @property
    def complete(self) -> bool:
        """Whether every shard was there once."""
        return len(self.hashes) == self.shards

    def rows_of(self, shard: int) -> range:
        """The rows of the whole that this shard holds."""
        return range(self.rows)[shard * self.shard_rows : (shard + 1) * self.shard_rows]


def rows_of_a_shard(rows: int) -> int:
    """How many of all rows go into one file.

    >>> [rows_of_a_shard(n) for n in (10, 12_000, 50_000, 1_000_000)]
    [64, 188, 512, 7813]
    """
    small = min(ENOUGH_ROWS, max(LEAST_ROWS, -(-rows // SHARDS)))
    return max(small, -(-rows // MOST_SHARDS))


class Vectors:
    """(N, H) float32 vectors over memory-mapped shards: read-only, cheap to open, never all read.

    Indexed like an array by a slice, by integers (n,) or by one. `np.asarray` reads the whole.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(
        self, shards: Sequence[NDArray[np.float32]], shape: tuple[int, int], fingerprint: str
    ) -> None:
        """shards: each (rows, H), all but the last of the same number of rows."""
        self.shape, self.fingerprint = shape, fingerprint
        self._shards = tuple(shards)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(
        self, rows: slice | int | np.integer | NDArray[np.int64]
    ) -> NDArray[np.float32]:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._between(start, stop)
            return self._gather(np.arange(start, stop, step))
        if isinstance(rows, (int, np.integer)):
            return self._gather(np.array([rows]))[0]
        return self._gather(np.asarray(rows))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("the shards are separate files: one array of them is a copy")
        return np.array(self[:], dtype=dtype, copy=copy)

    def _between(self, start: int, stop: int) -> NDArray[np.float32]:
        parts, first = [np.empty((0, self.shape[1]), dtype=np.float32)], 0
        for shard in self._shards:
            part = shard[max(0, start - first) : max(0, stop - first)]
            if len(part) == stop - start:
                return part  # within one file: nothing is copied
            parts.append(part)
            first += len(shard)
        return np.concatenate(parts)

    def _gather(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        if not np.issubdtype(rows.dtype, np.integer) or rows.ndim != 1:
            raise IndexError(f"rows are integers (n,), not {rows.dtype} {rows.shape}")
        rows = np.where(rows < 0, rows + len(self), rows)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"row out of range: there are {len(self)}")
        found = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        shard, within = np.divmod(rows, len(self._shards[0]) if self._shards else 1)
        for number in np.unique(shard):
            here = shard == number
            found[here] = self._shards[number][within[here]]
        return found


def read_manifest(place: Path) -> Manifest | None:
    """The manifest of a store; None if there is none that can be used.

    Raises UserError if a newer version wrote it.
    """
    try:
        written, found = _read(place)
    except FileNotFoundError:
        return None
    if written is not None and written > FORMAT:
        raise UserError(
            f"{place}: written by a newer version of tercet (format {written}, this one reads "
            f"{FORMAT}); update tercet, or remove the folder"
        )
    return _manifest(written, found)


def written_format(place: Path) -> int | None:
    """The version of the store's layout; None if there is no manifest or no reading it."""
    try:
        return _read(place)[0]
    except FileNotFoundError:
        return None


def is_broken(place: Path) -> bool:
    """Whether there is a manifest that no version can have written so."""
    try:
        written, found = _read(place)
    except FileNotFoundError:
        return False
    return written is None or (written == FORMAT and _manifest(written, found) is None)


def _read(place: Path) -> tuple[int | None, dict[str, Any]]:
    """The layout's version and the whole of a manifest; (None, {}) if there is no reading it."""
    try:
        found: dict[str, Any] = json.loads((place / MANIFEST).read_bytes())
        return int(found["format"]), found
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None, {}


def _manifest(written: int | None, found: dict[str, Any]) -> Manifest | None:
    if written != FORMAT:
        return None
    facts = {name: value for name, value in found.items() if name not in ("format", "shards")}
    try:
        hashes = tuple(str(shard["sha256"]) for shard in found["shards"])
        manifest = Manifest(**facts, hashes=hashes)
    except (KeyError, TypeError):
        return None
    kinds = {field.name: field.type for field in fields(Manifest) if field.name != "hashes"}
    if any(type(getattr(manifest, name)) is not kind for name, kind in kinds.items()):
        return None
    whole = min(manifest.rows, manifest.dim, manifest.shard_rows) >= 1
    return manifest if whole and len(hashes) in (0, manifest.shards) else None


def write_manifest(place: Path, manifest: Manifest) -> None:
    """Write it whole; for each shard its number of rows and its hash, if they are all known."""
    facts = asdict(manifest)
    shards = [
        {"rows": len(manifest.rows_of(shard)), "sha256": digest}
        for shard, digest in enumerate(facts.pop("hashes"))
    ]
    write_json(place / MANIFEST, {"format": FORMAT, **facts, "shards": shards})


def shard_path(place: Path, shard: int) -> Path:
    """Where a shard is, or is to be."""
    return place / f"{shard:05d}.npy"


def write_shard(place: Path, shard: int, vectors: NDArray[np.float32]) -> None:
    """Write the rows of a shard, then its hash. Raises UserError if the disk does not take them."""
    path = shard_path(place, shard)
    with disk_errors(place, CACHE):
        with whole_file(path) as partial:
            digest = save_array(partial, vectors)
        write_text(_note(place, shard), f"{digest}  {path.name}\n")


def known_hash(place: Path, manifest: Manifest, shard: int) -> str | None:
    """The SHA-256 a shard should have; None if it was never finished."""
    listed = manifest.hashes[shard] if shard < len(manifest.hashes) else None
    return _noted(place, shard) or listed


def _note(place: Path, shard: int) -> Path:
    return shard_path(place, shard).with_suffix(".sha256")


def _noted(place: Path, shard: int) -> str | None:
    """The hash beside a shard that the manifest has not taken over yet."""
    try:
        return _note(place, shard).read_text(encoding="utf-8").split()[0]
    except (FileNotFoundError, UnicodeDecodeError, IndexError):
        return None


def unsound(place: Path, manifest: Manifest, shards: Sequence[int]) -> list[int]:
    """Those of `shards` that are missing or whose bytes are not what they were when written.

    Raises UserError for one that cannot be read: that is the disk's trouble, or a permission's.
    """

    def sound(shard: int) -> bool:
        path = shard_path(place, shard)
        try:
            digest = known_hash(place, manifest, shard)
            return digest is not None and sha256(path) == digest
        except FileNotFoundError:
            return False
        except OSError as error:
            why = error.strerror or error
            raise UserError(
                f"{path}: cannot be read ({why}); make it readable, or remove it"
            ) from None

    with ThreadPoolExecutor(4) as pool:  # hashing releases the GIL
        return [
            shard for shard, good in zip(shards, pool.map(sound, shards), strict=True) if not good
        ]


def begin(place: Path, facts: Manifest, *, alone: bool) -> Manifest:
    """The manifest of a store that is there, or of one that is begun now with these facts.

    For the holder of the lock: clears away what killed runs left behind. Unless it is surely
    `alone`, what is half written may be another run's, and is left for a day.
    """
    with disk_errors(place, CACHE):
        for partial in place.glob(".*.partial"):
            if alone or _age(partial) > DAY:
                with suppress(OSError):  # gone, or in the folder of another user
                    partial.unlink()
        found = read_manifest(place)
        if found is not None and _is_of(found, facts):
            return found
        for note in place.glob("*.sha256"):  # of shards that may have been cut otherwise
            note.unlink(missing_ok=True)
        write_manifest(place, facts)
    return facts


def _is_of(found: Manifest, facts: Manifest) -> bool:
    """Whether a manifest speaks of the same rows; into which shards they are cut is its own."""
    names = ("fingerprint", "rows", "dim", "dtype")
    return all(getattr(found, name) == getattr(facts, name) for name in names)


def _age(path: Path) -> float:
    """Seconds since a file was written; 0 if it has gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def finish(place: Path, manifest: Manifest) -> Manifest:
    """Take the hashes of new shards into the manifest, and note that the store was used."""
    with disk_errors(place, CACHE):
        notes = list(place.glob("*.sha256"))
        if notes or not manifest.complete:
            manifest = replace(manifest, hashes=_all_hashes(place, manifest))
            write_manifest(place, manifest)
            for note in notes:
                note.unlink(missing_ok=True)
    note_use(place / MANIFEST)
    return manifest


def open_vectors(place: Path, manifest: Manifest) -> Vectors:
    """Map the shards of a finished store, which `tercet store prune` leaves while they are read."""
    maps = [np.load(shard_path(place, s), mmap_mode="r") for s in range(manifest.shards)]
    found = Vectors(maps, (manifest.rows, manifest.dim), manifest.fingerprint)
    keep(place, found)
    return found


def _all_hashes(place: Path, manifest: Manifest) -> tuple[str, ...]:
    noted = [_noted(place, shard) for shard in range(manifest.shards)]
    # read after the notes: another run, where there are no locks, may have finished the store
    latest = read_manifest(place) or manifest
    hashes = [note or known_hash(place, latest, shard) for shard, note in enumerate(noted)]
    if None in hashes:
        raise UserError(
            f"{shard_path(place, hashes.index(None))} is not there, though a process has made it; "
            "TERCET_CACHE has to be on a disk that all processes share"
        )
    return tuple(filter(None, hashes))
