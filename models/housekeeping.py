"""Looking after the stores: what there is, whether it is sound, and making room."""

import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from tercet.cache import NOT_OURS, READING, changed, locked
from tercet.errors import UserError
from tercet.files import cache_folder
from tercet.models.shards import (
    FORMAT,
    MANIFEST,
    Manifest,
    is_broken,
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
    found = _all_in(stores_folder(folder), _look)
    if folder is None:
        for kind in OTHERS:
            found += _all_in(cache_folder() / kind, partial(_other, kind=kind))
    return sorted(found, key=lambda store: store.used, reverse=True)


def damaged(stores: Sequence[Stored]) -> list[Path]:
    """Hash everything finished in `stores`: the files that are missing or changed."""
    bad: list[Path] = []
    with progress("verify", sum(store.size for store in stores)) as advance:
        for store in stores:
            bad += _damaged_files(store)
            advance(store.size)
    return bad


def _damaged_files(store: Stored) -> list[Path]:
    """Its files that are not sound; none if a run is at work on it, which looks itself.

    A run may have been at work while we looked, so what seems bad is looked at again without one.
    """
    with suppress(FileNotFoundError):  # the whole store is removed while it is looked at
        if _unsound_files(store) and store.place.exists():
            with locked(store.place, wait=False) as held:
                return _unsound_files(store) if held else []
    return []


def _unsound_files(store: Stored) -> list[Path]:
    place = store.place
    if store.kind == "vectors":
        manifest = store.manifest and read_manifest(place)
        if manifest is None:
            return [place / MANIFEST] if store.state == "unreadable" and is_broken(place) else []
        return [shard_path(place, s) for s in unsound(place, manifest, _finished(place, manifest))]
    if store.kind == "pairs":
        return [path for path in sorted(place.glob("[!.]*.npz")) if not _is_sound_zip(path)]
    notes = [*place.glob("[!.]*/list.json"), *place.glob("tokens.json")]
    return [file for note in notes for file in changed(note)]


def _is_sound_zip(path: Path) -> bool:
    """By the checksums that it holds."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except FileNotFoundError:
        raise
    except Exception:  # whatever zipfile makes of changed bytes
        return False


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
    """Delete a store; False, and nothing done, if a run makes it or reads what is in it.

    Likewise if it is another user's, or on a disk that may only be read.
    """
    place = store.place
    with locked(place, wait=False) as held, locked(place, name=READING, wait=False) as unread:
        free = bool(held and unread)
        if free:  # out of sight first: who opens the store from now on makes another
            try:
                place.rename(place.with_name(f".{place.name}.{secrets.token_hex(8)}.gone"))
            except OSError as error:
                if error.errno not in NOT_OURS:
                    raise
                free = False
    for gone in place.parent.glob(".*.gone"):
        shutil.rmtree(gone, ignore_errors=True)
    return free


def read_bytes(text: str, where: str = "--keep-bytes") -> int:
    """
    >>> read_bytes("1.5 GB")
    1500000000
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B|)\s*", text, re.IGNORECASE)
    if found is None:
        raise UserError(f"{where}: {text!r} is not a size; write 500MB or 20GB")
    return round(float(found[1]) * UNITS.get(found[2].upper(), 1))


def _all_in(folder: Path, look: Callable[[Path], Stored]) -> list[Stored]:
    """What lies in a folder, which need not be there.

    A store that is removed while it is looked at, or that is closed to us, is passed over.
    """
    found = []
    try:
        places = list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be read ({error.strerror}); set TERCET_CACHE to another folder"
        ) from None
    for place in places:
        with suppress(FileNotFoundError, PermissionError):
            if place.is_dir() and not place.name.startswith("."):  # half made or half gone
                found.append(look(place))
    return found


def _other(place: Path, kind: str) -> Stored:
    """Files without a manifest: what reads them finds out itself whether they are whole."""
    used = datetime.fromtimestamp(place.stat().st_mtime, UTC)  # see `note_use`
    size = sum(file.st_size for file in _files(place))
    return Stored(place, None, size, used, "complete", kind)


def _look(place: Path) -> Stored:
    written = written_format(place)
    manifest = read_manifest(place) if written == FORMAT else None
    if manifest is None:
        state = "unreadable" if written in (None, FORMAT) else f"format {written}"
    else:
        finished = len(_finished(place, manifest))
        state = "complete" if manifest.complete else f"{finished} of {manifest.shards} shards"
    used = (place / MANIFEST) if (place / MANIFEST).exists() else place
    when = datetime.fromtimestamp(used.stat().st_mtime, UTC)
    return Stored(place, manifest, sum(file.st_size for file in _files(place)), when, state)


def _files(place: Path) -> list[os.stat_result]:
    """Of every file below a folder; one that a run removes or renames meanwhile is passed over.

    So is a link that leads nowhere.
    """
    found = []
    for folder, _, names in os.walk(place):
        for name in names:
            with suppress(OSError):
                found.append(Path(folder, name).stat())
    return found


def _finished(place: Path, manifest: Manifest) -> list[int]:
    """The shards that should be there: all of a complete store, or those whose hash is noted."""
    if manifest.complete:
        return list(range(manifest.shards))
    return sorted(int(note.stem) for note in place.glob("[0-9]*.sha256"))
