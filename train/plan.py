"""Who encodes which text of a batch, and in which micro-batch: the same answer on every process."""

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
        return sum(self.cost(micro) for rank in self.ranks for micro in rank)

    def cost(self, micro: Indices) -> int:
        """Padded tokens of one micro-batch."""
        return int(len(micro) * self.lengths[micro].max(initial=0))

    def imbalance(self) -> float:
        """Tokens of the busiest rank over the mean of ranks, minus 1."""
        loads = [sum(int(self.lengths[m].sum()) for m in rank) for rank in self.ranks]
        return max(loads) / (sum(loads) / len(loads)) - 1


def plan(
    lengths: NDArray[np.int64], ranks: int, micro_tokens: int, groups: Indices | None = None
) -> Plan:
    """Cut texts of the given token counts into micro-batches of at most `micro_tokens` tokens.

    Texts are dealt to the ranks longest first, there and back again (1 2 3 3 2 1 ...), which
    balances tokens to within one text. Texts of different `groups` share no micro-batch.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    turn = np.arange(len(lengths)) % (2 * ranks)
    owner = np.minimum(turn, 2 * ranks - 1 - turn)
    cut = [
        _cut(longest_first[owner == rank], lengths, micro_tokens, groups) for rank in range(ranks)
    ]
    most = max(len(micro) for micro in cut)
    return Plan([_stretch(micro, most) for micro in cut], lengths)


def _cut(
    texts: Indices, lengths: NDArray[np.int64], budget: int, groups: Indices | None
) -> list[Indices]:
    parts = [texts] if groups is None else [texts[groups[texts] == g] for g in np.unique(groups)]
    return [part[b] for part in parts for b in token_batches(lengths[part], budget)]


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
