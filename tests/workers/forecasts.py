"""A forecast in processes of its own: `python -m tests.workers.forecasts WORLD OUT RECIPE WORD...`.

OUT gets what was predicted. With `--sharded` before WORLD the model is in shards.
"""

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from tercet.configs import load
from tercet.stages import with_student
from tercet.train import setup
from tercet.train.dry_run import forecast
from tests.workers.launch import run_ranks, sharding_accelerator


def work(rank: int, out: Path, words: list[str]) -> None:
    with with_student(load(words[0], words[1:])) as config:
        found = forecast(config)
    if rank == 0:
        out.write_text(json.dumps(asdict(found)), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "--sharded":
        setup.Accelerator = sharding_accelerator  # type: ignore[assignment]
        del sys.argv[1]
    run_ranks(int(sys.argv[1]), partial(work, out=Path(sys.argv[2]), words=sys.argv[3:]))
