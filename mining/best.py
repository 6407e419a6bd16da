"""The k best of many scores, found by looking closely at few of them."""

import torch
from torch import Tensor

GROUP = 16  # documents whose scores are looked at as one: their largest stands for all


class Best:
    """The k best documents of each of Q queries, while scores of ever later documents are offered.

    A query's floor is a score it surely has k documents at or above: mostly the k-th best so far.
    Only scores above it are looked at one by one (after d documents a k / d share of the next, in
    any random order): they are found by the peaks of their groups, set aside, and sorted when
    enough have gathered.

    Documents come in the order of their positions. So a later score that only equals the floor is
    beaten by k earlier ones, and a stable sort leaves equal scores in the order of their positions.
    """

    def __init__(self, queries: int, k: int, device: torch.device) -> None:
        self.k = k
        self.floor = torch.full((queries,), -torch.inf, device=device)
        self.scores = torch.empty(queries, 0, device=device)  # (Q, <= k), best first
        self.positions = torch.empty(queries, 0, dtype=torch.int64, device=device)
        self._aside: list[tuple[Tensor, Tensor, Tensor]] = []  # values, queries, positions, flat
        self._gathered = 0  # scores set aside
        self._enough = k * queries

    def offer(self, scores: Tensor, first: int) -> None:
        """scores (d, Q) of documents first, first + 1, ...; -inf stands for no document.

        d is a multiple of GROUP. The host waits for the device twice, not once for each hit.
        """
        peaks = scores.view(-1, GROUP, scores.shape[1]).amax(dim=1)
        if self.scores.shape[1] < self.k:
            self._raise_floor(scores, peaks)
        values, queries, places = self._rising(scores, peaks)
        if len(values) > 2 * self._enough:  # documents that come ever better
            self._raise_floor(scores, peaks)
            values, queries, places = self._rising(scores, peaks)
        if len(values):
            self._aside.append((values, queries, places + first))
            self._gathered += len(values)
        if self._gathered >= self._enough:
            self.settle()

    def settle(self) -> None:
        """Sort what was set aside into `scores` and `positions`."""
        if not self._aside:
            return
        values, queries, places = (torch.cat(part) for part in zip(*self._aside, strict=True))
        found = _by_query(values, queries, places, len(self.floor))
        self._aside, self._gathered = [], 0
        scores = torch.cat([self.scores, found[0]], dim=1)
        positions = torch.cat([self.positions, found[1]], dim=1)
        ordered = scores.sort(dim=1, descending=True, stable=True)
        self.scores = ordered.values[:, : self.k].contiguous()
        self.positions = positions.gather(1, ordered.indices[:, : self.k])
        if self.scores.shape[1] == self.k:
            self.floor = self.scores[:, -1].contiguous()

    def _rising(self, scores: Tensor, peaks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(values, queries, places) of the scores above their query's floor.

        A query's places ascend.
        """
        places, queries = (peaks > self.floor).nonzero(as_tuple=True)
        groups = scores.view(-1, GROUP, scores.shape[1])[places, :, queries]  # (P, GROUP)
        group, place = (groups > self.floor[queries, None]).nonzero(as_tuple=True)
        values = groups[group, place] + 0.0  # + 0.0 makes -0.0 equal to 0.0 for any sort
        return values, queries[group], places[group] * GROUP + place

    def _raise_floor(self, scores: Tensor, peaks: Tensor) -> None:
        """To just below the k-th largest peak of this tile, which k documents reach."""
        pool = peaks if self.k <= len(peaks) else scores
        if self.k <= len(pool):
            reached = pool.topk(self.k, dim=0, sorted=False).values.amin(dim=0)
            below = torch.nextafter(reached, torch.full_like(reached, -torch.inf))
            self.floor = torch.maximum(self.floor, below)


def _by_query(
    values: Tensor, queries: Tensor, positions: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Flat (value, query, position) triples as two (count, most of a query); -inf where none is.

    A query's triples keep their order.
    """
    order = queries.argsort(stable=True)
    queries = queries[order]
    counts = torch.bincount(queries, minlength=count)
    column = torch.arange(len(queries), device=queries.device)
    column -= (counts.cumsum(0) - counts)[queries]
    shape = (count, int(counts.max()))
    found = values.new_full(shape, -torch.inf), positions.new_zeros(shape)
    found[0][queries, column] = values[order]
    found[1][queries, column] = positions[order]
    return found
