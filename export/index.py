"""Vectors handed over to a search engine: a FAISS index file, and how much a search in it finds."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tercet.data.rows import Texts
from tercet.errors import UserError
from tercet.files import disk_errors, library_errors, whole_folder, write_json
from tercet.mining import pair_scores, top_k
from tercet.mining.ann import BLOCK, Index, build_index, import_faiss, search_index, settings_for
from tercet.mining.search import Rows
from tercet.models.quantise import Ranges, bits
from tercet.progress import progress

Kind = Literal["float32", "int8", "binary"]  # what a component of a stored vector is
KINDS, INDEXES = get_args(Kind), get_args(Index)
ANSWERS = 10  # per query, of which recall is measured
OVERSAMPLE = 4  # times as many candidates, for a reader who scores them again
TIE = 1e-6  # scores this near are equal: engines add up in different orders
FACTS = "index.json"
Search = Callable[[Rows, int], NDArray[np.int64]]  # (Q, H), k -> positions (Q, k), -1 for none


@dataclass(frozen=True)
class Recall:
    """How much of what exact search finds a search returns, averaged over queries."""

    at_10: float  # share of the ten best documents that is among the ten returned
    among_40: float  # that is among 40 candidates: what scoring those again would return
    same: float  # share of queries whose ten are the exact ten in their order, up to ties
    queries: int

    def line(self) -> str:
        """One sentence."""
        return (
            f"recall@{ANSWERS} {self.at_10:.4f} against exact search, {self.among_40:.4f} among "
            f"{ANSWERS * OVERSAMPLE} candidates ({self.queries:,} queries)"
        )


def check_choice(to: str, index: Index, kind: Kind, width: int, documents: int) -> None:
    """Raise UserError for what no index can be made of; of Milvus `Target.check` knows more."""
    if to == "faiss" and kind == "binary" and index not in ("flat", "hnsw"):
        raise UserError(f"--vectors binary: there is no {index} of bits; choose flat or hnsw")
    if kind == "binary" and width % 8:
        raise UserError(
            f"--vectors binary: {width} dimensions do not fill bytes; --truncate to a multiple of 8"
        )
    if kind == "int8" and index == "ivf_pq":
        raise UserError("--vectors int8: ivf_pq stores codes of its own; leave --vectors out")
    if index == "ivf_pq" and documents < 256:
        raise UserError(f"--index ivf_pq: needs 256 documents to learn from, not {documents}")


def write_faiss(
    out: Path,
    documents: Texts,
    vectors: Rows,
    queries: NDArray[np.float32],
    *,
    index: Index,
    kind: Kind,
    ranges: Ranges | None = None,
    facts: dict[str, Any],
) -> Recall:
    """Write `index.faiss`, `documents.jsonl` (line i is position i) and `index.json` to `out`.

    vectors (D, H) and queries (Q, H) float32. Bits are the signs of the components, compared by
    Hamming distance; everything else by inner product; `ranges` are those of int8 codes, as
    `build_index` takes them. The folder is read back from disk, searched with `queries`, and
    appears only whole. `facts` go into index.json beside the recall. Raises UserError if the disk
    does not take the files, or if FAISS refuses.
    """
    broken = f"{out}: FAISS cannot write the index and read it back"
    hint = "look whether the disk is full, or choose another --index; nothing was left behind"
    with disk_errors(out), whole_folder(out) as folder:
        with library_errors(broken, hint):  # a disk that is full when a file is closed says nothing
            search = _written(folder / "index.faiss", vectors, index, kind, ranges)
        _write_documents(folder / "documents.jsonl", documents)
        recall = measure_recall(search, queries, vectors)
        write_json(folder / FACTS, {**facts, "recall": vars(recall)})
    return recall


def measure_recall(search: Search, queries: NDArray[np.float32], vectors: Rows) -> Recall:
    """Ask `search` and exact search the same; what ties with the tenth best counts as found.

    queries (Q, H), vectors (D, H) float32; scores that differ by at most 1e-6 tie.
    """
    k = min(ANSWERS, len(vectors))
    found = search(queries, min(k * OVERSAMPLE, len(vectors)))
    exact, _ = top_k(queries, vectors, k)
    scores = pair_scores(queries, vectors, found)
    good = scores >= exact[:, -1:] - TIE
    among = np.minimum(good.sum(axis=1), k) / k
    same = (np.abs(scores[:, :k] - exact) <= TIE).all(axis=1)
    return Recall(float(good[:, :k].mean()), float(among.mean()), float(same.mean()), len(queries))


def _written(file: Path, vectors: Rows, index: Index, kind: Kind, ranges: Ranges | None) -> Search:
    """Build the index, write it, and search what is then on the disk."""
    faiss = import_faiss("--to faiss")
    if kind == "binary":
        faiss.write_index_binary(_binary_index(faiss, vectors, index), str(file))
        stored = faiss.read_index_binary(str(file))
        return lambda asked, k: stored.search(bits(asked), k)[1]
    settings, k = settings_for(*vectors.shape), ANSWERS * OVERSAMPLE
    built = build_index(vectors, index, settings, k=k, int8=kind == "int8", ranges=ranges)
    faiss.write_index(built, str(file))
    del built
    return partial(search_index, faiss.read_index(str(file)))


def _binary_index(faiss: Any, vectors: Rows, index: Index) -> Any:
    width = vectors.shape[1]
    built = faiss.IndexBinaryFlat(width) if index == "flat" else faiss.IndexBinaryHNSW(width, 32)
    if index == "hnsw":
        built.hnsw.efSearch = 256
    for start in range(0, len(vectors), BLOCK):
        built.add(bits(vectors[start : start + BLOCK]))
    return built


def _write_documents(path: Path, documents: Texts) -> None:
    with path.open("w", encoding="utf-8") as file, progress("texts", len(documents)) as advance:
        for id_, text in zip(documents.ids, documents.texts, strict=True):
            file.write(json.dumps({"_id": id_, "text": text}, ensure_ascii=False) + "\n")
            advance()
