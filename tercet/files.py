"""Files written whole or not at all, and the hashes that name them."""

import errno
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import xxhash

from tercet.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # of the two slashes a Path keeps one
DAY = 86_400  # seconds: what lies half written for longer was left behind


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


def refuse_outside(names: Iterable[str | Path], file: str) -> None:
    """Raise ValueError if `file` names something that may lie outside its own folder."""
    for name in map(Path, names):
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"its {file} names what is outside its folder: {name}")


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
    """Give a temporary name beside `path`; fsync and rename it there when the block succeeds.

    Files of any name that killed processes left half written in that folder are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in _left_behind(path.parent, ".+", "partial"):
        with suppress(OSError):  # a folder, another user's, or gone
            left.unlink()
    partial = path.with_name(f"{_prefix(path)}{secrets.token_hex(4)}.partial")
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
    What a killed process left half written beside `path` is removed, and the old folder put back if
    it was killed, or a rename failed, between the two renames of a replacement. Processes of other
    machines and containers are not seen from here: what they left goes after a day.
    """
    path = path.resolve()  # "." has no name to put another beside, and a link is not a folder
    path.parent.mkdir(parents=True, exist_ok=True)
    _put_back(path)
    _sweep(path, "partial")
    partial = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=".partial", dir=path.parent))
    try:
        partial.chmod(0o755)  # mkdtemp makes it private; what is written here is for others to read
        yield partial
        for file in (*sorted(partial.rglob("*")), partial):
            if file.is_file() and not file.is_symlink():
                file.chmod(file.stat().st_mode | 0o444)  # safetensors 0.8 writes for us alone
            _fsync(file)
        if replace and path.exists():
            old = partial.with_suffix(".old")
            path.rename(old)
            try:
                partial.rename(path)
            except OSError:
                old.rename(path)
                raise
            shutil.rmtree(old)
        else:
            _rename(partial, path, may_exist=not replace)
        _fsync(path.parent)
        _sweep(path, "old")  # not before: until now one may have been the only whole folder
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _prefix(path: Path) -> str:
    """How temporary names of this process beside `path` begin."""
    return f".{path.name}.{_place()}-{os.getpid()}."


def _put_back(path: Path) -> None:
    """If there is no `path`, the last one that a process was killed while replacing."""
    left = _left_behind(path.parent, re.escape(path.name), "old")
    if left and not path.exists():
        with suppress(OSError):  # another process was first, or the disk will be complained of
            max(left, key=lambda old: old.stat().st_ctime).rename(path)  # a rename sets ctime


def _sweep(path: Path, ending: str) -> None:
    """Remove what processes that are no more left beside `path`."""
    for left in _left_behind(path.parent, re.escape(path.name), ending):
        shutil.rmtree(left, ignore_errors=True)


def _left_behind(folder: Path, name: str, ending: str) -> list[Path]:
    """What processes that are no more, or of elsewhere a day ago, began to write in `folder`.

    name: of what was to be written, a pattern.
    """
    ours = re.compile(rf"\.{name}\.(\w+)-(\d+)\.\w+\.{ending}")
    found = []
    for left in folder.glob(f".*.{ending}"):
        named = ours.fullmatch(left.name)
        if named is None:
            continue
        known = named[1] == _place()
        gone = not psutil.pid_exists(int(named[2])) if known else _untouched(left) > DAY
        if gone:
            found.append(left)
    return found


@functools.cache
def _place() -> str:
    """Where a number means one process: this machine since it was started, and this container.

    Containers may share a name, and machines a disk; most processes of containers have number 1.
    """
    parts = [platform.node()]
    with suppress(OSError):  # systems other than Linux have neither
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(os.readlink("/proc/self/ns/pid"))
    return fingerprint(parts)[:16]


def _untouched(folder: Path) -> float:
    """Seconds since anything in a folder, or its name, was changed; 0 if it is being removed."""
    try:
        newest = max(path.lstat().st_ctime for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:
        return 0.0
    return time.time() - newest


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
    _refuse_address(path, "output")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        # Not path.is_file(), which raises where a name is too long.
        why = "it is a file" if os.path.isfile(path) else error.strerror
        raise UserError(f"{path}: cannot write there ({why}); choose another") from None
    return path


def check_replaceable(
    out: Path, holds: str, *, overwrite: bool = False, keep: Iterable[str | Path] = ()
) -> None:
    """Raise UserError, before any long work, unless `whole_folder(out)` may put a folder there.

    What is there already has to be a folder, has to be empty or hold the file `holds`, by which
    we know that we made it, and is replaced only with `overwrite`. It is never replaced if it is,
    or contains, the working directory or one of `keep`: what the new folder is made from. Names
    in `keep` that are no paths of this disk, such as a hub's, do no harm. A folder that a process
    was killed while replacing is put back first, so that it is not replaced unasked.
    """
    _refuse_address(out, "output")
    with disk_errors(out, "choose another folder"):  # a name too long, a closed folder above
        place = out.resolve()
        _put_back(place)
        if place.exists():
            if not place.is_dir():
                raise UserError(f"{out}: is no folder; choose another name")
            if not overwrite:
                raise UserError(f"{out}: exists; choose another folder or say --overwrite")
            for kept in (Path.cwd(), *map(Path, keep)):
                if kept.exists() and kept.resolve().is_relative_to(place):
                    raise UserError(
                        f"{out}: replacing it would delete {kept}; choose another folder"
                    )
            if any(place.iterdir()) and not (place / holds).is_file():
                raise UserError(
                    f"{out}: holds something else (no {holds}), which --overwrite would delete; "
                    "choose another folder"
                )
    writable_folder(place.parent)


@contextmanager
def disk_errors(out: Path, advice: str | None = None) -> Iterator[None]:
    """Say in one line that a disk did not take what the block writes to `out`, and what to do.

    Whichever library complained: the system's words are looked for in its message. Anything that
    is no trouble with a disk passes on.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = disk_trouble(error)
        if reason is None:
            raise
        lack = not isinstance(error, OSError) or error.errno in FULL
        hint = "make room or choose another disk" if lack else "choose another folder"
        advice = advice or f"{hint}; nothing was left behind"
        raise UserError(f"{out}: cannot be written ({reason}); {advice}") from None


@contextmanager
def library_errors(what: str, hint: str) -> Iterator[None]:
    """Put a library's failure in the block into one line: `what` failed, its words, what to do.

    What is a disk's trouble passes on, for `disk_errors`. --debug shows where it came from.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if disk_trouble(error) is not None:
            raise
        said = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"{what} ({type(error).__name__}: {said}); {hint}") from error


def disk_trouble(error: BaseException) -> str | None:
    """What a disk complains of (full, gone, read-only), from whichever library; else None."""
    if isinstance(error, OSError):  # those without a number are a library's own, or a network's
        return error.strerror if error.errno and not isinstance(error, ConnectionError) else None
    found = re.search(
        r"(No space left|Read-only|File too large|quota|os error \d+)[^\"}]*", str(error)
    )
    return found[0].strip() if found else None


def cache_folder() -> Path:
    """Where token caches and vectors live: $TERCET_CACHE, else ~/.cache/tercet."""
    folder = Path(os.environ.get("TERCET_CACHE") or Path.home() / ".cache" / "tercet")
    _refuse_address(folder, "TERCET_CACHE")
    return folder


def _refuse_address(path: Path, what: str) -> None:
    """Raise UserError for object storage, of whose address folders would be made on this disk."""
    if ADDRESS.match(str(path)):
        raise UserError(
            f"{what}: {path} is an address, not a folder; name one on a disk and copy it "
            "(docs/scale.md)"
        )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
