"""What runs keep for one another in the cache folder: who is at work on it, and full disks."""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
from numpy.typing import NDArray

from tercet.files import disk_errors
from tercet.progress import say

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
CACHE = (  # what to do about a full disk
    "make room (tercet store prune) or set TERCET_CACHE to another folder, then run again: what "
    "is finished stays"
)
OUTPUT = "make room or choose another folder (output)"


class Held(IntEnum):
    """Whether a lock is ours."""

    NO = 0
    UNSURE = 1  # the system or the file system has no locks: others may be at work as well
    YES = 2


@contextmanager
def locked(
    place: Path, *, wait: bool = True, shared: bool = False, advice: str = CACHE
) -> Iterator[Held]:
    """Hold the lock of a folder, which is made if it is missing; it dies with its process.

    Waits for whoever has it, unless told not to: then it may give `Held.NO`. `shared` lets others
    in who share it too, and keeps out who would have the folder alone: to remove it, say. Raises
    UserError, which ends in `advice`, if the folder cannot be written.
    """
    with disk_errors(place, advice):
        file, held = _take(place, wait, shared)
    with file:
        yield held


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


class _Hashed:
    """A file that remembers the hash of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)


def _take(place: Path, wait: bool, shared: bool) -> tuple[TextIO, Held]:
    while True:
        place.mkdir(parents=True, exist_ok=True)
        try:
            file = (place / LOCK).open("w")
        except FileNotFoundError:  # the folder was removed in between
            continue
        held = _lock(file.fileno(), place, wait, shared)
        if held is Held.NO or _is_at(file, place / LOCK):
            return file, held
        file.close()  # while we waited it was removed, and what is locked has no name any more


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


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
