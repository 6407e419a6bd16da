"""Files written whole or not at all, and the hashes that name them."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from tercet.errors import UserError

PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pickled(path: Path) -> bool:
    """Whether a file is a pickle, or an archive as torch.save makes it, by name or first bytes."""
    if path.suffix.lower() in PICKLES:
        return True
    if path.suffix == ".safetensors":  # begins with a length, which may look like anything
        return False
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or (len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5)


def fingerprint(parts: Iterable[str | bytes]) -> str:
    """128-bit hex digest of a sequence of parts; moving a boundary between parts changes it.

    >>> fingerprint(["ab", "c"]) == fingerprint(["a", "bc"])
    False
    """
    digest = xxhash.xxh3_128()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; fsync and rename it there when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        _fsync(partial)
        partial.replace(path)
        _fsync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Give a temporary folder beside `path`; fsync and rename it there when the block succeeds.

    An existing `path` is replaced: the old folder stays complete until the new one is.
    With replace=False the folder that is there first stays and ours is discarded, which is right
    for a cache: several processes may fill it at once, and all write the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        partial.chmod(0o755)  # mkdtemp makes it private; what is written here is for others to read
        yield partial
        for file in sorted(partial.rglob("*")):
            _fsync(file)
        if replace and path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old)
        else:
            _rename(partial, path, may_exist=not replace)
        _fsync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _rename(partial: Path, path: Path, may_exist: bool) -> None:
    """Rename, and see only then whether `path` exists: another process may make it any time."""
    try:
        partial.rename(path)
    except OSError:
        if not (may_exist and path.is_dir()):
            raise


def write_text(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of one."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """`write_text` of indented JSON; NaN and infinity are refused, as no JSON reader takes them."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def writable_folder(path: Path) -> Path:
    """Create `path` and prove that a file can be written there, before any long work starts."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot write there ({error.strerror}); choose another") from None
    return path


def disk_trouble(error: BaseException) -> str | None:
    """What a disk complains of (full, gone, read-only), from whichever library; else None."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    found = re.search(
        r"(No space left|Read-only|File too large|quota|os error \d+)[^\"}]*", str(error)
    )
    return found[0].strip() if found else None


def cache_folder() -> Path:
    """Where token caches and vectors live: $TERCET_CACHE, else ~/.cache/tercet."""
    return Path(os.environ.get("TERCET_CACHE") or Path.home() / ".cache" / "tercet")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
