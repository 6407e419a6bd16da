"""What is handed over in tests: clustered vectors with texts, and a disk that fills."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from tercet.data import Texts

COUNT, WIDTH = 1_500, 32
DOCUMENTS = Texts([f"d{n}" for n in range(COUNT)], [f"text {n}" for n in range(COUNT)])


def clustered(rows: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors round 60 centres, the same ones for any seed."""
    centres = np.random.default_rng(0).normal(size=(60, WIDTH))
    random = np.random.default_rng(seed)
    vectors = centres[random.integers(0, 60, rows)] + 0.6 * random.normal(size=(rows, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """The kernel refuses to write more into any file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
