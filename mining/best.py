"""The k best of many scores, found by looking closely at few of them."""

import torch
from torch import Tensor

GROUP = 16  # documents whose scores are looked at as one: their largest stands for all
MOST = 1 << 32  # documents that can be told apart


class Best:
    """The k best documents of each of Q queries, while scores of ever later documents are offered.

    A query's floor is a score it surely has k documents at or above: mostly the k-th best so far.
    Only scores above it are looked at one by one (after d documents a k / d share of the next, in
    any random order): they are found by the peaks of their groups, set aside, and settled when
    enough have gathered.

    A score and its position are kept as one whole number, the key: the larger key has the larger
    score or, where scores are equal, the lower position.
    """

    def __init__(self, queries: int, k: int, device: torch.device) -> None:
        self.k = k
        self.floor = torch.full((queries,), -torch.inf, device=device)
        self._keys = torch.empty(queries, 0, dtype=torch.int64, device=device)  # (Q, <= k)
        self._aside: list[tuple[Tensor, Tensor]] = []  # keys and queries, flat
        self._gathered = 0  # scores set aside
        self._enough = k * queries

    def offer(self, scores: Tensor, first: int) -> None:
        """scores (d, Q) of documents first, first + 1, ...; -inf stands for no document.

        d is a multiple of GROUP. The host waits for the device twice, not once for each hit.
        """
        peaks = scores.view(-1, GROUP, scores.shape[1]).amax(dim=1)
        if self._keys.shape[1] < self.k:
            self._raise_floor(scores, peaks)
        values, queries, places = self._rising(scores, peaks)
        if len(values) > 2 * self._enough:  # documents that come ever better
            self._raise_floor(scores, peaks)
            values, queries, places = self._rising(scores, peaks)
        if len(values):
            self._aside.append((_key(values, places + first), queries))
            self._gathered += len(values)
        if self._gathered >= self._enough:
            self._settle()

    def found(self) -> tuple[Tensor, Tensor]:
        """Scores (Q, <= k) float32, best first, and positions (Q, <= k) int64 of all so far."""
        self._settle()
        keys = self._keys.sort(dim=1, descending=True).values
        return _score(keys), MOST - 1 - keys % MOST

    def _settle(self) -> None:
        """Choose the best of them and what was set aside."""
        if not self._aside:
            return
        keys, queries = (torch.cat(part) for part in zip(*self._aside, strict=True))
        self._aside, self._gathered = [], 0
        pool = torch.cat([self._keys, _by_query(keys, queries, len(self.floor))], dim=1)
        self._keys = pool.topk(min(self.k, pool.shape[1]), sorted=False).values
        if self._keys.shape[1] == self.k:
            self.floor = _score(self._keys.amin(dim=1))

    def _rising(self, scores: Tensor, peaks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(values, queries, places) of the scores above their query's floor."""
        places, queries = (peaks > self.floor).nonzero(as_tuple=True)
        groups = scores.view(-1, GROUP, scores.shape[1])[places, :, queries]  # (P, GROUP)
        group, place = (groups > self.floor[queries, None]).nonzero(as_tuple=True)
        return groups[group, place], queries[group], places[group] * GROUP + place

    def _raise_floor(self, scores: Tensor, peaks: Tensor) -> None:
        """To just below the k-th largest peak of this tile, which k documents reach."""
        pool = peaks if self.k <= len(peaks) else scores
        if self.k <= len(pool):
            reached = pool.topk(self.k, dim=0, sorted=False).values.amin(dim=0)
            below = torch.nextafter(reached, torch.full_like(reached, -torch.inf))
            self.floor = torch.maximum(self.floor, below)


def _key(scores: Tensor, positions: Tensor) -> Tensor:
    """One int64 for a float32 score and a position below MOST.

    Read as whole numbers, floats of the sign + are in order and those of the sign - in reverse:
    turning all but the sign round puts them in order too.
    """
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    return _in_order(bits).to(torch.int64) * MOST + (MOST - 1 - positions)


def _score(keys: Tensor) -> Tensor:
    """The float32 scores of keys."""
    return _in_order((keys // MOST).to(torch.int32)).view(torch.float32)


def _in_order(bits: Tensor) -> Tensor:
    """Bits of floats as int32 of the same order, and back."""
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _by_query(keys: Tensor, queries: Tensor, count: int) -> Tensor:
    """Flat keys as (count, most of a query); where none is, that of the score -inf."""
    order = queries.argsort()
    queries = queries[order]
    counts = torch.bincount(queries, minlength=count)
    column = torch.arange(len(queries), device=queries.device)
    column -= (counts.cumsum(0) - counts)[queries]
    absent = _key(torch.full((), -torch.inf), torch.tensor(MOST - 1))
    found = keys.new_full((count, int(counts.max())), int(absent))
    found[queries, column] = keys[order]
    return found
