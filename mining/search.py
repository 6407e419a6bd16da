"""The exact k nearest documents of every query, streamed tile by tile in bounded memory."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tercet.errors import UserError
from tercet.progress import progress

TILE_QUERIES = 256
TILE_DOCUMENTS = 8192  # 256 x 8,192 scores: 8 MB
_POSITION_BITS = 32
_POSITION_MASK = (1 << _POSITION_BITS) - 1
_SIGN_FLIP = 0x7FFF_FFFF


class Rows(Protocol):
    """(N, H) float32 vectors that need not be in memory: an array, a memory map, a store."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]: ...


def top_k(
    queries: Rows,
    documents: Rows,
    k: int,
    *,
    tile_queries: int = TILE_QUERIES,
    tile_documents: int = TILE_DOCUMENTS,
    device: torch.device | str | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores (Q, k) and positions (Q, k) of each query's best documents by inner product.

    queries (Q, H) and documents (D, H) may be memory-mapped; documents are read once (and once
    before that, to check them). Best first; equal scores stand in the order of their positions.
    k is clipped to D. Each product has the same shape, short tiles being filled up with zeros, so
    that a score does not depend on which other queries are searched in the same call.
    `device` defaults to CUDA where there is one. Raises UserError naming a row that holds NaN,
    infinity or values so large that a score would overflow.
    """
    if (
        not len(queries.shape) == len(documents.shape) == 2
        or queries.shape[1] != documents.shape[1]
    ):
        raise ValueError(f"queries {queries.shape} and documents {documents.shape} do not fit")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    check_finite(queries, "query")
    check_finite(documents, "document")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    best: list[Tensor | None] = [None for _ in _tiles(len(queries), tile_queries)]
    total = len(best) * -(-len(documents) // tile_documents)
    with progress("search", total) as advance:
        for first, block in _padded(documents, tile_documents, place):
            for number, (start, part) in enumerate(_padded(queries, tile_queries, place)):
                scores = part @ block.T
                scores = scores[: len(queries) - start, : len(documents) - first]
                best[number] = _merged(best[number], _best_keys(scores, first, k), k)
                advance()
    return _decode([keys for keys in best if keys is not None], len(queries))


def check_finite(vectors: Rows, what: str) -> None:
    """Raise UserError naming the first row whose squared length is not a finite number.

    Where all squared lengths are finite in float32, so is every inner product (Cauchy-Schwarz).
    """
    for start, stop in _tiles(len(vectors), TILE_DOCUMENTS):
        rows = np.asarray(vectors[start:stop], dtype=np.float32)
        bad = np.flatnonzero(~np.isfinite(np.einsum("nh,nh->n", rows, rows)))
        if len(bad):
            raise UserError(
                f"{what} vectors, row {start + bad[0]}: not finite; "
                "encode it again, and look at that text and at the model's weights"
            )


def _tiles(total: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, total)) for start in range(0, total, size)]


def _padded(vectors: Rows, size: int, place: torch.device) -> Iterator[tuple[int, Tensor]]:
    """(start, tile) with each tile (size, H) in float32, zeros after the last row."""
    for start, stop in _tiles(len(vectors), size):
        tile = np.zeros((size, vectors.shape[1]), dtype=np.float32)
        tile[: stop - start] = vectors[start:stop]
        yield start, torch.from_numpy(tile).to(place)


def _best_keys(scores: Tensor, first: int, k: int) -> Tensor:
    """(q, min(k, d)) keys of the best scores (q, d) of one tile, whose documents begin at `first`.

    torch.topk may take any of several equal scores at the edge. In those rows alone all d keys are
    made and sorted: doing so in every row takes more than twice as long.
    """
    k = min(k, scores.shape[1])
    values, columns = torch.topk(scores, k, dim=1)
    keys = _keys(values, columns + first)
    tied = ((scores >= values[:, -1:]).sum(dim=1) > k).nonzero()[:, 0]
    if len(tied):
        positions = torch.arange(first, first + scores.shape[1], device=scores.device)
        keys[tied] = torch.topk(_keys(scores[tied], positions), k, dim=1).values
    return keys


def _keys(scores: Tensor, positions: Tensor) -> Tensor:
    """int64 keys, all different: larger is a higher score and, among equals, a lower position.

    The bits of a float32, with those below the sign turned over when it is negative, order as an
    integer does. They fill the upper half of a key, the turned-over position the lower half.
    """
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    ordered = torch.where(bits < 0, bits ^ _SIGN_FLIP, bits).long()
    return (ordered << _POSITION_BITS) + (_POSITION_MASK - positions)


def _merged(before: Tensor | None, keys: Tensor, k: int) -> Tensor:
    """(q, min(k, all)) best of those seen so far, best first."""
    both = keys if before is None else torch.cat([before, keys], dim=1)
    return torch.topk(both, min(k, both.shape[1]), dim=1).values


def _decode(best: list[Tensor], rows: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    if not best:
        return np.zeros((rows, 0), dtype=np.float32), np.zeros((rows, 0), dtype=np.int64)
    keys = torch.cat(best).cpu()
    ordered = (keys >> _POSITION_BITS).int()
    scores = torch.where(ordered < 0, ordered ^ _SIGN_FLIP, ordered).view(torch.float32)
    return scores.numpy(), (_POSITION_MASK - (keys & _POSITION_MASK)).numpy()
