"""`stages.mine` in real processes, one job after another, for the price of one start.

`python -m tests.workers.mining JOBS.json`: a list of {"name", "world", "cache", "recipe", "set",
"out"}, with as needed "smallest" (documents below which no index is built). Rank 0 writes
OUT/<name>.json: what was mined, and how many texts, searches and pairs the models were given over
all ranks; a rank that was refused writes OUT/<name>-<rank>.txt.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from tercet import stages
from tercet.configs import load
from tercet.errors import UserError
from tercet.mining import ann, candidates
from tercet.models import cross
from tercet.stages import mining as mining_stage
from tests.workers.launch import run_ranks


def counted(calls: dict[str, int], name: str, size: Callable[..., int], plain: Any) -> Any:
    """`plain`, adding the size of what it is given to `calls[name]`."""

    def counting(*given: Any, **more: Any) -> Any:
        calls[name] += size(*given)
        return plain(*given, **more)

    return counting


def work(rank: int, job: dict[str, Any]) -> None:
    os.environ["TERCET_CACHE"] = job["cache"]
    ann.SMALLEST = job.get("smallest", ann.SMALLEST)
    calls = {"texts": 0, "searches": 0, "pairs": 0}
    load_encoder = mining_stage.load_encoder

    def watched(*given: Any, **more: Any) -> Any:
        model = load_encoder(*given, **more)

        def count(_: object, given: Any) -> None:
            calls["texts"] += len(given[0]["input_ids"])

        model.register_forward_pre_hook(count)
        return model

    mining_stage.load_encoder = watched
    search, predict = candidates.shared_top_k, cross._predict
    candidates.shared_top_k = counted(calls, "searches", lambda *_: 1, search)
    cross._predict = counted(calls, "pairs", lambda _, texts: len(texts), predict)
    try:
        mined = stages.mine(load(job["recipe"], job["set"]))
    except UserError as error:
        Path(job["out"], f"{job['name']}-{rank}.txt").write_text(str(error))
        return
    everyone = gather_object([calls])
    total = {name: sum(each[name] for each in everyone) for name in calls}
    if rank == 0:
        found = {"kept": mined.counts.kept, "queries": mined.counts.queries, **total}
        Path(job["out"], f"{job['name']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for one in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        run_ranks(one["world"], partial(work, job=one))
