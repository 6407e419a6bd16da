"""Python source files of installed packages and folders, found without importing anything."""

import difflib
import importlib.util
import pkgutil
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from tercet.data.rows import text_hash
from tercet.errors import UserError

STDLIB = "stdlib"
NOT_OURS = {"__pycache__", "node_modules", "site-packages", "dist-packages"}
TESTS = {"test", "tests", "idle_test"}
NOT_LIBRARY = {"idlelib", "turtledemo", "lib2to3"}  # programs and data in the library's folder
LARGEST_UNIT = 0.1  # share of the files; larger folders are split into their own parts


@dataclass(frozen=True)
class SourceFile:
    """A file of Python code and the module it is."""

    package: str  # as the user named it
    module: str  # dotted
    path: Path


def source_files(name: str) -> list[SourceFile]:
    """All files of a package name, a folder, or the standard library (`stdlib`), tests left out.

    Sorted by module, whatever the file system's order. UserError if there is none.
    """
    if name == STDLIB:
        found = _walk(name, Path(sysconfig.get_paths()["stdlib"]), (), NOT_LIBRARY)
    elif _is_path(name):
        folder = Path(name).resolve()
        if not folder.is_dir():
            raise UserError(f"{name}: no such folder; name a folder or an installed package")
        found = _walk(name, folder, (folder.name,))
    else:
        found = _installed(name)
    files = sorted(found, key=lambda file: (file.module, str(file.path)))
    if not files:
        raise UserError(f"{name}: holds no Python files outside tests; name another package")
    return files


def split_units(files: Sequence[SourceFile]) -> dict[str, list[SourceFile]]:
    """Divide files 80/10/10 into train, test and dev, whole sub-packages and modules at a time.

    The units are the immediate parts of the package; one that holds over a tenth of the files is
    divided into its own parts in turn. The order of the units' hashes decides, so the same
    files always divide alike. UserError if there are too few units.
    """
    units = sorted(_units(files).items(), key=lambda unit: text_hash(unit[0]))
    parts: dict[str, list[SourceFile]] = {"test": [], "dev": [], "train": []}
    wanted = LARGEST_UNIT * len(files)
    for _, members in units:
        part = next((p for p in ("test", "dev") if len(parts[p]) < wanted), "train")
        parts[part].extend(members)
    if not all(parts.values()):
        names = ", ".join(dict.fromkeys(file.package for file in files))
        raise UserError(
            f"{names}: {len(units)} modules are too few to divide into train, test and dev; "
            "name other packages for test and dev"
        )
    return parts


def _units(files: Sequence[SourceFile]) -> dict[str, list[SourceFile]]:
    """Files by the dotted prefix they share, no folder of more than a tenth of them."""
    units, depth, pending = dict[str, list[SourceFile]](), 0, list(files)
    while pending:
        depth += 1
        groups = defaultdict[str, list[SourceFile]](list)
        for file in pending:
            groups[".".join(file.module.split(".")[:depth])].append(file)
        pending = []
        for prefix, members in groups.items():
            divisible = any(file.module.count(".") >= depth for file in members)
            if divisible and len(members) > max(1, LARGEST_UNIT * len(files)):
                pending.extend(members)
            else:
                units[prefix] = members
    return units


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.startswith(".")


def _installed(name: str) -> Iterator[SourceFile]:
    top, *inner = name.split(".")
    spec = _spec(top)
    if spec is None and Path(name).is_dir():
        folder = Path(name).resolve()
        return _walk(name, folder, (folder.name,))
    if spec is None:
        near = difflib.get_close_matches(top, {m.name for m in pkgutil.iter_modules()}, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "install it, or name a folder as ./folder"
        raise UserError(f"{name}: no such package here; {hint}")
    return _files_of(name, spec, inner)


def _spec(name: str) -> ModuleSpec | None:
    """Where a top-level module lies. Nothing is imported: only a dotted name imports its parent."""
    try:
        return PathFinder.find_spec(name) or importlib.util.find_spec(name)
    except (ValueError, ImportError):  # a module already imported that has no spec
        return None


def _files_of(name: str, spec: ModuleSpec, inner: Sequence[str]) -> Iterator[SourceFile]:
    for place in spec.submodule_search_locations or ():
        folder = Path(place).joinpath(*inner)
        if folder.is_dir():
            yield from _walk(name, folder, name.split("."))
        elif folder.with_suffix(".py").is_file():
            yield SourceFile(name, name, folder.with_suffix(".py"))
    origin = Path(spec.origin or "")
    if spec.submodule_search_locations is None and origin.suffix == ".py" and not inner:
        yield SourceFile(name, name, origin)


def _walk(
    package: str, folder: Path, module: Sequence[str], skip: set[str] | None = None
) -> Iterator[SourceFile]:
    """Files below a folder, without tests, hidden folders and environments."""
    for entry in sorted(folder.iterdir()):
        name = entry.name
        if entry.is_dir() and not entry.is_symlink():
            left_out = NOT_OURS | TESTS | (skip or set())
            if not (name in left_out or name.startswith(".") or (entry / "pyvenv.cfg").exists()):
                yield from _walk(package, entry, (*module, name), skip)
        elif name.endswith(".py") and not _is_test(entry.stem):
            inner = module if entry.stem == "__init__" else (*module, entry.stem)
            yield SourceFile(package, ".".join(inner) or package, entry)


def _is_test(stem: str) -> bool:
    return stem.startswith("test_") or stem.endswith("_test") or stem == "conftest"


def python_version() -> str:
    """Of the running interpreter, whose standard library `stdlib` means."""
    return ".".join(map(str, sys.version_info[:3]))
