"""The k best of many scores, found by looking closely at few of them."""

import torch
from torch import Tensor

GROUP = 16  # documents whose scores are looked at as one: their largest stands for all
MOST = 1 << 32  # documents that can be told apart
PIECE = 1 << 15  # groups that are looked into at once, or keys that are chosen from


class Best:
    """The k best documents of each of Q queries, while scores of ever later documents are offered.

    A query's floor is a score it surely has k documents at or above: mostly the k-th best so far.
    Only scores above it are looked at one by one (after d documents a k / d share of the next, in
    any random order): they are found by the peaks of their groups, set aside, and settled when
    as many as the answer holds have gathered.

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

        d is a multiple of GROUP. The host waits for the device twice, and once for each PIECE.
        """
        peaks = _peaks(scores, GROUP)
        if self._keys.shape[1] < self.k:
            self._raise_floor(scores)
        rising = (peaks > self.floor).nonzero()  # groups and queries
        if len(rising) > self._enough:  # documents that come ever better
            self._raise_floor(scores)
            rising = (peaks > self.floor).nonzero()
        for some in rising.split(PIECE):
            self._set_aside(scores, some, first)
            if self._gathered >= self._enough:
                self._settle()

    def found(self) -> tuple[Tensor, Tensor]:
        """Scores (Q, <= k) float32, best first, and positions (Q, <= k) int64 of all so far."""
        self._settle()
        keys = self._keys.sort(dim=1, descending=True).values
        return _score(keys), MOST - 1 - keys % MOST

    def _raise_floor(self, scores: Tensor) -> None:
        """To just below the k-th largest peak of this tile, which k documents reach.

        Groups are made so small that there are four for each document wanted: few more than k
        documents pass then.
        """
        group = GROUP
        while group > 1 and 4 * group * self.k > len(scores):
            group //= 2
        peaks = _peaks(scores, group)
        if self.k <= len(peaks):
            reached = peaks.topk(self.k, dim=0, sorted=False).values.amin(dim=0)
            below = torch.nextafter(reached, torch.full_like(reached, -torch.inf))
            self.floor = torch.maximum(self.floor, below)

    def _set_aside(self, scores: Tensor, rising: Tensor, first: int) -> None:
        """The scores above their query's floor in groups `rising` (P, 2)."""
        places, queries = rising.unbind(1)
        groups = scores.view(-1, GROUP, scores.shape[1])[places, :, queries]  # (P, GROUP)
        group, place = (groups > self.floor[queries, None]).nonzero(as_tuple=True)
        keys = _key(groups[group, place], places[group] * GROUP + place + first)
        self._aside.append((keys, queries[group].to(torch.int32)))
        self._gathered += len(keys)

    def _settle(self) -> None:
        """Choose the best of them and what was set aside, some queries at a time."""
        if not self._gathered:
            return
        keys, queries = (torch.cat(part) for part in zip(*self._aside, strict=True))
        self._aside, self._gathered = [], 0
        counts = torch.bincount(queries, minlength=len(self.floor))
        ends = [0, *counts.cumsum(0).tolist()]
        keys = keys[queries.argsort()]
        columns = torch.arange(int(counts.max()), device=keys.device)
        pooled = self._keys.shape[1] + len(columns)
        absent = int(_key(torch.tensor(-torch.inf), torch.tensor(MOST - 1)))
        step, settled = max(1, PIECE // pooled), []
        for start in range(0, len(counts), step):
            stop = min(start + step, len(counts))
            there = columns < counts[start:stop, None]
            new = keys.new_full(there.shape, absent)
            new.masked_scatter_(there, keys[ends[start] : ends[stop]])
            pool = torch.cat([self._keys[start:stop], new], dim=1)
            settled.append(pool.topk(min(self.k, pooled), sorted=False).values)
        self._keys = torch.cat(settled)
        if self._keys.shape[1] == self.k:  # of absent ones, too, where fewer have been set aside
            self.floor = torch.maximum(self.floor, _score(self._keys.amin(dim=1)))


def _peaks(scores: Tensor, group: int) -> Tensor:
    """The largest of every `group` documents, (d / group, Q)."""
    return scores.view(-1, group, scores.shape[1]).amax(dim=1) if group > 1 else scores


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
