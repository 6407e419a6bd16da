"""Threads that compute side by side."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def compute_threads(device: torch.device) -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """A pool to run operations of `device` in, and how many threads it has.

    On a CPU every thread that torch may use has whole operations to itself: none waits for the
    others within one, what torch runs on one thread only is run by all, and the number of threads
    leaves no trace in the bytes. For an accelerator one thread queues the work.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1:
        with ThreadPoolExecutor(1) as pool:
            yield pool, 1
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool, threads
    finally:
        torch.set_num_threads(threads)  # what a worker sets is the default of new threads, too
