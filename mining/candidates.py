"""The candidates of every query, from one search or several; each list is made once, then kept."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import bm25s
import numpy as np
from accelerate.utils import gather_object
from numpy.typing import NDArray

from tercet.cache import CACHE, keep, locked, note_use, save_array
from tercet.configs.schema import MiningConfig
from tercet.data.rows import Indices
from tercet.errors import UserError
from tercet.files import (
    cache_folder,
    disk_errors,
    fingerprint,
    sha256,
    whole_folder,
    write_json,
)
from tercet.mining.ann import ann_top_k, import_faiss, settings_for
from tercet.mining.fuse import reciprocal_rank_fusion
from tercet.mining.lexical import lexical_top_k
from tercet.mining.pairs import pair_scores
from tercet.mining.search import Rows, shared_top_k
from tercet.processes import on_main, process_count, process_index, share_mistakes

Floats = NDArray[np.float32]
MODEL, BM25 = "model", "bm25"  # what a source is called that is not another model's path
FORMAT = 2  # of a list; raised when a search of the same settings gives another answer
PAIRS = 32_768  # pairs of vectors held at once


class Lookup(Rows, Protocol):
    """Rows that are also found by their numbers (n,)."""

    def __getitem__(self, rows: slice | Indices, /) -> Floats: ...


class Picked:
    """Some rows of vectors, in an order of their own: each is read when it is asked for."""

    def __init__(self, vectors: Lookup, rows: Indices) -> None:
        self.vectors, self.rows = vectors, rows
        self.shape = (len(rows), *vectors.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Indices, /) -> Floats:
        return self.vectors[self.rows[rows]]


@dataclass(frozen=True)
class Space:
    """What one model makes of the queries that are mined for and of all documents."""

    queries: Lookup  # (Q, H)
    documents: Lookup  # (D, H)
    fingerprint: str  # of everything that shapes the vectors, the texts included


class Candidates(NamedTuple):
    """Q lists of C documents, best first by the sources' ranks."""

    scores: Floats  # (Q, C) inner products of the vectors of `MODEL`; -inf where there is none
    positions: Indices  # (Q, C); -1 where a list is shorter
    recall: dict[str, float]  # of approximate searches, by source, measured on a sample


def find_candidates(
    spaces: Mapping[str, Space],
    queries: Sequence[str],
    documents: Sequence[str],
    config: MiningConfig,
    *,
    folder: Path | None = None,
) -> Candidates:
    """Search every source to `config.depth`, or read what an earlier search of it found.

    spaces: by source, `MODEL` always among them; queries (Q) and documents (D) are their texts,
    for BM25. `folder` holds the lists (default: the user's cache). Several sources are fused by
    rank. Scores are those of `MODEL` whatever the source, so that margins always mean the same.
    A meeting of all processes.
    """
    folder = folder or cache_folder() / "candidates"
    sources = config.source_names
    lists = [_list(source, spaces, queries, documents, config, folder) for source in sources]
    recall = {s: found.recall for s, found in zip(sources, lists, strict=True)}
    measured = {source: value for source, value in recall.items() if value is not None}
    if sources == (MODEL,):
        return Candidates(lists[0].scores, lists[0].positions, measured)
    positions = lists[0].positions
    if len(lists) > 1:
        pairs = [(found.scores, found.positions) for found in lists]
        positions = reciprocal_rank_fusion(pairs, min(config.depth, len(documents)))[1]
    space = spaces[MODEL]
    scores = pair_scores(space.queries, space.documents, np.asarray(positions))
    return Candidates(scores, positions, measured)


def inner_products(space: Space, queries: Indices, documents: Indices) -> Floats:
    """(N,) score of each pair (queries[i], documents[i]); the same for a pair in any company."""
    scores = np.empty(len(queries), dtype=np.float32)
    for start in range(0, len(queries), PAIRS):
        part = slice(start, start + PAIRS)
        left, right = space.queries[queries[part]], space.documents[documents[part]]
        scores[part] = np.einsum("nh,nh->n", left, right)
    return scores


def cosines(vectors: Lookup, left: Indices, right: Indices) -> Floats:
    """(N,) cosine of each pair of rows; 0 where one of them is zero."""
    found = np.empty(len(left), dtype=np.float32)
    for start in range(0, len(left), PAIRS):
        a, b = (vectors[side[start : start + PAIRS]] for side in (left, right))
        squares = np.einsum("nh,nh->n", a, a) * np.einsum("nh,nh->n", b, b)
        products = np.einsum("nh,nh->n", a, b)
        found[start : start + PAIRS] = products / np.sqrt(np.where(squares > 0, squares, 1.0))
    return found


class _List(NamedTuple):
    """One source's answer."""

    scores: Floats  # (Q, C), as the source gives them
    positions: Indices  # (Q, C)
    recall: float | None = None  # of the exact answer, where that was not computed


def _list(
    source: str,
    spaces: Mapping[str, Space],
    queries: Sequence[str],
    documents: Sequence[str],
    config: MiningConfig,
    folder: Path,
) -> _List:
    """A source's list, from `folder` if an earlier search left one there that is as deep."""
    depth = config.depth
    if source == BM25:
        key = _key(BM25, bm25s.__version__, fingerprint(queries), fingerprint(documents))
        return _kept(folder / key, depth, True, lambda: _lexical(queries, documents, depth))
    space, index = spaces[source], config.index
    if index == "exact":
        key = _key(index, space.fingerprint)
        return _kept(folder / key, depth, True, lambda: _exact(space, depth))
    settings = settings_for(len(space.documents), space.documents.shape[1])
    version = import_faiss(f"index {index!r}").__version__
    key = _key(index, version, json.dumps(asdict(settings)), space.fingerprint)
    return _kept(folder / key, depth, False, lambda: _approximate(space, depth, index))


def _key(*parts: str) -> str:
    """The folder of a list: whatever shapes it, but for its depth."""
    return fingerprint([str(FORMAT), *parts])


def _exact(space: Space, depth: int) -> _List:
    return _List(*shared_top_k(space.queries, space.documents, depth))


def _approximate(space: Space, depth: int, index: Any) -> _List | None:
    """On the main process alone: FAISS has threads of its own, and training it is not shared."""
    with share_mistakes():
        if process_index() == 0:
            return _List(*ann_top_k(space.queries, space.documents, depth, index=index))


def _lexical(queries: Sequence[str], documents: Sequence[str], depth: int) -> _List:
    """Each process searches its share of the queries."""
    rank, world, total = process_index(), process_count(), len(queries)
    share = slice(total * rank // world, total * (rank + 1) // world)
    with share_mistakes():
        own = lexical_top_k(queries[share], documents, depth)
    scores, positions = zip(*gather_object([own]), strict=True)
    return _List(np.concatenate(scores), np.concatenate(positions))


def _kept(folder: Path, depth: int, prefix: bool, search: Callable[[], _List | None]) -> _List:
    """The list under `folder`, searched by all and written by the main process if it is not there.

    prefix: the best k of a deeper list are the best k, so a deeper list serves as well.
    """
    with ExitStack() as held:
        on_main(lambda: held.enter_context(locked(folder)))
        path = on_main(lambda: _stored(folder, depth, prefix))
        if path is None:
            path = folder / f"{depth:08d}"
            found = search()
            with share_mistakes():
                if found is not None and process_index() == 0:
                    _write(path, found)
        with share_mistakes():  # until all have mapped the files, and keep them
            note_use(folder)
            scores, positions = (np.load(path / name, mmap_mode="r") for name in _FILES)
            for array in (scores, positions):
                keep(folder, array)
            return _List(scores[:, :depth], positions[:, :depth], _facts(path)["recall"])


_FILES = ("scores.npy", "positions.npy")


def _stored(folder: Path, depth: int, prefix: bool) -> Path | None:
    """The shallowest whole list that serves; damaged ones on the way to it are removed."""
    for path in sorted(folder.glob("[0-9]*")):
        if int(path.name) == depth or (prefix and int(path.name) > depth):
            if _is_whole(path):
                return path
            with disk_errors(path, CACHE):
                shutil.rmtree(path)
    return None


def _is_whole(path: Path) -> bool:
    """Whether its bytes are what they were. Raises UserError if they cannot be read."""
    try:
        facts = _facts(path)
        if facts["format"] > FORMAT:
            raise UserError(
                f"{path}: written by a newer version of tercet; update it, or remove the folder"
            )
        right = {name: sha256(path / name) for name in _FILES} == facts["sha256"]
        told = facts["recall"] is None or 0 <= facts["recall"] <= 1
        return right and told and facts["format"] == FORMAT
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return False
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _facts(path: Path) -> dict[str, Any]:
    return json.loads((path / "list.json").read_text(encoding="utf-8"))


def _write(path: Path, found: _List) -> None:
    with disk_errors(path, CACHE), whole_folder(path, replace=False) as partial:
        arrays = zip(_FILES, (found.scores, found.positions), strict=True)
        hashes = {name: save_array(partial / name, array) for name, array in arrays}
        facts = {"format": FORMAT, "recall": found.recall, "sha256": hashes}
        write_json(partial / "list.json", facts)
