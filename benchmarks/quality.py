"""What training is worth: `python -m benchmarks.quality --shared FOLDER [--demo RUN]
[--out FOLDER]`.

Fine-tunes the recipe `short_pairs` on code_nl2bash's training split and scores the untouched and
the tuned model on its test split; scores the untouched model on scifact, whose value is published
(0.645, MTEB leaderboard). Writes quality.json; with --demo also copies the numbers of a finished
demo beside it.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, write_result
from tercet import stages
from tercet.configs import load
from tercet.evaluation import MAIN_METRIC, Delta, Result, comparison
from tercet.report import delta_line, markdown_table
from tercet.report.table import HEADINGS

DEMO_KEYS = (
    "base",
    "tuned",
    "bm25",
    "delta",
    "delta_bm25",
    "queries",
    "documents",
    "train_pairs",
    "test_functions_in_training",
    "seconds",
    "versions",
)


def main() -> None:
    """Run what the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, help="folder with code_nl2bash/ and scifact/")
    parser.add_argument("--demo", type=Path, help="a finished demo's folder")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.shared:
        print(write_result("quality", quality(arguments.shared), arguments.out))
    if arguments.demo:
        summary = json.loads((arguments.demo / "summary.json").read_text(encoding="utf-8"))
        printed = (arguments.demo / "demo.txt").read_text(encoding="utf-8")
        kept = {key: summary[key] for key in DEMO_KEYS} | {"printed": printed}
        print(write_result("demo", kept, arguments.out))


def quality(shared: Path) -> dict[str, Any]:
    """Train and score; everything a reader needs to repeat it is in the result."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        start = time.perf_counter()
        train = f"data.train={shared / 'code_nl2bash'}"
        model = stages.finetune(load("short_pairs", [train, f"output={work / 'short_pairs'}"]))
        seconds = time.perf_counter() - start
        task = shared / "code_nl2bash"
        base, bm25, tuned = stages.evaluate(
            str(model), [task], work / "results", against=["embedded"]
        )
        bm25_scifact, scifact = stages.evaluate("embedded", [shared / "scifact"], work / "results")
        delta = comparison(base, tuned)
        return {
            "recipe": "short_pairs",
            "training_seconds": seconds,
            "code_nl2bash": [_row(r) for r in (bm25, base, tuned)],
            "delta": vars(delta),
            "scifact": [_row(r) for r in (bm25_scifact, scifact)],
        }


def tables(found: dict[str, Any]) -> dict[str, str]:
    """What docs/results.md shows."""
    delta = delta_line(found["code_nl2bash"][1]["model"], found["recipe"], Delta(**found["delta"]))
    minutes = found["training_seconds"] / 60
    return {
        "short_pairs": markdown_table(_rows(found["code_nl2bash"]))
        + f"\n\n{delta}. The run took {minutes:.1f} minutes, data and export included.",
        "scifact": markdown_table(_rows(found["scifact"])),
    }


def _rows(models: list[dict[str, Any]]) -> list[dict[str, str]]:
    rows = []
    for model in models:
        means = model["means"]
        main = means[MAIN_METRIC]
        interval = f"{main['mean']:.3f} [{main['low']:.3f}, {main['high']:.3f}]"
        rest = {head: f"{means[m]['mean']:.3f}" for m, head in HEADINGS.items() if m in means}
        rest[HEADINGS[MAIN_METRIC]] = interval
        rows.append({"Model": model["model"], **rest})
    return rows


def _row(result: Result) -> dict[str, Any]:
    main = {metric: vars(mean) for metric, mean in result.means.items()}
    return {"model": result.model, "counts": result.counts, "means": main}


if __name__ == "__main__":
    main()
