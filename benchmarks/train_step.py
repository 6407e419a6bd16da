"""One whole training step beside sentence-transformers: time, memory, share of the machine's peak.

python -m benchmarks.train_step [--rounds N] [--quick] [--no-large] [--out FOLDER]
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from rich import print as show

from benchmarks.machine import (
    RESULTS,
    alternate,
    gemm_peak,
    in_subprocess,
    medians,
    peak_memory,
    ratio,
    refuse_trial,
    seconds,
    write_result,
)
from benchmarks.pairs import MANY, STDLIB, code_pairs, draw
from benchmarks.steps import EVERYTHING, Ours, Theirs, body_parameters, cached_mnrl, mnrl, student
from tercet.data import TrainingSet
from tercet.models import tokenise
from tercet.report.table import console_table

LENGTH = 256  # tokens; only pairs that fit whole are drawn, so that no side cuts a text
BATCH = 128
CACHED_SIZES = (4, 8, 16, 64)  # mini-batches of the peer's cached loss besides its default 32
CACHED_TOKENS = (1_024, 2_048, 4_096)  # budgets of padded tokens, its other way to cut
LARGE, LARGEST = 4_096, 16_384
LARGEST_LENGTH = 64
KEEP_TOKENS = 16_384  # kept graphs, fixed while the batch grows
MICRO_TOKENS = 2_048  # in the memory runs, so that they do not depend on a measurement
OURS, FIXED_KEEP = "ours", "ours, fixed keep"
DEFAULT = "CachedMNRL, mini-batch 32"


def pairs_for(size: int, length: int, packages: tuple[str, ...] = STDLIB) -> TrainingSet:
    """`size` pairs of real code. Up to `length` 256 only those whose texts fit whole."""
    data = code_pairs(packages)
    if length < LENGTH:
        return draw(data, size, seed=0)
    tokens = tokenise(student(length), data.documents.texts, "document")
    documents = data.positives.take(np.arange(len(data)))[1]
    short = np.array([len(ids) < length for ids in tokens])
    return draw(data, size, seed=0, usable=short[documents])


def measure(size: int, rounds: int, headline: bool = False) -> dict[str, Any]:
    """Seconds of each variant's step, what they computed, and the machine's peak meanwhile."""
    data = pairs_for(size, LENGTH)
    ours = Ours(data, student(LENGTH))
    peers = {"MNRL": mnrl, DEFAULT: cached_mnrl(32)}
    if not headline:
        peers |= {f"CachedMNRL, mini-batch {n}": cached_mnrl(n) for n in CACHED_SIZES if n <= size}
        peers |= {f"CachedMNRL, {n} tokens": cached_mnrl(32, n) for n in CACHED_TOKENS}
    variants = {OURS: ours} | {
        name: Theirs(data, student(LENGTH), peer) for name, peer in peers.items()
    }
    if not headline:
        variants["MNRL, with tokenisation"] = Theirs(data, student(LENGTH), mnrl, collate=True)
    first = {name: vars(step()) for name, step in variants.items()}  # all from equal weights
    peaks = [gemm_peak()]
    times = alternate(variants, rounds)
    peaks.append(gemm_peak())
    plan, middle = ours.plan, medians(times)
    faster = {name: ratio(times, name, OURS) for name in variants if name != OURS}
    best = min((name for name in faster if name.startswith("Cached")), key=middle.__getitem__)
    work = 6 * body_parameters(ours.run.encoder) * plan.tokens
    return {
        "batch": size,
        "tokens": {
            "real": plan.tokens,
            "padded": plan.padded,
            "per_query": float(ours.run.tokens[0].lengths(ours.batch.queries).mean()),
            "per_document": float(ours.run.tokens[1].lengths(ours.batch.documents).mean()),
            "longest": int(plan.lengths.max()),
            "micro_batches": len(plan.ranks[0]),
        },
        "micro_tokens": ours.run.micro_tokens,
        "gemm_peak": peaks,
        "body_parameters": body_parameters(ours.run.encoder),
        "share_of_peak": work / middle[OURS] / statistics.mean(peaks),
        "seconds": times,
        "medians": middle,
        "best_cached": best,
        "times_faster": faster,
        "first_step": first,
        "loss_difference": _difference(first, "loss"),
        "norm_difference": _difference(first, "norm"),
    }


def measure_memory(large: bool) -> dict[str, Any]:
    """Peak memory of one step, each in its own process."""
    runs = {
        "ours": (BATCH, EVERYTHING),
        "MNRL": (BATCH, 0),
        FIXED_KEEP: (BATCH, KEEP_TOKENS),
    }
    if large:
        runs[f"{FIXED_KEEP}, batch {LARGE}"] = (LARGE, KEEP_TOKENS)
        runs[f"ours, two layers, batch {LARGEST}"] = (LARGEST, KEEP_TOKENS)
    return {
        name: in_subprocess("benchmarks.train_step", "--memory", name, str(size), str(keep))
        for name, (size, keep) in runs.items()
    }


def step_memory(name: str, size: int, keep_tokens: int) -> dict[str, float]:
    """One step in this process: seconds and peak memory, after a small step as warm-up."""
    short = "two layers" in name
    length, layers = (LARGEST_LENGTH, (0, -1)) if short else (LENGTH, None)
    model = student(length, layers)
    # The same packages for every size, so that reading them leaves the same behind.
    small, data = (pairs_for(n, cut, MANY) for n, cut in ((8, LENGTH), (size, length)))

    def build(texts: TrainingSet) -> Any:
        if name == "MNRL":
            return Theirs(texts, model, mnrl)
        return Ours(texts, model, micro_tokens=MICRO_TOKENS, keep_tokens=keep_tokens)

    build(small)()  # the optimizer's state and the libraries' buffers are there before
    step = build(data)
    found: dict[str, float] = {"batch": size, "keep_tokens": keep_tokens}
    with peak_memory(found):
        found["seconds"] = seconds(step)
    return found


def step_rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """The table of times."""
    return [
        {
            "Training step": f"**{name}**" if name == OURS else name,
            "Seconds": f"{value:.2f}",
            "Time / ours": f"{found['times_faster'].get(name, 1.0):.2f}",
            "Real tokens / s": f"{found['tokens']['real'] / value:,.0f}",
            "Loss": f"{found['first_step'][name]['loss']:.6f}",
            "Gradient norm": f"{found['first_step'][name]['norm']:.5f}",
        }
        for name, value in found["medians"].items()
    ]


def memory_note(found: dict[str, Any]) -> str:
    """How memory grows with the batch."""
    small, large = (
        found["memory"].get(name) for name in (FIXED_KEEP, f"{FIXED_KEEP}, batch {LARGE}")
    )
    if large is None:
        return ""
    extra, total = (large[what] / small[what] for what in ("extra_mib", "total_mib"))
    return (
        f"With {KEEP_TOKENS:,} tokens of graphs kept, a step of batch {LARGE:,} takes {extra:.2f} "
        f"times the extra memory of one of batch {BATCH}: what the step takes above what the "
        f"process held before it. The whole process, that included, takes {total:.2f} times as "
        "much."
    )


def memory_rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """The table of memory."""
    return [
        {
            "Memory of a step": name,
            "Batch": f"{int(run['batch']):,}",
            "Extra memory": f"{run['extra_mib']:,.0f} MiB",
            "Whole process": f"{run['total_mib']:,.0f} MiB",
        }
        for name, run in found["memory"].items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="batch 32, one round, no large batch")
    parser.add_argument(
        "--no-large", action="store_true", help="leave out batches 4,096 and 16,384"
    )
    parser.add_argument("--headline", action="store_true", help="only MNRL and its cached default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)  # name, batch, keep_tokens
    options = parser.parse_args()
    if options.memory:
        name, size, keep = options.memory
        return print(json.dumps(step_memory(name, int(size), int(keep))))
    refuse_trial(parser, options, "quick", "no_large", "headline")
    size, rounds = (32, 1) if options.quick else (BATCH, options.rounds)
    found = measure(size, rounds, options.headline)
    show(console_table(step_rows(found)))
    found["memory"] = measure_memory(large=not (options.quick or options.no_large))
    show(console_table(memory_rows(found)))
    path = write_result("train_step", found, options.out)
    print(f"{found['share_of_peak']:.0%} of the measured GEMM peak; {path}")


def _difference(first: dict[str, dict[str, float]], key: str) -> float:
    """The largest relative difference between ours and any other."""
    own = first[OURS][key]
    return max(abs(value[key] - own) / abs(own) for value in first.values())


if __name__ == "__main__":
    main()
