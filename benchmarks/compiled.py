"""Whether `train.compile` pays: the same training step with and without torch.compile.

python -m benchmarks.compiled [--rounds N] [--batch N] [--out FOLDER]
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.machine import (
    RESULTS,
    alternate,
    medians,
    ratio,
    refuse_trial,
    seconds,
    write_result,
)
from benchmarks.steps import Ours, student
from benchmarks.train_step import BATCH, LENGTH, pairs_for

PLAIN, COMPILED = "plain", "compiled"


def measure(size: int, rounds: int) -> dict[str, Any]:
    """Seconds of both steps, of the first compiled one, and what each computed."""
    data = pairs_for(size, LENGTH)
    plain = Ours(data, student(LENGTH))
    model = student(LENGTH)
    model.compile(dynamic=True)  # as train/setup.py does
    compiled = Ours(data, model, micro_tokens=plain.run.micro_tokens)
    first = {}
    compiling = seconds(lambda: first.update({COMPILED: vars(compiled())}))
    first[PLAIN] = vars(plain())
    times = alternate({PLAIN: plain, COMPILED: compiled}, rounds)
    return {
        "batch": size,
        "micro_tokens": plain.run.micro_tokens,
        "first_compiled_step_seconds": compiling,
        "first_step": first,
        "seconds": times,
        "medians": medians(times),
        "times_faster": ratio(times, PLAIN, COMPILED),
    }


def note(found: dict[str, Any]) -> str:
    """How much faster by round, and when the first step is earned back."""
    plain, faster = found["medians"][PLAIN], found["times_faster"]
    pairs = zip(found["seconds"][PLAIN], found["seconds"][COMPILED], strict=True)
    rounds = [slow / fast for slow, fast in pairs]
    first, usual = found["first_compiled_step_seconds"], plain / faster
    # So many plain steps take as long as the first compiled one and the usual ones after it.
    steps = (
        f"{(first - usual) / (plain - usual):,.0f} steps earn" if faster > 1 else "nothing earns"
    )
    return (
        f"Batch {found['batch']}, micro-batches of {found['micro_tokens']} tokens: {faster:.2f} "
        f"times as fast, the median of {len(rounds)} rounds of {min(rounds):.2f} to "
        f"{max(rounds):.2f}; a plain step takes {plain:.2f} s. The first compiled step takes "
        f"{first:.0f} s, which {steps} back."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    refuse_trial(parser, options, "batch")
    found = measure(options.batch, options.rounds)
    path = write_result("compiled", found, options.out)
    print(f"{note(found)} {path}")


if __name__ == "__main__":
    main()
