"""The candidates of every query, from one search or several; each list is made once, then kept."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from accelerate.utils import gather_object
from numpy.typing import NDArray

from tercet.configs.schema import MiningConfig
from tercet.data.rows import Indices
from tercet.files import cache_folder, fingerprint, sha256, whole_folder, write_json
from tercet.mining.ann import ann_top_k
from tercet.mining.fuse import reciprocal_rank_fusion
from tercet.mining.lexical import lexical_top_k
from tercet.mining.pairs import pair_scores
from tercet.mining.search import shared_top_k
from tercet.processes import on_main, process_count, process_index, share_mistakes

Floats = NDArray[np.float32]
MODEL, BM25 = "model", "bm25"  # what a source is called that is not another model's path
FORMAT = 1
PAIRS = 32_768  # pairs of vectors held at once


class Lookup(Protocol):
    """(N, H) float32 vectors that may be memory-mapped."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice | Indices, /) -> Floats: ...


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
    lists = [_list(source, spaces, queries, documents, config, folder) for source in config.sources]
    recall = {s: found.recall for s, found in zip(config.sources, lists, strict=True)}
    measured = {source: value for source, value in recall.items() if value is not None}
    if config.sources == (MODEL,):
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
        key = fingerprint(["bm25", fingerprint(queries), fingerprint(documents)])
        return _kept(folder / key, depth, True, lambda: _lexical(queries, documents, depth))
    space, index = spaces[source], config.index
    key = fingerprint([index, space.fingerprint])
    if index == "exact":
        return _kept(folder / key, depth, True, lambda: _exact(space, depth))
    return _kept(folder / key, depth, False, lambda: _approximate(space, depth, index))


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
    path = on_main(lambda: _stored(folder, depth, prefix))
    if path is None:
        path = folder / f"{depth:08d}"
        found = search()
        with share_mistakes():
            if found is not None and process_index() == 0:
                _write(path, found)
    scores, positions = (np.load(path / name, mmap_mode="r") for name in _FILES)
    return _List(scores[:, :depth], positions[:, :depth], _facts(path)["recall"])


_FILES = ("scores.npy", "positions.npy")


def _stored(folder: Path, depth: int, prefix: bool) -> Path | None:
    """The shallowest whole list that serves; damaged ones on the way to it are removed."""
    for path in sorted(folder.glob("[0-9]*")):
        if int(path.name) == depth or (prefix and int(path.name) > depth):
            if _is_whole(path):
                return path
            shutil.rmtree(path)
    return None


def _is_whole(path: Path) -> bool:
    try:
        facts = _facts(path)
        right = {name: sha256(path / name) for name in _FILES} == facts["sha256"]
    except (OSError, ValueError, KeyError):
        return False
    return right and facts["format"] == FORMAT


def _facts(path: Path) -> dict[str, Any]:
    return json.loads((path / "list.json").read_text(encoding="utf-8"))


def _write(path: Path, found: _List) -> None:
    with whole_folder(path, replace=False) as partial:
        np.save(partial / _FILES[0], found.scores)
        np.save(partial / _FILES[1], found.positions)
        hashes = {name: sha256(partial / name) for name in _FILES}
        facts = {"format": FORMAT, "recall": found.recall, "sha256": hashes}
        write_json(partial / "list.json", facts)
