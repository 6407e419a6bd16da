"""What runs keep for one another in the cache folder: who is at work on it, and full disks."""

import errno
import hashlib
import io
import json
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tercet.files import disk_errors, sha256
from tercet.progress import say

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"  # of who makes or removes what is in a folder
READING = ".reading"  # shared by those who have mapped its files; who removes it has both
CACHE = (  # what to do about a full disk
    "make room (tercet store prune) or set TERCET_CACHE to another folder, then run again: what "
    "is finished stays"
)
NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)  # another user's, or a disk to read only
OUTPUT = "make room or choose another folder (output)"


class Held(IntEnum):
    """Whether a lock is ours."""

    NO = 0
    UNSURE = 1  # the system or the file system has no locks: others may be at work as well
    YES = 2


@contextmanager
def locked(
    place: Path,
    *,
    name: str = LOCK,
    wait: bool = True,
    shared: bool = False,
    advice: str = CACHE,
) -> Iterator[Held]:
    """Hold a lock of a folder, which is made if it is missing; it dies with its process.

    Waits for whoever has it, unless told not to: then it may give `Held.NO`. `shared` lets others
    in who share it too, and keeps out who would have the folder alone: to remove it, say. A folder
    that is there and may only be read has the locks that its owner left in it. Raises UserError,
    which ends in `advice`, if one that is missing cannot be made.
    """
    with disk_errors(place, advice):
        file, held = _take(place, name, wait, shared)
    with file:
        yield held


def keep(place: Path, reader: object) -> None:
    """Keep a folder from `tercet store prune` for as long as `reader`, who maps its files, lives.

    On a network disk they are gone for a reader, too, when another machine removes them.
    """
    with suppress(OSError):  # full: then it is not kept
        file, _ = _take(place, READING, wait=True, shared=True)
        weakref.finalize(reader, file.close)


def save_array(path: Path, array: NDArray[Any]) -> str:
    """Write a .npy file and return the hex SHA-256 of its bytes.

    A disk's complaint keeps its reason; `np.save` to a plain file hides it.
    """
    with path.open("wb") as file:
        hashed = _Hashed(file)
        np.save(hashed, array)  # type: ignore[arg-type]
    return hashed.digest.hexdigest()


def note_use(place: Path) -> None:
    """Set the time of a folder to now, by which `tercet store prune` tells how long it lay unused.

    Not every disk keeps the times at which files were read. Another's folder keeps its time.
    """
    with suppress(OSError):
        os.utime(place)


def changed(note: Path) -> list[Path]:
    """The files beside a JSON file that are not there or not what it says under `sha256`.

    The file itself if it does not say so. Raises FileNotFoundError if it is not there.
    """
    try:
        hashes = json.loads(note.read_text(encoding="utf-8"))["sha256"]
        files = {note.with_name(name): digest for name, digest in hashes.items()}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [note]
    return [file for file, digest in files.items() if not file.is_file() or sha256(file) != digest]


class _Hashed:
    """A file that remembers the hash of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)


def _take(place: Path, name: str, wait: bool, shared: bool) -> tuple[IO[Any], Held]:
    while True:
        place.mkdir(parents=True, exist_ok=True)
        try:
            file = _open(place / name)
        except FileNotFoundError:  # the folder was removed in between
            continue
        if file is None:
            return io.BytesIO(), Held.UNSURE
        held = _lock(file.fileno(), place, wait, shared)
        if held is Held.NO or _is_at(file, place / name):
            return file, held
        file.close()  # while we waited it was removed, and what is locked has no name any more


def _open(path: Path) -> IO[Any] | None:
    """A file to lock, opened only to be read if it is another's; None if it cannot be there."""
    try:
        return path.open("w")
    except OSError as error:
        if error.errno not in NOT_OURS:
            raise
    try:
        return path.open()
    except FileNotFoundError:
        return None


def _lock(descriptor: int, place: Path, wait: bool, shared: bool) -> Held:
    if sys.platform == "win32":
        return Held.UNSURE
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            return Held.NO
        say(f"another run is making or reading {place}: waiting for it")
        fcntl.flock(descriptor, kind)
    except OSError:  # a network disk without locks
        return Held.UNSURE
    return Held.YES


def _is_at(file: IO[Any], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
