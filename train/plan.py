"""Who encodes which text of a batch, and in which micro-batch: the same answer on every process."""

import heapq
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tercet.data.rows import Indices
from tercet.models import token_batches


class Plan(NamedTuple):
    """Micro-batches of every rank: positions of texts, queries first, then documents.

    Every rank has equally many, since sharded training needs it; one that has no text left to
    encode gets an empty micro-batch.
    """

    ranks: list[list[Indices]]
    lengths: NDArray[np.int64]  # (texts,) tokens

    @property
    def tokens(self) -> int:
        """Real tokens of the batch, special ones included."""
        return int(self.lengths.sum())

    @property
    def padded(self) -> int:
        """Tokens that go through the encoder."""
        return sum(self.loads)

    @property
    def loads(self) -> list[int]:
        """The same of each rank."""
        return [sum(self.cost(micro) for micro in rank) for rank in self.ranks]

    @property
    def imbalance(self) -> float:
        """Padded tokens of the busiest rank, for which the others wait, over the mean, minus 1."""
        return max(self.loads) * len(self.ranks) / self.padded - 1

    def cost(self, micro: Indices) -> int:
        """Padded tokens of one micro-batch."""
        return int(len(micro) * self.lengths[micro].max(initial=0))

    def kept(self, tokens: int) -> int:
        """How many of the first micro-batches keep their graphs, given padded tokens per rank.

        Equally many on every rank: a sharded model gathers its weights in each forward pass, so
        all ranks must run the same number of them.
        """
        costs = [np.cumsum([self.cost(micro) for micro in rank]) for rank in self.ranks]
        return min(int((cost <= tokens).sum()) for cost in costs)

    def held(self, tokens: int) -> int:
        """Most padded tokens whose graphs a rank holds at once: all, or so many and one more."""
        largest = max(self.cost(micro) for rank in self.ranks for micro in rank)
        return min(max(self.loads), tokens + largest)

    def recomputed(self, tokens: int) -> float:
        """Share of padded tokens encoded twice where graphs of so many per rank are kept."""
        kept = self.kept(tokens)
        again = sum(self.cost(micro) for rank in self.ranks for micro in rank[kept:])
        return again / self.padded


def plan(
    lengths: NDArray[np.int64], ranks: int, micro_tokens: int, groups: Indices | None = None
) -> Plan:
    """Cut texts of the given token counts into micro-batches of at most `micro_tokens` tokens.

    Texts are dealt longest first, each to the rank with the fewest tokens so far (Graham 1969).
    Texts of different `groups` share no micro-batch.
    """
    dealt = _deal(lengths, ranks)
    cut = [_cut(texts, lengths, micro_tokens, groups) for texts in dealt]
    most = max(len(micro) for micro in cut)
    return Plan([_stretch(micro, most) for micro in cut], lengths)


def _deal(lengths: NDArray[np.int64], ranks: int) -> list[Indices]:
    longest_first = np.argsort(-lengths, kind="stable")
    loads = [(0, rank) for rank in range(ranks)]  # a heap
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for text, length in zip(longest_first.tolist(), lengths[longest_first].tolist(), strict=True):
        load, rank = loads[0]
        dealt[rank].append(text)
        heapq.heapreplace(loads, (load + length, rank))
    return [np.array(texts, dtype=np.int64) for texts in dealt]


def _cut(
    texts: Indices, lengths: NDArray[np.int64], budget: int, groups: Indices | None
) -> list[Indices]:
    parts = [texts] if groups is None else [texts[groups[texts] == g] for g in np.unique(groups)]
    batches = [part[b] for part in parts for b in token_batches(lengths[part], budget)]
    # Longest first: what does not fit into memory fails at once, and the later, smaller ones find
    # room in what the earlier left behind.
    return sorted(batches, key=lambda b: -lengths[b].max())


def _stretch(micro: list[Indices], count: int) -> list[Indices]:
    """Halve the fullest micro-batches until there are `count`."""
    micro = list(micro)
    while len(micro) < count:
        fullest = max(range(len(micro)), key=lambda i: len(micro[i]), default=None)
        if fullest is None or len(micro[fullest]) < 2:
            micro.append(np.zeros(0, dtype=np.int64))
        else:
            micro[fullest : fullest + 1] = np.array_split(micro[fullest], 2)
    return micro
