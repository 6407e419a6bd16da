"""Log-sum-exp of a score matrix that is never stored: tiles forward, the same tiles backward."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

TILE = 1024  # rows and columns of the scores held at once (measured: docs/decisions.md)


class Filter(NamedTuple):
    """Leaves out pair (r, c) where rows[r] . columns[c] > ceiling[r]. No gradient flows."""

    rows: Tensor  # (R, G)
    columns: Tensor  # (C, G)
    ceiling: Tensor  # (R,)


class MaskedSum(NamedTuple):
    logsumexp: Tensor  # (R,) with gradient; -inf for a row without a column left
    highest: Tensor  # (R,) the largest logit of each row
    dropped: Tensor  # (filters,) int64, pairs each left out that those before it had not


def at_least_float32(values: Tensor) -> Tensor:
    """The precision that all arithmetic of a loss is done in."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def masked_logsumexp(
    rows: Tensor,
    columns: Tensor,
    excluded: Tensor,
    temperature: float | Tensor,
    *,
    hardness: float = 0.0,
    filters: Sequence[Filter] = (),
    tile: int = TILE,
) -> MaskedSum:
    """log sum_c exp(rows[r] . columns[c] / temperature) over the columns left to each row.

    rows (R, H) and columns (C, H) share a float dtype; excluded (n, 2) int64 lists the pairs
    (r, c) left out, in any order, repeats allowed. `hardness` adds that many times the score,
    without gradient, to each logit. Memory beyond inputs and gradients is O(tile ** 2): the
    forward keeps a running maximum and sum (online softmax, Milakov and Gimelshein 2018,
    arXiv:1805.02867), the backward recomputes each tile.
    """
    scale = 1 / torch.as_tensor(temperature, dtype=rows.dtype, device=rows.device)
    tiles = _Tiles(len(rows), len(columns), tile, excluded)
    return MaskedSum(*_MaskedLogSumExp.apply(rows, columns, scale, hardness, filters, tiles))


class PairCosine(torch.autograd.Function):
    """(n,) rows[r] . columns[c] for each of the pairs (n, 2); no (n, H) is held."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, pairs: Tensor) -> Tensor:
        ctx.save_for_backward(rows, columns, pairs)
        pieces = [(rows[p[:, 0]] * columns[p[:, 1]]).sum(dim=1) for p in pairs.split(TILE)]
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        rows, columns, pairs = ctx.saved_tensors
        d_rows, d_columns = torch.zeros_like(rows), torch.zeros_like(columns)
        for p, weight in zip(pairs.split(TILE), gradients[0][:, None].split(TILE), strict=True):
            d_rows.index_add_(0, p[:, 0], columns[p[:, 1]].mul_(weight))
            d_columns.index_add_(0, p[:, 1], rows[p[:, 0]].mul_(weight))
        return d_rows, d_columns, None


class _Tiles:
    """The grid over (R, C) and, for each tile, the excluded pairs that fall in it."""

    def __init__(self, rows: int, columns: int, size: int, excluded: Tensor) -> None:
        self.rows, self.columns, self.size = rows, columns, size
        self.across = -(-columns // size)
        cell = (excluded[:, 0] // size) * self.across + excluded[:, 1] // size
        self.pairs = excluded[cell.argsort()] % size
        counts = cell.bincount(minlength=-(-rows // size) * self.across)
        self.ends = [0, *counts.cumsum(0).tolist()]

    def row_slices(self) -> Iterator[slice]:
        for start in range(0, self.rows, self.size):
            yield slice(start, min(start + self.size, self.rows))

    def column_slices(self) -> Iterator[slice]:
        for start in range(0, self.columns, self.size):
            yield slice(start, min(start + self.size, self.columns))

    def excluded(self, r: slice, c: slice) -> Tensor:
        """(n, 2) positions inside tile (r, c)."""
        cell = (r.start // self.size) * self.across + c.start // self.size
        return self.pairs[self.ends[cell] : self.ends[cell + 1]]


class _MaskedLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        hardness: float,
        filters: Sequence[Filter],
        tiles: _Tiles,
    ) -> tuple[Tensor, Tensor, Tensor]:
        highest = rows.new_full((len(rows),), -torch.inf)
        total = rows.new_zeros(len(rows))
        dropped = torch.zeros(len(filters), dtype=torch.int64, device=rows.device)
        for r in tiles.row_slices():
            scaled = rows[r] * (scale + hardness)
            for c in tiles.column_slices():
                logits, out = _logits(scaled, columns, filters, tiles, r, c)
                dropped += out
                top = torch.maximum(highest[r], logits.amax(dim=1))
                shift = top.masked_fill(top == -torch.inf, 0.0)  # -inf minus -inf would be NaN
                old = total[r] * (highest[r] - shift).exp()
                total[r] = old + logits.sub_(shift[:, None]).exp_().sum(dim=1)
                highest[r] = top
        result = highest + total.log()
        result = result.masked_fill(total == 0, -torch.inf)
        ctx.save_for_backward(rows, columns, scale, result)
        ctx.hardness, ctx.filters, ctx.tiles = hardness, filters, tiles
        ctx.mark_non_differentiable(highest, dropped)
        return result, highest, dropped

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """d/dx_rc = gradient_r * softmax_rc; the gradient of a hardness bonus is zero."""
        rows, columns, scale, result = ctx.saved_tensors
        weight = gradients[0][:, None]
        tiles: _Tiles = ctx.tiles
        d_rows, d_columns = torch.zeros_like(rows), torch.zeros_like(columns)
        log_sum = result.masked_fill(result == -torch.inf, torch.inf)  # exp(x - inf) = 0
        with torch.autocast(rows.device.type, enabled=False):
            for r in tiles.row_slices():
                scaled = rows[r] * (scale + ctx.hardness)
                weighted = rows[r] * weight[r]  # cheaper than weighting the (R, C) softmax
                for c in tiles.column_slices():
                    logits, _ = _logits(scaled, columns, ctx.filters, tiles, r, c)
                    softmax = logits.sub_(log_sum[r, None]).exp_()
                    d_rows[r].addmm_(softmax, columns[c])
                    d_columns[c].addmm_(softmax.T, weighted)
            d_rows.mul_(weight)
        d_scale = (d_rows * rows).sum() if ctx.needs_input_grad[2] else None
        return d_rows.mul_(scale), d_columns.mul_(scale), d_scale, None, None, None


def _logits(
    scaled: Tensor, columns: Tensor, filters: Sequence[Filter], tiles: _Tiles, r: slice, c: slice
) -> tuple[Tensor, Tensor]:
    """One tile of masked logits, and how many pairs each filter left out of it."""
    logits = scaled @ columns[c].T
    pairs = tiles.excluded(r, c)
    logits[pairs[:, 0], pairs[:, 1]] = -torch.inf
    dropped = torch.zeros(len(filters), dtype=torch.int64, device=logits.device)
    for number, (rows, others, ceiling) in enumerate(filters):
        out = (rows[r] @ others[c].T > ceiling[r, None]) & (logits != -torch.inf)
        dropped[number] = out.sum()
        logits.masked_fill_(out, -torch.inf)
    return logits, dropped
