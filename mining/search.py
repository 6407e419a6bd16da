"""The exact k nearest documents of every query, streamed tile by tile in bounded memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from tercet.errors import UserError
from tercet.mining.best import GROUP, Best
from tercet.models import default_device
from tercet.processes import process_count, process_index, share_mistakes
from tercet.progress import Advance, progress
from tercet.threads import compute_threads

CPU_TILE = (1_024, 16_384)  # queries, documents
ACCELERATOR_TILE = (2_048, 32_768)  # enough work for each of the few kernels that a tile takes
BLOCK_TILES = 64  # tiles of queries that share one pass over the documents,
MEMORY = 540_000_000  # bytes that their candidates may take
PAIR_BYTES = 128  # of these for each query and each of its k documents, at most
Found = tuple[NDArray[np.float32], NDArray[np.int64]]


class Rows(Protocol):
    """(N, H) float32 vectors that need not be in memory: an array, a memory map, a store."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]: ...


class _Asked(NamedTuple):
    """Some queries, zeros below the last, and the best documents found for them."""

    start: int
    vectors: Tensor  # (tile's queries, H)
    best: Best


def top_k(
    queries: Rows,
    documents: Rows,
    k: int,
    *,
    tile: tuple[int, int] | None = None,
    device: torch.device | str | None = None,
    memory: int = MEMORY,
) -> Found:
    """Scores (Q, k) and positions (Q, k) of each query's best documents by inner product.

    queries (Q, H) and documents (D, H) may be memory-mapped: documents are read once for each
    block of queries, and memory holds that block's candidates, a tile for each thread and the
    answer. Best first; equal scores stand in the order of their positions. k is clipped to D. A
    product is of at most `tile` (queries, documents), whatever the number of threads. `device`
    defaults to the accelerator where there is one. A block holds queries whose candidates take at
    most `memory` bytes, and one tile at least; less costs more passes over the documents, may leave
    threads idle and changes no byte. Raises UserError naming a row that holds NaN, infinity or
    values so large that a score would overflow.
    """
    check(queries, documents, k)
    place, span = torch.device(device or default_device()), (0, len(queries))
    return _search(queries, span, documents, k, tile or default_tile(place), place, memory)


def shared_top_k(queries: Rows, documents: Rows, k: int, *, memory: int = MEMORY) -> Found:
    """`top_k`, searched by all processes of the launch together; each returns the whole answer.

    Every process calls it with the same vectors. The processes' shares are whole tiles of queries,
    so the answer has the same bytes however many processes there are.
    """
    rank, world = process_index(), process_count()  # joins the launch, which sets the device
    place = default_device()
    tile = default_tile(place)
    tiles = -(-len(queries) // tile[0])
    first, last = (min(tile[0] * (tiles * r // world), len(queries)) for r in (rank, rank + 1))
    with share_mistakes():
        check(queries, documents, k)
        found = [_search(queries, (first, last), documents, k, tile, place, memory)]
    scores, positions = zip(*gather_object(found), strict=True)
    return np.concatenate(scores), np.concatenate(positions)


def default_tile(device: torch.device) -> tuple[int, int]:
    """Queries and documents of one product; all that it depends on is the kind of device."""
    return CPU_TILE if device.type == "cpu" else ACCELERATOR_TILE


def least_bytes(queries: int, documents: int, k: int) -> int:
    """What candidates take at least: a block holds one tile, however little `memory` is."""
    high = default_tile(default_device())[0]
    return min(high, queries) * min(k, documents) * PAIR_BYTES


def check_rows(rows: NDArray[np.float32], start: int, what: str) -> None:
    """Raise UserError naming the first row whose squared length is not a finite number.

    rows (n, H), the first of which is row `start` of all. Where all squared lengths are finite in
    float32, so is every inner product (Cauchy-Schwarz).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        bad = np.flatnonzero(~np.isfinite(np.einsum("nh,nh->n", rows, rows)))
    if len(bad):
        raise UserError(
            f"{what} vectors, row {start + bad[0]}: not finite; "
            "encode it again, and look at that text and at the model's weights"
        )


def check(queries: Rows, documents: Rows, k: int) -> None:
    """Refuse what can be told before any work: shapes, k, and queries that are not finite."""
    if not len(queries.shape) == len(documents.shape) == 2:
        raise ValueError(f"queries {queries.shape} and documents {documents.shape}: not two axes")
    if queries.shape[1] != documents.shape[1]:
        raise ValueError(f"queries {queries.shape} and documents {documents.shape} do not fit")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    for start in range(0, len(queries), CPU_TILE[1]):
        check_rows(np.asarray(queries[start : start + CPU_TILE[1]], np.float32), start, "query")


def _search(
    queries: Rows,
    span: tuple[int, int],
    documents: Rows,
    k: int,
    tile: tuple[int, int],
    place: torch.device,
    memory: int,
) -> Found:
    """`top_k` for the queries from span[0] to before span[1]."""
    (begin, end), (high, wide), k = span, tile, min(k, len(documents))
    scores = np.empty((end - begin, k), dtype=np.float32)
    positions = np.empty((end - begin, k), dtype=np.int64)
    block = high * min(BLOCK_TILES, memory // (high * max(k, 1) * PAIR_BYTES) or 1)
    work = -(-(end - begin) // high) * -(-len(documents) // wide)
    with compute_threads(place) as (pool, threads), progress("search", work) as advance:
        for first in range(begin, end, block):
            asked = [
                _Asked(start, torch.from_numpy(part).to(place), Best(stop - start, k, place))
                for start, stop, part in _tiles(
                    queries, first, min(first + block, end), high, place
                )
            ]
            _offer_all(documents, asked, wide, pool, threads, advance)
            answers = pool.map(lambda one: one.best.found(), asked)
            for (start, _, best), answer in zip(asked, answers, strict=True):
                rows = slice(start - begin, start - begin + len(best.floor))
                scores[rows], positions[rows] = (part.cpu().numpy() for part in answer)
    return scores, positions


def _offer_all(
    documents: Rows,
    asked: list[_Asked],
    wide: int,
    pool: ThreadPoolExecutor,
    threads: int,
    advance: Advance,
) -> None:
    """Show every tile of documents to every tile of queries, a share of these in each thread."""
    device = asked[0].vectors.device
    shares = [asked[turn::threads] for turn in range(min(threads, len(asked)))]
    size = (wide + GROUP) * len(asked[0].vectors)
    products = [torch.empty(size, device=device) for _ in shares]
    for start, stop, part in _tiles(documents, 0, len(documents), wide, device):
        check_rows(part, start, "document")
        shown = torch.from_numpy(part).to(device)
        list(pool.map(partial(_show, shown, start, stop), shares, products))
        advance(len(asked))


def _show(shown: Tensor, start: int, stop: int, share: list[_Asked], product: Tensor) -> None:
    """Documents `start` to before `stop`, zeros below them, to a share of the queries."""
    for _, vectors, best in share:
        scores = product[: len(shown) * len(vectors)].view(len(shown), len(vectors))
        torch.mm(shown, vectors.T, out=scores)
        scores[stop - start :] = -torch.inf
        best.offer(scores[:, : len(best.floor)], start)


def _tiles(
    vectors: Rows, first: int, last: int, step: int, place: torch.device
) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """(start, stop, rows) of every `step` rows, with zeros below them."""
    for start in range(first, last, step):
        stop = min(start + step, last)
        # an accelerator may round a product of another shape differently
        rows = stop - start if place.type == "cpu" else step
        filled = np.zeros((GROUP * -(-rows // GROUP), vectors.shape[1]), dtype=np.float32)
        filled[: stop - start] = vectors[start:stop]
        yield start, stop, filled
