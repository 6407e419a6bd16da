"""Vectors to search: clustered as texts are, and as many as asked for."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WIDTH = 384
CLUSTERS = 2_000
RANK = 48  # dimensions in which clusters and their members differ; the rest is a little noise
BLOCK = 16_384


def write_vectors(path: Path, rows: int, seed: int) -> NDArray[np.float32]:
    """A memory-mapped .npy of unit vectors (rows, WIDTH), made block by block.

    Members lie round the centres of 2,000 clusters of very different sizes (as 1 / sqrt(rank)), the
    same centres for any seed. They come in no order.
    """
    shared = np.random.default_rng(0)
    directions = shared.normal(size=(RANK, WIDTH)).astype(np.float32)
    centres = shared.normal(size=(CLUSTERS, RANK)).astype(np.float32)
    sizes = 1 / np.sqrt(np.arange(1, CLUSTERS + 1))
    random = np.random.default_rng(seed)
    vectors = np.lib.format.open_memmap(path, "w+", dtype=np.float32, shape=(rows, WIDTH))
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        latent = centres[random.choice(CLUSTERS, count, p=sizes / sizes.sum())]
        latent = latent + 0.7 * random.standard_normal((count, RANK), dtype=np.float32)
        block = latent @ directions + random.standard_normal((count, WIDTH), dtype=np.float32)
        vectors[start : start + count] = block / np.linalg.norm(block, axis=1, keepdims=True)
    vectors.flush()
    return np.load(path, mmap_mode="r")


def near(vectors: NDArray[np.float32], seed: int, far: float = 0.75) -> NDArray[np.float32]:
    """For each unit vector one at a cosine of about 1 / sqrt(1 + far ** 2), 0.8 unless told."""
    random = np.random.default_rng(seed)
    noise = random.standard_normal(vectors.shape, dtype=np.float32)
    moved = vectors + far * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)
