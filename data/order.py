"""Which rows make up batch t: a pure function of (sizes, seed, t), with nothing stored.

An epoch's shuffle is a keyed permutation that can be asked for any position, so resuming at step
1,000,000 costs nothing and 100 million rows need no array of positions.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tercet.data.rows import Indices

ROUNDS = 8  # a Feistel network of 4 rounds is already a good shuffle (Luby and Rackoff, 1988)
BLOCK = 256  # steps over which the shares of the sources are met exactly


def permute(positions: Indices, size: int, *key: int) -> Indices:
    """Send distinct positions in [0, size) to distinct places in [0, size), shuffled by `key`.

    A Feistel network over the next even power of two, followed until it lands inside [0, size)
    (cycle walking: at most 4 tries on average), which keeps it a bijection for every size.

    >>> sorted(permute(np.arange(10), 10, 7).tolist()) == list(range(10))
    True
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    value = positions.astype(np.uint64)
    if ((positions < 0) | (positions >= size)).any():
        raise ValueError(f"positions must lie in [0, {size})")
    value = _feistel(value, half, key)
    while (outside := value >= size).any():
        value[outside] = _feistel(value[outside], half, key)
    return value.astype(np.int64)


def lots(rows: Indices, places: NDArray[np.integer], *key: int) -> NDArray[np.uint64]:
    """A random number for each (row, place), keyed: the lowest of a row win a draw."""
    row_key, place_key = _round_keys(key)[:2]
    mixed = _mix(rows.astype(np.uint64) ^ row_key)
    return _mix(mixed + (places.astype(np.uint64) ^ place_key))


@dataclass(frozen=True)
class Order:
    """The batches of a run.

    sizes: rows of each source. Every batch comes from one source, so that no source serves as
    easy negatives for another; sources are drawn in proportion to rows ** alpha. Within a source
    every row is seen once per epoch and the last short batch is used, not dropped.
    """

    sizes: tuple[int, ...]
    batch_size: int
    seed: int
    alpha: float = 0.5

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which as many batches were drawn as all sources hold."""
        return sum(self._source_steps(source) for source in range(len(self.sizes)))

    def batch(self, step: int) -> tuple[Indices, int]:
        """Row numbers of batch `step` (0-based) and the epoch its source is in."""
        source, drawn = self._source_of(step)
        epoch, turn = divmod(drawn, self._source_steps(source))
        size = self.sizes[source]
        start = turn * self.batch_size
        positions = np.arange(start, min(start + self.batch_size, size))
        rows = permute(positions, size, self.seed, source, epoch)
        return rows + sum(self.sizes[:source]), epoch

    def _source_steps(self, source: int) -> int:
        return -(-self.sizes[source] // self.batch_size)

    def _source_of(self, step: int) -> tuple[int, int]:
        """The source of a step, and how many earlier steps drew from it."""
        if len(self.sizes) == 1:
            return 0, step
        block, place = divmod(step, BLOCK)
        shares = _shares(self.sizes, self.alpha)
        sequence = np.repeat(np.arange(len(shares)), shares)
        sequence = sequence[permute(np.arange(BLOCK), BLOCK, self.seed, -1, block)]
        source = int(sequence[place])
        earlier = int((sequence[:place] == source).sum())
        return source, block * shares[source] + earlier


@lru_cache
def _shares(sizes: tuple[int, ...], alpha: float) -> tuple[int, ...]:
    """Steps of each source in a block of BLOCK: by largest remainder, at least one each."""
    if len(sizes) > BLOCK:
        raise ValueError(f"at most {BLOCK} sources, got {len(sizes)}")
    weights = np.array(sizes, dtype=np.float64) ** alpha
    exact = weights / weights.sum() * BLOCK
    shares = np.maximum(1, np.floor(exact)).astype(int)
    while shares.sum() < BLOCK:
        shares[np.argmax(exact - shares)] += 1
    while shares.sum() > BLOCK:  # the single steps of tiny sources are taken from the others
        shares[np.argmax(np.where(shares > 1, shares / exact, 0.0))] -= 1
    return tuple(int(share) for share in shares)


def _feistel(value: NDArray[np.uint64], half: int, key: tuple[int, ...]) -> NDArray[np.uint64]:
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    left, right = value >> shift, value & mask
    for round_key in _round_keys(key):
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return (left << shift) | right


@lru_cache(maxsize=1024)
def _round_keys(key: tuple[int, ...]) -> tuple[np.uint64, ...]:
    """Eight 64-bit words that differ for any two keys, however large or long."""
    digest = hashlib.blake2b(repr([int(part) for part in key]).encode(), digest_size=8 * ROUNDS)
    return tuple(np.frombuffer(digest.digest(), dtype="<u8").astype(np.uint64))


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every input bit reaches all."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
