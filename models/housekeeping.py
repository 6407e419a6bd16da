"""Looking after the stores: what there is, whether it is sound, and making room."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tercet.errors import UserError
from tercet.files import cache_folder
from tercet.models.shards import (
    FORMAT,
    MANIFEST,
    Manifest,
    alone,
    read_manifest,
    shard_path,
    unsound,
    written_format,
)
from tercet.models.store import stores_folder
from tercet.progress import progress

OTHERS = ("candidates", "pairs", "tokens")  # lists of searches, scores of pairs, texts as tokens
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Stored:
    """One store as it lies on the disk."""

    place: Path
    manifest: Manifest | None  # None if another version wrote it or it cannot be read
    size: int  # bytes
    used: datetime  # the last time a run opened it
    state: str  # "complete", "3 of 40 shards", or why there is no manifest
    kind: str = "vectors"  # or another folder of the cache: OTHERS

    @property
    def model(self) -> str:
        """What people call the model: its folder, and for `<run>/model` the run."""
        parts = Path(self.manifest.model).parts if self.manifest else ()
        return next((part for part in reversed(parts) if part != "model"), "?")


def all_stored(folder: Path | None = None) -> list[Stored]:
    """Every store in `folder`, the last used first.

    By default all of the user's cache: what else is kept there counts as a store too.
    """
    found = [_look(place) for place in _folders(stores_folder(folder))]
    if folder is None:
        found += [_other(p, kind) for kind in OTHERS for p in _folders(cache_folder() / kind)]
    return sorted(found, key=lambda store: store.used, reverse=True)


def damaged(stores: Sequence[Stored]) -> list[Path]:
    """Hash every finished shard of `stores`: the files that are missing or changed."""
    bad: list[Path] = []
    with progress("verify", sum(store.size for store in stores)) as advance:
        for store in stores:
            if store.manifest is not None:
                finished = _finished(store.place, store.manifest)
                shards = unsound(store.place, store.manifest, finished)
                bad += [shard_path(store.place, shard) for shard in shards]
            elif store.state == "unreadable":
                bad.append(store.place / MANIFEST)
            advance(store.size)
    return bad


def to_prune(
    stores: Sequence[Stored],
    *,
    older_than: timedelta | None = None,
    keep_bytes: int | None = None,
    model: str | None = None,
) -> list[Stored]:
    """Which of all `stores` to remove, the longest unused first.

    Those of `model` (its name or path) that were not used for `older_than`, both if given; with
    `keep_bytes` no more of them than it takes to bring all stores together down to that.
    """
    now, kept = datetime.now(UTC), sum(store.size for store in stores)
    chosen: list[Stored] = []
    for store in sorted(stores, key=lambda store: store.used):
        path = store.manifest.model if store.manifest else None
        fits = model is None or model in (store.model, path)
        old = older_than is None or now - store.used > older_than
        if fits and old and (keep_bytes is None or kept > keep_bytes):
            chosen.append(store)
            kept -= store.size
    return chosen


def remove(store: Stored) -> bool:
    """Delete a store; False, and nothing done, if a run is at work on it."""
    with alone(store.place, wait=False) as held:
        if held:
            shutil.rmtree(store.place)
    return held


def read_bytes(text: str, where: str = "--keep-bytes") -> int:
    """
    >>> read_bytes("1.5 GB")
    1500000000
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B|)\s*", text, re.IGNORECASE)
    if found is None:
        raise UserError(f"{where}: {text!r} is not a size; write 500MB or 20GB")
    return round(float(found[1]) * UNITS.get(found[2].upper(), 1))


def _folders(folder: Path) -> list[Path]:
    return [place for place in folder.iterdir() if place.is_dir()] if folder.is_dir() else []


def _other(place: Path, kind: str) -> Stored:
    """Files without a manifest: what reads them finds out itself whether they are whole."""
    files = [file.stat() for file in place.rglob("*") if file.is_file()]
    used = max([place.stat().st_mtime, *(file.st_atime for file in files)])
    size = sum(file.st_size for file in files)
    return Stored(place, None, size, datetime.fromtimestamp(used, UTC), "complete", kind)


def _look(place: Path) -> Stored:
    written = written_format(place)
    manifest = read_manifest(place) if written == FORMAT else None
    if manifest is None:
        state = "unreadable" if written in (None, FORMAT) else f"format {written}"
    else:
        finished = len(_finished(place, manifest))
        state = "complete" if manifest.complete else f"{finished} of {manifest.shards} shards"
    files = [file.stat() for file in place.iterdir()]
    used = (place / MANIFEST) if (place / MANIFEST).exists() else place
    when = datetime.fromtimestamp(used.stat().st_mtime, UTC)
    return Stored(place, manifest, sum(file.st_size for file in files), when, state)


def _finished(place: Path, manifest: Manifest) -> list[int]:
    """The shards that should be there: all of a complete store, or those whose hash is noted."""
    if manifest.complete:
        return list(range(manifest.shards))
    return sorted(int(note.stem) for note in place.glob("[0-9]*.sha256"))
