"""Any loss at several widths (Kusupati et al. 2022, arXiv:2205.13147)."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, TypeVar

import torch.nn.functional as F
from torch import Tensor


class Seen(Protocol):
    """A named tuple with a field `loss`, and whatever else a loss reports."""

    @property
    def loss(self) -> Tensor: ...
    def _replace(self, **fields: Any) -> Self: ...


Report = TypeVar("Report", bound=Seen)
Loss = Callable[[Tensor, Tensor], Report]


def matryoshka(
    loss: Loss[Report],
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    *,
    unit: bool = True,
) -> Loss[Report]:
    """The weighted sum of `loss` over the first d dimensions for each d.

    `unit`: they are made unit vectors again, as truncation does for models whose vectors are.
    What it reports beside the loss (scores, dropped pairs) is that of the widest.
    Raises ValueError when called with vectors narrower than the largest of `dims`.
    """
    weight = dict(zip(dims, weights or [1.0] * len(dims), strict=True))

    def narrow(vectors: Tensor, width: int) -> Tensor:
        cut = vectors[:, :width]
        return F.normalize(cut, dim=1) if unit and width < vectors.shape[1] else cut

    def nested(queries: Tensor, documents: Tensor) -> Report:
        if max(dims) > queries.shape[1]:
            raise ValueError(f"matryoshka dims {list(dims)} exceed the width {queries.shape[1]}")
        parts = {d: loss(narrow(queries, d), narrow(documents, d)) for d in dims}
        total = sum((weight[d] * parts[d].loss for d in parts), start=queries.new_zeros(()))
        return parts[max(dims)]._replace(loss=total)

    return nested
