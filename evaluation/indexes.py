"""Approximate indexes over a model's own vectors: what each finds, costs, and would cost at scale.

Every index is built by FAISS (Douze et al. 2024) over the documents of a task and asked its
queries. Memory is measured on the index as it would be written to a disk, and projected to
corpora of any size from the parts of an index with the settings for that many.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tercet.data.rows import RetrievalTask
from tercet.errors import UserError
from tercet.evaluation.compression import (
    CANDIDATES,
    K,
    main_scores,
    mean_score,
    scored_again,
    share_kept,
)
from tercet.evaluation.ranking import Ranking, search, without_self
from tercet.mining.ann import (
    AnnSettings,
    add_all,
    build_index,
    import_faiss,
    search_index,
    settings_for,
    training_sample,
)
from tercet.mining.pairs import recall
from tercet.mining.search import Rows
from tercet.models.quantise import Ranges, bits, calibrate, int8_codes, numbers
from tercet.progress import quiet, say

Kind = Literal["flat", "hnsw", "ivf_flat", "ivf_pq", "pq", "int8", "binary"]
KINDS: tuple[Kind, ...] = ("flat", "hnsw", "ivf_flat", "ivf_pq", "pq", "int8", "binary")
SIZES = (10**6, 10**7, 10**8, 10**9)  # documents that memory is projected to
LEAST = 1_000  # documents: a product quantiser learns 256 codewords for each byte
MOST_CODE_BYTES = 96  # of a product quantiser
TIMED = 1.0  # seconds that a search is repeated for, at least
Ask = Callable[[Rows, int], NDArray[np.int64]]  # queries (Q, H), k -> positions (Q, k), best first


@dataclass(frozen=True)
class Indexed:
    """One index on one task."""

    kind: Kind
    name: str  # with what decides its size: "IVF286,PQ96"
    mean: float  # MAIN_METRIC
    kept: float  # of that of exact search
    recall: float  # mean share of the exact K best that is found
    build_seconds: float  # training included
    queries_per_second: float  # all queries in one call, rescoring included
    bytes_per_vector: float  # of the index, tables and links included
    rescoring_bytes: int  # more for each document, read for candidates alone
    projected: dict[int, float]  # documents -> bytes of the index


def index_study(
    task: RetrievalTask,
    queries: Rows,
    documents: Rows,
    *,
    kinds: Sequence[Kind] = KINDS,
    ranges: Ranges | None = None,
    skip_self: bool = False,
    seed: int = 0,
) -> list[Indexed]:
    """Build and search every kind of index.

    queries (Q, H), documents (D, H). `binary` searches bits and scores the first CANDIDATES again,
    the float32 query against int8 codes by `ranges` (default: calibrated here). `skip_self` is that
    of `search`. Everything is seeded; HNSW is built by one thread, as its graph would else differ
    from run to run.
    Raises UserError without FAISS, or for fewer than 1,000 documents.
    """
    faiss = import_faiss("--index")
    count, width = documents.shape
    if count < LEAST:
        raise UserError(
            f"{task.name}: {count:,} documents are too few for an index study; {LEAST:,} are needed"
        )
    settings = study_settings(count, width)
    exact = search(task, queries, documents, K, skip_self=skip_self)
    best = mean_score(main_scores(task, exact))
    found = []
    for kind in kinds:
        say(f"{task.name}: {index_name(kind, count, width)} over {count:,} documents")
        start = time.perf_counter()
        ask, size = _built(faiss, kind, documents, settings, ranges, seed)
        built = time.perf_counter() - start
        answer, speed = _timed(lambda ask=ask: ask(queries, K + skip_self), len(queries))
        ranking = _ranked(answer)
        ranking = without_self(task, ranking, K) if skip_self else ranking
        mean = mean_score(main_scores(task, ranking))
        found.append(
            Indexed(
                kind=kind,
                name=index_name(kind, count, width),
                mean=mean,
                kept=share_kept(mean, best),
                recall=recall(exact.positions, ranking.positions),
                build_seconds=built,
                queries_per_second=speed,
                bytes_per_vector=size / count,
                rescoring_bytes=width if kind == "binary" else 0,
                projected={rows: projected_bytes(kind, rows, width) for rows in SIZES},
            )
        )
    return found


def study_settings(documents: int, width: int) -> AnnSettings:
    """Those that mining searches with, product quantisers of at most MOST_CODE_BYTES."""
    most = min(MOST_CODE_BYTES, max(1, width // 4))
    code_bytes = next(n for n in range(most, 0, -1) if width % n == 0)
    return replace(settings_for(documents, width), code_bytes=code_bytes)


def index_name(kind: Kind, documents: int, width: int) -> str:
    """As FAISS's index factory writes it.

    >>> index_name("ivf_pq", 5183, 384)
    'IVF132,PQ96'
    """
    s = study_settings(documents, width)
    return {
        "flat": "Flat",
        "hnsw": f"HNSW{s.neighbours}",
        "ivf_flat": f"IVF{s.lists},Flat",
        "ivf_pq": f"IVF{s.lists},PQ{s.code_bytes}",
        "pq": f"PQ{s.code_bytes}",
        "int8": "SQ8",
        "binary": "BFlat",
    }[kind]


def projected_bytes(kind: Kind, documents: int, width: int) -> float:
    """Memory of an index over so many vectors, without vectors that only rescoring reads.

    A vector's code; a list's centroid, 8 bytes of id where lists hold vectors; for HNSW 2 M links
    on the lowest level, M on each above, which a vector reaches with probability 1 / M, and 12
    bytes of book-keeping; codebooks of 256 vectors; least and span of each dimension for SQ8.

    >>> round(projected_bytes("flat", 10**9, 768) / 1e12, 2)  # terabytes
    3.07
    >>> round(projected_bytes("pq", 10**9, 768) / 1e9)  # gigabytes
    96
    """
    s = study_settings(documents, width)
    links = 4 * (2 * s.neighbours + s.neighbours / (s.neighbours - 1)) + 12
    lists, codebooks = 4 * width * s.lists, 4 * 256 * width
    each = {
        "flat": 4 * width,
        "hnsw": 4 * width + links,
        "ivf_flat": 4 * width + 8,
        "ivf_pq": s.code_bytes + 8,
        "pq": s.code_bytes,
        "int8": width,
        "binary": math.ceil(width / 8),
    }[kind]
    tables = {"ivf_flat": lists, "ivf_pq": lists + codebooks, "pq": codebooks, "int8": 8 * width}
    return documents * each + tables.get(kind, 0)


def _built(
    faiss: Any,
    kind: Kind,
    documents: Rows,
    settings: AnnSettings,
    ranges: Ranges | None,
    seed: int,
) -> tuple[Ask, int]:
    """A search over a filled index, and the bytes it is written in."""
    if kind == "binary":
        return _binary(faiss, documents, ranges or calibrate(documents))
    if kind == "pq":
        index = _product_quantiser(faiss, documents, settings, seed)
    elif kind == "int8":
        index = build_index(documents, "flat", settings, k=K, seed=seed, int8=True)
    else:
        index = build_index(documents, kind, settings, k=K, seed=seed)
    size = len(faiss.serialize_index(index))
    return lambda queries, k: search_index(index, queries, k), size


def _product_quantiser(faiss: Any, documents: Rows, settings: AnnSettings, seed: int) -> Any:
    index = faiss.IndexPQ(documents.shape[1], settings.code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.seed = seed
    index.train(training_sample(documents, settings, seed))
    add_all(faiss, index, documents, 0)
    return index


def _binary(faiss: Any, documents: Rows, ranges: Ranges) -> tuple[Ask, int]:
    packed, fine = bits(documents), numbers(int8_codes(documents, ranges))
    index = faiss.IndexBinaryFlat(8 * packed.shape[1])
    index.add(packed)

    def ask(queries: Rows, k: int) -> NDArray[np.int64]:
        nearest = index.search(bits(queries), min(CANDIDATES, len(packed)))[1]
        return scored_again(queries, fine, nearest, k).positions

    return ask, len(faiss.serialize_index_binary(index))


def _ranked(positions: NDArray[np.int64]) -> Ranking:
    """Positions (Q, k) with scores that fall from rank to rank, as an index orders them."""
    falling = np.arange(positions.shape[1], 0, -1, dtype=np.float32)
    return Ranking(np.broadcast_to(falling, positions.shape), positions)


def _timed(ask: Callable[[], NDArray[np.int64]], queries: int) -> tuple[NDArray[np.int64], float]:
    """What a search finds, and queries a second over at least TIMED seconds."""
    answer = ask()
    with quiet():  # a bar for each search would be timed with it
        rounds, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < TIMED:
            ask()
            rounds += 1
    return answer, rounds * queries / spent
