"""Encoding into a store in real processes, one job after another, for the price of one start.

`python -m tests.workers.store JOBS.json`: a list of {"name", "world", "folder", "model", "texts",
"out"} with, as needed, "threads", "kill_at" (texts encoded by a rank before it kills itself),
"nan" (texts of 64 tokens get such a vector), "slow" (seconds a batch takes more), "beside" (the
next job starts while this one runs). Each rank writes OUT/<name>-<rank>.json: texts that went
through the model, the complaint if any. A job of {"name", "world", "argv", "env", "out"} types a
command, and each rank writes what it printed; with "refused", what it complained of.
"""

import json
import os
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tercet.cli import main
from tercet.configs import ModelConfig
from tercet.errors import UserError
from tercet.models import load_encoder, vectors
from tests.workers.launch import run_ranks

BATCH_TOKENS = 512  # about 50 texts: what is under way at a kill is far less than a shard


def work(rank: int, job: dict[str, Any]) -> None:
    torch.set_num_threads(job.get("threads", 1))
    model = load_encoder(ModelConfig(path=job["model"]))
    texts = json.loads(Path(job["texts"]).read_text(encoding="utf-8"))
    seen: list[int] = []

    def count(_: object, given: tuple[dict[str, torch.Tensor]]) -> None:
        seen.append(len(given[0]["input_ids"]))
        if sum(seen) >= job.get("kill_at", sys.maxsize):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(job.get("slow", 0.0))

    def spoil(_: object, given: tuple[dict[str, torch.Tensor]], made: dict[str, Any]) -> None:
        longest = given[0]["input_ids"].shape[1] == 64  # as only the spoilt text is
        made["sentence_embedding"] *= torch.nan if longest else 1.0

    model.register_forward_pre_hook(count)
    if job.get("nan"):
        model.register_forward_hook(spoil)
    found: dict[str, Any] = {}
    start = time.monotonic()
    try:
        made = vectors(
            model, texts, "document", folder=Path(job["folder"]), batch_tokens=BATCH_TOKENS
        )
        found["shape"] = made.shape
    except UserError as error:
        found["complaint"] = str(error)
    found |= {"rows": sum(seen), "seconds": time.monotonic() - start}
    Path(job["out"], f"{job['name']}-{rank}.json").write_text(json.dumps(found))


def command(rank: int, job: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    os.environ.update(job["env"])
    sys.argv = ["tercet", *job["argv"]]
    said = redirect_stderr if job.get("refused") else redirect_stdout
    with Path(job["out"], f"{job['name']}-{rank}.txt").open("w") as file, said(file):
        main()


def beside(job: dict[str, Any]) -> int:
    """Start a job in a process of its own and return when it holds its store."""
    child = os.fork()
    if child == 0:
        run_ranks(job["world"], partial(work, job=job))
        os._exit(0)
    while not list(Path(job["folder"]).glob("*/manifest.json")):
        time.sleep(0.01)
    return child


if __name__ == "__main__":
    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    children = []
    for one in jobs:
        if one.get("beside"):
            children.append(beside(one))
            continue
        try:
            run_ranks(one["world"], partial(command if "argv" in one else work, job=one))
        except SystemExit:
            if not (one.get("kill_at") or one.get("refused")):
                raise
    if any(os.waitpid(child, 0)[1] for child in children):
        raise SystemExit("a job beside the others failed")
