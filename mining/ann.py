"""Approximate search with FAISS, for corpora beyond exact search, and how much it misses."""

from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tercet.errors import UserError
from tercet.mining.pairs import best_first, pair_scores, recall
from tercet.mining.search import Rows, check, check_rows, top_k
from tercet.models.quantise import Ranges
from tercet.progress import progress, say

Index = Literal["flat", "hnsw", "ivf_flat", "ivf_pq"]
SMALLEST = 10_000  # documents: below, exact search takes seconds and 256 codewords lack examples
BLOCK = 16_384  # documents added at a time
ASKED = 1_024  # queries searched at a time
PER_CENTROID = 39  # training vectors; FAISS warns below
MOST_CELLS = 65_536  # each is compared with every vector that is added


@dataclass(frozen=True)
class AnnSettings:
    """How hard the index tries. `settings_for` derives them from the size of the corpus."""

    lists: int  # ivf: cells that the corpus is cut into
    probes: int  # ivf: cells that a query looks into
    code_bytes: int  # ivf_pq: bytes a vector is packed into; divides its width
    oversample: int = 4  # ivf_pq: candidates per answer that are scored again from their vectors
    neighbours: int = 32  # hnsw: links per document (twice that on the lowest level)
    ef_construction: int = 128  # hnsw: candidates held while a document is linked
    ef_search: int = 256  # hnsw: candidates held while a query is answered, at least k
    build_threads: int = 1  # hnsw: with more, the graph differs from run to run


def settings_for(documents: int, width: int) -> AnnSettings:
    """Defaults for `documents` vectors of `width`: 4 sqrt(N) cells, as FAISS's guidelines have it.

    Fewer where those would lack training vectors, and `MOST_CELLS` at most.

    >>> settings_for(1_000_000, 384).lists, settings_for(1_000_000, 384).code_bytes
    (4000, 96)
    """
    lists = max(1, min(isqrt(16 * documents), documents // PER_CENTROID, MOST_CELLS))
    quarter = max(1, width // 4)
    code_bytes = next(n for n in range(quarter, 0, -1) if width % n == 0)
    return AnnSettings(lists=lists, probes=2 * isqrt(lists), code_bytes=code_bytes)


def ann_top_k(
    queries: Rows,
    documents: Rows,
    k: int,
    *,
    index: Index,
    settings: AnnSettings | None = None,
    seed: int = 0,
    sample: int = 200,
) -> tuple[NDArray[np.float32], NDArray[np.int64], float]:
    """Scores (Q, k) and positions (Q, k) of good documents by inner product, and the recall@k.

    queries (Q, H), documents (D, H); best first, equal scores in the order of their positions; k
    is clipped to D. Scores are exact inner products of the vectors found, whatever the index keeps
    of them. Where an index finds fewer than k, the rest has position -1 and score -inf. The recall
    is the mean share of the exact k best that was found, over `sample` seeded queries; it is also
    printed. Below 10,000 documents the search is exact. Memory holds the index (flat and hnsw:
    all vectors in float32; ivf_pq: `code_bytes` each) and blocks.

    The same vectors, settings, seed and number of threads give the same answer. Raises UserError
    if FAISS is not installed, and naming a row that is not finite.
    """
    import_faiss(f"index {index!r}")
    check(queries, documents, k)
    if len(documents) < SMALLEST:
        say(f"{index}: exact search, since {len(documents):,} documents are below {SMALLEST:,}")
        return *top_k(queries, documents, k), 1.0
    settings = settings or settings_for(*documents.shape)
    k = min(k, len(documents))
    built = build_index(documents, index, settings, k=k, seed=seed)
    width = min(k * (settings.oversample if index == "ivf_pq" else 1), len(documents))
    found = search_index(built, queries, width)
    scores, positions = best_first(pair_scores(queries, documents, found), found, k)
    share = _sampled_recall(queries, documents, positions, sample, seed)
    say(f"{index}, {len(documents):,} documents: recall@{k} {share:.3f} against exact search")
    return scores, positions, share


def build_index(
    documents: Rows,
    index: Index,
    settings: AnnSettings,
    *,
    k: int,
    seed: int = 0,
    int8: bool = False,
    ranges: Ranges | None = None,
) -> Any:
    """A trained FAISS index by inner product that holds all documents (D, H) in their order.

    Ready to be asked for k at a time. With `int8` it keeps 8 bits a component, scaled to `ranges`,
    or, without them, to what the component reaches in a sample of the documents. ivf_flat codes
    differences from its cells' centres, which `ranges` do not fit; ivf_pq has codes of its own.
    """
    faiss = import_faiss(f"index {index!r}")
    built = empty_index(faiss, index, documents.shape[1], settings, k, seed, int8)
    if not built.is_trained and ranges is not None and index in ("flat", "hnsw"):
        built.train(np.stack([ranges.low, ranges.high]))  # it takes the least and the largest
    elif not built.is_trained:
        size, wanted = _sample_size(documents, settings), 256 * PER_CENTROID
        few = f", few: its 256 codewords want {wanted:,}" * (index == "ivf_pq" and size < wanted)
        say(f"{index}: training on {size:,} vectors{few}")
        built.train(training_sample(documents, settings, seed))
    add_all(faiss, built, documents, settings.build_threads if index == "hnsw" else 0)
    return built


def import_faiss(what: str) -> Any:
    """The package. Raises UserError, saying how to install it, if it is missing."""
    try:
        import faiss
    except ImportError:
        raise UserError(
            f"{what} needs FAISS, which is not installed: pip install 'tercet[ann]'"
        ) from None
    return faiss


def empty_index(
    faiss: Any,
    index: Index,
    width: int,
    settings: AnnSettings,
    k: int,
    seed: int,
    int8: bool = False,
) -> Any:
    """An index of inner products for vectors of `width`, to be trained and filled."""
    metric, bits = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_8bit
    if index == "flat":
        return faiss.IndexScalarQuantizer(width, bits, metric) if int8 else faiss.IndexFlatIP(width)
    if index == "hnsw":
        if int8:
            built = faiss.IndexHNSWSQ(width, bits, settings.neighbours, metric)
        else:
            built = faiss.IndexHNSWFlat(width, settings.neighbours, metric)
        built.hnsw.efConstruction = settings.ef_construction
        built.hnsw.efSearch = max(settings.ef_search, k)
        return built
    cells = faiss.IndexFlatIP(width)
    if index == "ivf_flat" and int8:
        built = faiss.IndexIVFScalarQuantizer(cells, width, settings.lists, bits, metric)
    elif index == "ivf_flat":
        built = faiss.IndexIVFFlat(cells, width, settings.lists, metric)
    else:
        built = faiss.IndexIVFPQ(cells, width, settings.lists, settings.code_bytes, 8, metric)
        built.pq.cp.seed = seed
        built.pq.cp.min_points_per_centroid = 1  # of too few it would warn for each code byte
    built.cp.seed = seed
    built.nprobe = min(settings.probes, settings.lists)
    return built


def training_sample(documents: Rows, settings: AnnSettings, seed: int) -> NDArray[np.float32]:
    """Seeded rows, in their order, enough for every cell and for the 256 codewords of ivf_pq."""
    count = _sample_size(documents, settings)
    chosen = np.random.default_rng(seed).choice(len(documents), count, replace=False)
    chosen.sort()
    parts = []
    for start in range(0, len(documents), BLOCK):
        low, high = np.searchsorted(chosen, (start, start + BLOCK))
        part = np.asarray(documents[start : start + BLOCK], dtype=np.float32)
        check_rows(part, start, "document")
        parts.append(part[chosen[low:high] - start])
    return np.concatenate(parts)


def _sample_size(documents: Rows, settings: AnnSettings) -> int:
    return min(len(documents), PER_CENTROID * max(settings.lists, 256))


def add_all(faiss: Any, built: Any, documents: Rows, threads: int) -> None:
    """Add all documents to an index, block by block; threads 0: as many as FAISS uses anyway."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads or before)
    try:
        with progress("index", len(documents)) as advance:
            for start in range(0, len(documents), BLOCK):
                part = np.ascontiguousarray(documents[start : start + BLOCK], dtype=np.float32)
                check_rows(part, start, "document")
                built.add(part)
                advance(len(part))
    finally:
        faiss.omp_set_num_threads(before)


def search_index(built: Any, queries: Rows, width: int) -> NDArray[np.int64]:
    """Positions (Q, width) as the index ranks them, -1 where it finds no more."""
    found = np.empty((len(queries), width), dtype=np.int64)
    with progress("search", len(queries)) as advance:
        for start in range(0, len(queries), ASKED):
            part = np.ascontiguousarray(queries[start : start + ASKED], dtype=np.float32)
            found[start : start + len(part)] = built.search(part, width)[1]
            advance(len(part))
    return found


def _sampled_recall(
    queries: Rows, documents: Rows, positions: NDArray[np.int64], sample: int, seed: int
) -> float:
    """`recall` of positions (Q, k) against exact search, over a seeded sample of queries."""
    count = min(sample, len(queries))
    if not count:
        return 1.0
    chosen = np.sort(np.random.default_rng(seed).choice(len(queries), count, replace=False))
    asked = np.concatenate([queries[query : query + 1] for query in chosen])
    return recall(top_k(asked, documents, positions.shape[1])[1], positions[chosen])
