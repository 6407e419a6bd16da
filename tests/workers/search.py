"""The same search in 1, 2 and 4 processes; every process writes the answer it got.

`python -m tests.workers.search FOLDER` reads queries.npy and documents.npy there and writes
answer-<world>-<rank>.npz, and complaint-<world>-<rank>.txt about a query that is not finite.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tercet.errors import UserError
from tercet.mining import shared_top_k
from tests.workers.launch import run_ranks


def work(rank: int, world: int, folder: Path) -> None:
    queries = np.load(folder / "queries.npy", mmap_mode="r")
    documents = np.load(folder / "documents.npy", mmap_mode="r")
    scores, positions = shared_top_k(queries, documents, 50)
    np.savez(folder / f"answer-{world}-{rank}.npz", scores=scores, positions=positions)
    broken = np.array(queries)
    broken[-1, 0] = np.nan
    try:
        shared_top_k(broken, documents, 50)
    except UserError as error:
        (folder / f"complaint-{world}-{rank}.txt").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for size in (1, 2, 4):
        run_ranks(size, partial(work, world=size, folder=Path(sys.argv[1])))
