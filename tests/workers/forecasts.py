"""A forecast in processes of its own: `python -m tests.workers.forecasts WORLD OUT RECIPE WORD...`.

OUT gets what was predicted and the most memory that the first process took meanwhile.
"""

import json
import resource
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import psutil
import torch

from tercet.configs import load
from tercet.train.dry_run import forecast
from tests.workers.launch import run_ranks


def work(rank: int, out: Path, words: list[str]) -> None:
    before = psutil.Process().memory_info().rss
    found = forecast(load(words[0], words[1:]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if rank == 0:
        megabytes = {"before": before / 2**20, "peak": peak / 2**20}
        out.write_text(json.dumps(asdict(found) | megabytes), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_ranks(int(sys.argv[1]), partial(work, out=Path(sys.argv[2]), words=sys.argv[3:]))
