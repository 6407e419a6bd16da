"""Whether the cost model holds at 1 and 2 processes here, and what it says up to 1,024.

python -m benchmarks.scale [--rows N] [--out FOLDER]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich import print as show
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import RESULTS, refuse_trial, write_result
from benchmarks.pairs import STDLIB, code_pairs, draw
from tercet.configs import Config, load
from tercet.data.batch import Batch
from tercet.processes import process_count
from tercet.report.table import console_table, markdown_table
from tercet.train.cost import Cluster, Cost, Device, all_gather, all_reduce, state_bytes
from tercet.train.loop import gradient_of, plan_of
from tercet.train.plan import Plan
from tercet.train.run import Run
from tercet.train.saving import save
from tercet.train.scale import Workload, predict_on, workload
from tercet.train.setup import prepare
from tercet.train.sizing import peak_megabytes

BATCH, MICRO_TOKENS, KEEP_TOKENS = 64, 1_024, 4_096
STEPS = 6  # of which the fastest counts: what disturbs two processes disturbs one as well
LOOPBACK = 1e9  # bytes a second between processes of one machine; a step's seconds hide it
WORLDS = (1, 2, 8, 64, 256, 1_024)
NODE = 8  # devices of one machine in the simulated launches
PER_PROCESS = 64  # rows, where the batch grows with the launch
FIXED = 32_768  # rows, where it does not


def main() -> None:
    """Count here, simulate elsewhere, write scale.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_024)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rank", type=Path, help="internal: the folder of a launched process")
    options = parser.parse_args()
    if options.rank is not None:
        return count_here(options.rank)
    refuse_trial(parser, options, "rows")
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        write_pairs(pairs, options.rows)
        checks = {str(n): launch(n, Path(folder)) for n in (1, 2)}
        predict_seconds(checks)
        work = workload(config_of(Path(folder)))
    found = {"batch": BATCH, "checks": checks, "worlds": simulate(work, WORLDS)}
    path = write_result("scale", found, options.out)
    for table in (check_rows(found), world_rows(found)):
        show(console_table(table))
    print(f"results: {path}")


def write_pairs(path: Path, rows: int) -> None:
    """Real docstrings and their code, as JSONL."""
    data = draw(code_pairs(STDLIB), rows, seed=0)
    with path.open("w", encoding="utf-8") as file:
        for row, query in enumerate(data.row_query.tolist()):
            positive = data.documents.texts[int(data.positives[row][0])]
            pair = {"query": data.queries.texts[query], "positive": positive}
            file.write(json.dumps(pair) + "\n")


def config_of(folder: Path, model: str = "embedded", length: int = 128) -> Config:
    """A fixed cut, so that prediction and run agree on everything but what is to be shown."""
    sizes = [f"batch.size={BATCH}", f"batch.micro_tokens={MICRO_TOKENS}"]
    # A folder for each launch: going on from another's checkpoint would take memory.
    out = folder / f"run-{os.environ.get('WORLD_SIZE', 1)}"
    where = [f"data.train={folder / 'pairs.jsonl'}", f"output={out}"]
    more = [f"batch.keep_tokens={KEEP_TOKENS}", "train.mixed_precision=no", f"model.path={model}"]
    return load(
        "finetune", [*where, *sizes, *more, f"model.max_length={length}", "train.dropout=0"]
    )


def launch(world: int, folder: Path) -> dict[str, Any]:
    """What `world` processes counted in one step beside what was predicted."""
    command = ["torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
    words = [sys.executable, "-m", *command, "-m", "benchmarks.scale", "--rank", str(folder)]
    subprocess.run(words, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return json.loads((folder / f"{world}.json").read_text(encoding="utf-8"))


def count_here(folder: Path, model: str = "embedded", length: int = 128) -> None:
    """One process of a launch: run a step, count, and let the main one write what was found."""
    config = config_of(folder, model, length)
    world = process_count()  # joins the launch: on CPUs an Accelerator by itself does not
    before = psutil.Process().memory_info().rss / 2**20
    run = prepare(config)
    if isinstance(run.model, DistributedDataParallel):
        # DDP sums its gradients in C++, where no call can be counted; this is the same in Python.
        run.model.register_comm_hook(None, allreduce_hook)
    accelerator = run.accelerator
    batch = run.batches(0)
    cut = plan_of(run, batch)
    run.model.train()
    seconds = [_timed_step(run, batch, cut) for _ in range(STEPS)]  # the first one also allocates
    flops = FlopCounterMode(display=False)
    with counted() as sent, flops:
        gradient_of(run, batch, cut)
    memory = peak_megabytes(accelerator) - before
    own = torch.tensor([float(flops.get_total_flops()), sent[0], memory, min(seconds[1:])])
    every = torch.as_tensor(accelerator.gather(own)).view(-1, 4)
    start = time.perf_counter()
    save(run)
    saved = time.perf_counter() - start
    work = workload(config)
    one = replace(work, lengths=work.lengths[:1], queries=work.queries[:1])
    cluster = Cluster(1, world, half=False)
    cost = predict_on(one, config, cluster, "h100").cost
    if accelerator.is_main_process:
        found = {
            "counted": {
                "tokens": cut.tokens,
                "padded": cut.padded,
                "flops": float(every[:, 0].sum()),
                "sent": float(every[:, 1].max()),
                "memory_mib": float(every[:, 2].max()),
                "states_mib": state_mebibytes(run),
                "seconds": float(every[:, 3].max()),
            },
            "predicted": {
                "tokens": cost.tokens,
                "padded": cost.padded,
                "flops": cost.flops,
                "sent": cost.sent,
                "memory_mib": cost.memory / 2**20,
                "states_mib": state_bytes(work.shape, cluster, len(cut.ranks[0])) / 2**20,
            },
            "cost": asdict(cost),
            "save_seconds": saved,
        }
        path = folder / f"{world}.json"
        path.write_text(json.dumps(found), encoding="utf-8")
    run.model = run.encoder  # DDP goes before its group
    accelerator.free_memory()
    accelerator.end_training()


def _timed_step(run: Run, batch: Batch, cut: Plan) -> float:
    """Seconds of a gradient and its step, all processes waiting for the last."""
    run.accelerator.wait_for_everyone()
    start = time.perf_counter()
    gradient_of(run, batch, cut)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.accelerator.wait_for_everyone()
    return time.perf_counter() - start


def state_mebibytes(run: Run) -> float:
    """Weights, gradients, Adam's averages and DDP's buckets, tensor by tensor, in MiB."""
    weights = list(run.encoder.parameters())
    averages = [v for s in run.optimizer.state.values() for v in s.values() if v.numel() > 1]
    gradients = [p.grad for p in weights if p.grad is not None]
    buckets = gradients if isinstance(run.model, DistributedDataParallel) else []
    held = [*weights, *averages, *gradients, *buckets]
    return sum(t.numel() * t.element_size() for t in held) / 2**20


def predict_seconds(checks: dict[str, Any]) -> None:
    """Add the seconds of a step, by a device of which one process shows the FLOP a second.

    Every process computes on one thread, so what one of them does in a second is what each does.
    """
    alone = checks["1"]
    speed = alone["cost"]["flops_busiest"] / alone["counted"]["seconds"]
    here = Device(half=speed, single=speed, memory=0.0, link=LOOPBACK, network=LOOPBACK)
    for world, check in checks.items():
        cluster = Cluster(1, int(world), half=False)
        check["predicted"]["seconds"] = Cost(**check["cost"]).seconds(here, cluster, share=1.0)


@contextmanager
def counted() -> Iterator[list[float]]:
    """Bytes that ring collectives of the calls inside send from this process."""
    sent, plain = [0.0], {}
    dist = torch.distributed

    def wrap(name: str, size: Any) -> None:
        plain[name] = getattr(dist, name)

        def call(*given: Any, **named: Any) -> Any:
            sent[0] += size(dist.get_world_size(), *given)
            return plain[name](*given, **named)

        setattr(dist, name, call)

    def bytes_of(tensor: torch.Tensor) -> int:
        return tensor.numel() * tensor.element_size()

    wrap("all_reduce", lambda world, tensor, *_: all_reduce(bytes_of(tensor), world))
    wrap("all_gather_into_tensor", lambda world, out, *_: all_gather(bytes_of(out), world))
    wrap("all_gather", lambda world, outs, *_: all_gather(sum(map(bytes_of, outs)), world))
    try:
        yield sent
    finally:
        for name, function in plain.items():
            setattr(dist, name, function)


def simulate(work: Workload, worlds: Sequence[int]) -> list[dict[str, Any]]:
    """Plans and costs of launches that are not run, on texts of the lengths that were measured."""
    rows = []
    config = load("finetune", ["batch.keep_tokens=16384", "batch.micro_tokens=8192"])
    for world in worlds:
        for sharded in (False, True):
            for kind, size in (("grows", PER_PROCESS * world), ("fixed", FIXED)):
                cluster = Cluster(max(1, world // NODE), min(world, NODE), sharded)
                found = predict_on(_drawn(work, size), config, cluster, "h100")
                launch = {"world": world, "sharded": sharded, "batch": kind, "rows": size}
                rows.append(launch | asdict(found.cost) | {"seconds": found.seconds})
    return rows


def _drawn(work: Workload, rows: int) -> Workload:
    random = np.random.default_rng(0)
    queries = np.concatenate([a[:q] for a, q in zip(work.lengths, work.queries, strict=True)])
    documents = np.concatenate([a[q:] for a, q in zip(work.lengths, work.queries, strict=True)])
    lengths = np.concatenate([random.choice(queries, rows), random.choice(documents, rows)])
    return replace(work, lengths=[lengths], queries=[rows])


def tables(found: dict[str, Any]) -> dict[str, str]:
    """What stands between the marks of docs/scale.md."""
    rows = {"scale_check": check_rows(found), "scale_worlds": world_rows(found)}
    return {name: markdown_table(table) for name, table in rows.items()}


def check_rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """Predicted over counted, by number of processes."""
    names = {
        "tokens": "tokens",
        "padded": "padded tokens",
        "flops": "FLOP",
        "sent": "bytes sent by a process",
        "states_mib": "weights and states",
        "memory_mib": "memory of a process",
        "seconds": "seconds of a step",
    }
    rows = []
    for world, check in found["checks"].items():
        row = {"Processes": world}
        for key, name in names.items():
            counted_, predicted = check["counted"][key], check["predicted"][key]
            row[f"{name}: predicted / counted"] = (
                f"{predicted / counted_:.3f}" if counted_ else "0 / 0"
            )
        row["seconds of a checkpoint"] = f"{check['save_seconds']:.2f}"
        rows.append(row)
    return rows


def world_rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """What grows and what does not."""
    return [
        {
            "Processes": f"{row['world']:,}",
            "Launch": "FSDP" if row["sharded"] else "DDP",
            "Rows in a batch": f"{row['rows']:,}",
            "Busiest above mean": f"{row['imbalance']:.1%}",
            "Sent by each": f"{row['sent'] / 1e6:,.0f} MB",
            "Memory of each": f"{row['memory'] / 1e9:,.2f} GB",
            "Step, predicted": f"{row['seconds'] * 1000:,.1f} ms",
        }
        for row in found["worlds"]
    ]


if __name__ == "__main__":
    main()
