"""Training runs in real processes, one after another, for the price of one start.

`python -m tests.workers.runs JOBS.json`: a list of {"world": n, "recipe": path, "set": [...]}, with
as needed "own" (by rank, settings besides), "kill_after" (step), "seen" (path: gets the texts of
every batch as each rank read them), "sharded", "remine" (true), "pace" (seconds that a step takes
longer), "use" (path: gets memory and time at every step), "times" (path: gets how long the parts of
the command took), "fault" (what workers/faults.py injects), "said" (path: gets what each rank
printed, with its number behind), "weights" (path: gets those that each rank ends with, with its
number behind), "command" (true: typed as a command, export and all), "verb" (of that command, if
not finetune) and "may_fail" (true). The exit statuses of all ranks go to statuses.json beside the
jobs.
"""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file

from tercet import cli
from tercet.configs import load
from tercet.stages.mining import remine_stage
from tercet.train import finetune, loop, setup
from tests.workers import faults
from tests.workers.launch import sharding_accelerator, statuses


def work(rank: int, job: dict[str, Any]) -> None:
    if job.get("said"):
        to = os.open(f"{job['said']}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(to, sys.stderr.fileno())
    if job.get("kill_after"):
        faults.die(job["kill_after"])
    if job.get("pace"):
        faults.slow_down(job["pace"])
    if job.get("use"):
        _record_use(Path(job["use"]))
    if job.get("times") and rank == 0:
        faults.note_times(Path(job["times"]))
    if job.get("fault"):
        faults.inject(rank, **job["fault"])
    if job.get("seen"):
        _record_batches(Path(job["seen"]) / f"rank{rank}of{job['world']}.jsonl")
    if job.get("sharded"):
        setup.Accelerator = sharding_accelerator  # type: ignore[assignment]
    settings = [*job["set"], *job.get("own", {}).get(str(rank), ())]
    if job.get("command"):
        sys.argv = ["tercet", job.get("verb", "finetune"), job["recipe"], *settings]
        try:
            return cli.main()
        finally:
            faults.outlast()
    config = load(job["recipe"], settings)
    trained = finetune(config, remine=remine_stage(config) if job.get("remine") else None)
    if job.get("weights"):
        save_file(dict(trained.encoder.state_dict()), f"{job['weights']}{rank}")


def _record_batches(path: Path) -> None:
    plain = loop.gradient_of

    def recording(run: loop.Run, batch: Any, cut: Any) -> Any:
        data = run.batches.data
        queries = sorted(data.queries.texts[i] for i in batch.queries)
        documents = sorted(data.documents.texts[i] for i in batch.documents)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([queries, documents]) + "\n")
        return plain(run, batch, cut)

    loop.gradient_of = recording


def _record_use(path: Path) -> None:
    """One line a step: megabytes of this process, seconds of its clock."""
    plain, process = loop.gradient_of, psutil.Process()

    def recording(*given: Any) -> Any:
        used = process.memory_info().rss / 2**20
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{used} {time.perf_counter()}\n")
        return plain(*given)

    loop.gradient_of = recording


if __name__ == "__main__":
    torch.set_num_threads(1)
    ends = []
    for one in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        ends.append(statuses(one["world"], partial(work, job=one)))
        if any(ends[-1]) and not one.get("kill_after") and not one.get("may_fail"):
            raise SystemExit(f"a job failed: {one} {ends[-1]}")
    Path(sys.argv[1]).with_name("statuses.json").write_text(json.dumps(ends), encoding="utf-8")
