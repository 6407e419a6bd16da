"""Training runs in real processes, one after another, for the price of one start.

`python -m tests.workers.runs JOBS.json`: a list of {"world": n, "recipe": path, "set": [...],
"kill_after": step or null, "seen": path or null, "sharded": bool, "remine": bool}. `seen` gets
the texts of every batch as each rank read them.
"""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tercet.configs import load
from tercet.stages.mining import remine_stage
from tercet.train import finetune, loop, setup
from tests.workers.launch import run_ranks, sharding_accelerator


def work(rank: int, job: dict[str, Any]) -> None:
    config = load(job["recipe"], job["set"])
    if job.get("kill_after"):
        _die_after(job["kill_after"])
    if job.get("seen"):
        _record_batches(Path(job["seen"]) / f"rank{rank}of{job['world']}.jsonl")
    if job.get("sharded"):
        setup.Accelerator = sharding_accelerator  # type: ignore[assignment]
    finetune(config, remine=remine_stage(config) if job.get("remine") else None)


def _die_after(step: int) -> None:
    """Kill -9 in the middle of the step after `step`: the gradient is there, not yet applied."""
    plain = loop.gradient_of

    def dying(run: loop.Run, batch: Any, cut: Any) -> Any:
        found = plain(run, batch, cut)
        if run.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    loop.gradient_of = dying


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


if __name__ == "__main__":
    torch.set_num_threads(1)
    for one in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        try:
            run_ranks(one["world"], partial(work, job=one))
        except SystemExit:
            if not one.get("kill_after"):
                raise
