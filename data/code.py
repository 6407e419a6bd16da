"""Retrieval data out of Python code: a docstring's first paragraph asks for its function's code."""

import gc
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import xxhash

from tercet.configs import Columns, Source
from tercet.data.beir import read_task, write_files
from tercet.data.check import overlap
from tercet.data.functions import UNPARSED, Function, functions
from tercet.data.packages import SourceFile, python_version, source_files, split_units
from tercet.data.read import read_training
from tercet.data.rows import RetrievalTask, Texts, text_hash
from tercet.errors import UserError
from tercet.files import sha256, whole_folder, write_json
from tercet.progress import progress

COLUMNS = Columns(query_id="query_id", positive_id="positive_id")  # of train.jsonl, for a config
IGNORE = ("package",)
ENOUGH = 3  # files are read until there are this many times the functions asked for


@dataclass
class PackageCounts:
    """What became of one package's code."""

    files: int = 0
    files_read: int = 0
    functions: int = 0  # in the files read
    kept: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # by reason


@dataclass(frozen=True)
class CodeCounts:
    """What `code_task` wrote (its code.json): counts by package, hashes by file."""

    train: dict[str, PackageCounts]
    dev: dict[str, PackageCounts]
    test: dict[str, PackageCounts]
    limits: dict[str, int | None]
    seed: int
    python: str
    sha256: dict[str, str]

    def kept(self, part: str) -> int:
        """Pairs written to train, dev or test."""
        return sum(counts.kept for counts in getattr(self, part).values())

    def as_json(self) -> dict[str, object]:
        """Plain values for code.json (`asdict` cannot copy a Counter)."""
        parts: dict[str, object] = {
            part: {package: vars(count) for package, count in getattr(self, part).items()}
            for part in ("train", "dev", "test")
        }
        return vars(self) | parts


def code_task(
    train: Sequence[str],
    test: Sequence[str],
    dev: Sequence[str],
    out: str | Path,
    *,
    limit_train: int | None = None,
    limit_test: int | None = None,
    limit_dev: int | None = None,
    seed: int = 12,
) -> CodeCounts:
    """Write test pairs to `out` (a BEIR folder), dev pairs to `out/dev`, the rest to train.jsonl.

    Names are packages (not imported), folders, or `stdlib`. With neither test nor dev, the train
    packages are divided by modules. A pair whose code or query stands in an earlier part (test,
    dev, train in this order) is left out, after `normalise`. Limits draw at random, by `seed`.
    `out` appears whole; an earlier one is replaced. UserError for anything the user can mend.
    """
    out = Path(out)
    if out.exists() and not (out / "code.json").exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out}: exists and was not written by `tercet data code`; choose another")
    limits = {"test": limit_test, "dev": limit_dev, "train": limit_train}
    files = _parts({"test": test, "dev": dev, "train": train})
    seen: set[str] = set()
    pairs: dict[str, list[Function]] = {}
    counts: dict[str, dict[str, PackageCounts]] = {}
    for part in ("test", "dev", "train"):
        collection = _collect(part, files[part], limits[part], seed, seen)
        pairs[part], counts[part] = collection.draw(limits[part], seed), collection.counts
        seen.update(key for pair in pairs[part] for key in _keys(pair))
    with whole_folder(out) as folder:
        _write(pairs, folder, out.resolve().name)
        written = sorted(file for file in folder.rglob("*") if file.is_file())
        hashes = {file.relative_to(folder).as_posix(): sha256(file) for file in written}
        result = CodeCounts(
            **counts, limits=limits, seed=seed, python=python_version(), sha256=hashes
        )
        write_json(folder / "code.json", result.as_json())
        _verify(folder)
    return result


def docstring_task(package: str, limit: int, seed: int = 12) -> RetrievalTask:
    """At most `limit` docstrings of a package as queries, their functions' code as documents.

    In memory; the same pairs that `code_task` draws as a test set with these arguments.
    """
    return _task(
        _collect("test", source_files(package), limit, seed, set()).draw(limit, seed),
        package,
        "test",
    )


def _parts(names: dict[str, Sequence[str]]) -> dict[str, list[SourceFile]]:
    """The files of each part, no name in two of them."""
    owner: dict[str, str] = {}
    for part, own in names.items():
        for name in own:
            if owner.setdefault(name, part) != part:
                raise UserError(f"{name}: named for {owner[name]} and {part}; choose one of them")
    files = {
        part: [file for name in dict.fromkeys(own) for file in source_files(name)]
        for part, own in names.items()
    }
    if not files["train"]:
        raise UserError("no package to train on; name one, for example torch")
    if bool(files["test"]) != bool(files["dev"]):
        given, other = ("test", "dev") if files["test"] else ("dev", "test")
        raise UserError(f"--{given} without --{other}; name packages for both or for neither")
    return files if files["test"] else split_units(files["train"])


class _Collection:
    """Pairs of one part, no code and no docstring twice nor in `seen`, and what was left out."""

    def __init__(self, files: Sequence[SourceFile], seen: set[str]) -> None:
        self.seen, self.own = seen, set[str]()
        self.pairs: dict[str, Function] = {}
        self.counts = {file.package: PackageCounts() for file in files}
        for file in files:
            self.counts[file.package].files += 1

    def read(self, file: SourceFile) -> None:
        """Take what is usable in a file."""
        count = self.counts[file.package]
        found, skipped = functions(file)
        count.files_read += 1
        count.functions += len(found) + skipped.total() - skipped[UNPARSED]
        count.skipped += skipped
        for pair in found:
            reason = self._repeated(pair)
            if reason:
                count.skipped[reason] += 1
            else:
                self.own.update(_keys(pair))
                number = 1
                while (id_ := pair.id if number == 1 else f"{pair.id}#{number}") in self.pairs:
                    number += 1  # a property's getter and setter, or a definition under an `if`
                self.pairs[id_] = replace(pair, id=id_)

    def draw(self, limit: int | None, seed: int) -> list[Function]:
        """At most `limit` of the pairs, drawn by seeded hashes, sorted by id."""
        order = sorted(self.pairs.values(), key=lambda pair: _draw(seed, pair.id))
        for place, pair in enumerate(order):
            if limit is None or place < limit:
                self.counts[pair.package].kept += 1
            else:
                self.counts[pair.package].skipped["over the limit"] += 1
        return sorted(order[:limit], key=lambda pair: pair.id)

    def _repeated(self, pair: Function) -> str | None:
        code, query = _keys(pair)
        for known, where in ((self.seen, "held out"), (self.own, "met before")):
            if code in known:
                return f"code {where}"
            if query in known:
                return f"docstring {where}"
        return None


def _collect(
    part: str, files: Sequence[SourceFile], limit: int | None, seed: int, seen: set[str]
) -> _Collection:
    """Read files in the order of their seeded hashes: a limit need not read them all."""
    collection = _Collection(files, seen)
    order = sorted(files, key=lambda file: (_draw(seed, file.module), str(file.path)))
    with progress(f"read code for {part}", len(order)) as advance, _no_garbage_collection():
        for number, file in enumerate(order):
            if limit is not None and len(collection.pairs) >= ENOUGH * limit:
                advance(len(order) - number, "enough")
                break
            collection.read(file)
            advance()
    if not collection.pairs:
        names = ", ".join(collection.counts)
        raise UserError(f"{names}: no function there makes a pair for {part}; name other packages")
    return collection


def _keys(pair: Function) -> tuple[str, str]:
    return text_hash(pair.code), text_hash(pair.query)


def _draw(seed: int, name: str) -> int:
    """A random number that depends on the seed and the name alone."""
    return xxhash.xxh3_64_intdigest(name.encode(), seed)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Syntax trees hold no cycles, and looking for some takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _write(pairs: dict[str, list[Function]], folder: Path, name: str) -> None:
    (folder / "dev").mkdir()
    write_files(_task(pairs["test"], name, "test"), folder)
    write_files(_task(pairs["dev"], name, "dev"), folder / "dev")
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for pair in pairs["train"]:
            row = {
                "query": pair.query,
                "positive": pair.code,
                "query_id": f"q:{pair.id}",
                "positive_id": pair.id,
                "package": pair.package,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _task(pairs: Sequence[Function], name: str, split: str) -> RetrievalTask:
    documents = Texts([pair.id for pair in pairs], [pair.code for pair in pairs])
    queries = Texts([f"q:{pair.id}" for pair in pairs], [pair.query for pair in pairs])
    qrels = {f"q:{pair.id}": {pair.id: 1} for pair in pairs}
    return RetrievalTask(name, split, documents, queries, qrels)


def _verify(folder: Path) -> None:
    """Read the files as a run would, and prove that nothing held out is trained on."""
    source = Source(path=str(folder / "train.jsonl"), columns=COLUMNS, ignore=IGNORE)
    rows = read_training([source])
    for task in (read_task(folder, "test"), read_task(folder / "dev", "dev")):
        found = overlap(rows, task)
        if found.share > 0:
            raise RuntimeError(f"held-out pairs are in train.jsonl: {found}")
