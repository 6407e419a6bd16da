"""Vectors handed over to a search engine: a FAISS index file, and how much a search in it finds."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tercet.data.rows import Texts
from tercet.errors import UserError
from tercet.files import whole_folder, write_json
from tercet.mining import pair_scores, top_k
from tercet.mining.ann import ASKED, Index, build_index, import_faiss, settings_for
from tercet.mining.search import Rows
from tercet.progress import progress

Kind = Literal["float32", "int8", "binary"]  # what a component of a stored vector is
KINDS, INDEXES = get_args(Kind), get_args(Index)
ANSWERS = 10  # per query, of which recall is measured
OVERSAMPLE = 4  # times as many candidates, for a reader who scores them again
TIE = 1e-6  # scores this near are equal: engines add up in different orders
Search = Callable[[NDArray[np.float32], int], NDArray[np.int64]]  # (Q, H), k -> positions (Q, k)


@dataclass(frozen=True)
class Recall:
    """Share of the exact ten best documents that a search returns, averaged over queries."""

    at_10: float
    among_40: float  # that are among 40 candidates: what scoring those again would return
    queries: int

    def line(self) -> str:
        """One sentence."""
        return (
            f"recall@{ANSWERS} {self.at_10:.4f} against exact search, {self.among_40:.4f} among "
            f"{ANSWERS * OVERSAMPLE} candidates ({self.queries:,} queries)"
        )


def check_choice(index: Index, kind: Kind, width: int, documents: int) -> None:
    """Raise UserError for what no index can be made of."""
    if kind == "binary" and index not in ("flat", "hnsw"):
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
    facts: dict[str, Any],
) -> Recall:
    """Write `index.faiss`, `documents.jsonl` (line i is position i) and `index.json` to `out`.

    vectors (D, H) and queries (Q, H) float32. Bits are the signs of the components, compared by
    Hamming distance; everything else by inner product. The folder is read back from disk, searched
    with `queries`, and appears only whole. `facts` go into index.json beside the recall.
    """
    check_choice(index, kind, vectors.shape[1], len(documents))
    faiss = import_faiss("--to faiss")
    with whole_folder(out) as partial:
        file = str(partial / "index.faiss")
        if kind == "binary":
            faiss.write_index_binary(_binary_index(faiss, vectors, index), file)
            searched = binary_search(faiss.read_index_binary(file))
        else:
            settings = settings_for(*vectors.shape)
            k = ANSWERS * OVERSAMPLE
            built = build_index(vectors, index, settings, k=k, int8=kind == "int8")
            faiss.write_index(built, file)
            del built
            searched = faiss_search(faiss.read_index(file))
        _write_documents(partial / "documents.jsonl", documents)
        recall = measure_recall(searched, queries, vectors)
        made = {"index": index, "vectors": kind, "documents": len(documents), "engine": "faiss"}
        write_json(partial / "index.json", {**facts, **made, "recall": vars(recall)})
    return recall


def measure_recall(search: Search, queries: NDArray[np.float32], vectors: Rows) -> Recall:
    """Ask `search` and exact search the same; what ties with the tenth best counts as found."""
    k = min(ANSWERS, len(vectors))
    wide = min(k * OVERSAMPLE, len(vectors))
    found = np.concatenate(
        [search(queries[s : s + ASKED], wide) for s in range(0, len(queries), ASKED)]
    )
    exact, _ = top_k(queries, vectors, k)
    good = pair_scores(queries, vectors, found) >= exact[:, -1:] - TIE
    among = np.minimum(good.sum(axis=1), k) / k
    return Recall(float(good[:, :k].mean()), float(among.mean()), len(queries))


def faiss_search(index: Any) -> Search:
    """Positions by inner product."""
    return lambda asked, k: index.search(np.ascontiguousarray(asked, dtype=np.float32), k)[1]


def binary_search(index: Any) -> Search:
    """Positions by Hamming distance of the signs."""
    return lambda asked, k: index.search(bits(asked), k)[1]


def bits(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(N, H) -> (N, H / 8): 1 where a component is above 0, the first in the highest bit."""
    return np.packbits(vectors > 0, axis=1)


def _binary_index(faiss: Any, vectors: Rows, index: Index) -> Any:
    width = vectors.shape[1]
    built = faiss.IndexBinaryFlat(width) if index == "flat" else faiss.IndexBinaryHNSW(width, 32)
    if index == "hnsw":
        built.hnsw.efSearch = 256
    for start in range(0, len(vectors), ASKED):
        built.add(bits(vectors[start : start + ASKED]))
    return built


def _write_documents(path: Path, documents: Texts) -> None:
    with path.open("w", encoding="utf-8") as file, progress("texts", len(documents)) as advance:
        for id_, text in zip(documents.ids, documents.texts, strict=True):
            file.write(json.dumps({"_id": id_, "text": text}, ensure_ascii=False) + "\n")
            advance()
