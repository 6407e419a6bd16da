"""Which code is at work: versions of packages, and a hash of the sources that decide a step."""

import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from tercet.files import fingerprint

# Those that decide a vector, a gradient or a score.
PACKAGES = (
    "tercet",
    "torch",
    "transformers",
    "tokenizers",
    "sentence-transformers",
    "accelerate",
    "numpy",
    "bm25s",
    "faiss-cpu",
    "pytrec-eval-terrier",
)
# What decides a step, a round of mining inside a run and which step is best; "" is the package's
# own files. Of the stages only some do, but one that mines or trains calls on others.
STEP = ("", "configs", "data", "evaluation", "losses", "mining", "models", "stages", "train")


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of the packages that decide a score, or of others, of those installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that was never installed
            continue
    return found


def code_version() -> dict[str, str]:
    """The same, and `source`: 12 hex digits that change with any file a training step runs."""
    return installed_versions() | {"source": source_version(STEP)}


def whole_source(package: Path = Path(__file__).parent) -> str:
    """12 hex digits that change with any Python file or recipe of the package."""
    walked = os.walk(package, followlinks=True)  # in a checkout most folders are links
    files = sorted(Path(place, name) for place, _, names in walked for name in names)
    parts: list[str | bytes] = []
    for file in files:
        if file.suffix in (".py", ".yaml"):
            parts += [file.relative_to(package).as_posix(), file.read_bytes()]
    return fingerprint(parts)[:12]


def source_version(folders: Sequence[str]) -> str:
    """12 hex digits that change with any Python file of these folders of ours; "" is the first."""
    parts: list[str | bytes] = []
    for folder in folders:
        spec = find_spec(f"tercet.{folder}".rstrip("."))
        for place in (spec and spec.submodule_search_locations) or ():
            for file in sorted(Path(place).glob("*.py")):
                parts += [file.name, file.read_bytes()]
    return fingerprint(parts)[:12]
