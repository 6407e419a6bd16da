"""How long `tercet compare` takes once the vectors are in the store.

python -m benchmarks.comparison --shared FOLDER --models embedded runs/tuned/model
                                [--tasks code_nl2bash cranfield scifact stackfaq] [--out FOLDER]

The vectors of every model and collection are made first, where the store has none, and that is
timed apart. Writes comparison.json.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, refuse_trial, target, targets_note, write_result
from tercet import stages
from tercet.configs import ModelConfig
from tercet.data import RetrievalTask, read_task
from tercet.models import default_device, load_encoder, vectors
from tercet.report.table import Row, console_table, markdown_table

MOST_MINUTES = 10
TASKS = ("code_nl2bash", "cranfield", "scifact", "stackfaq")


def main() -> None:
    """Run what the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder with the BEIR folders")
    parser.add_argument("--models", nargs="+", required=True, help="the first is the baseline")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    refuse_trial(parser, options, "tasks")
    from rich import print as show

    found = measure(options.models, [options.shared / name for name in options.tasks])
    show(console_table(rows(found)))
    print(write_result("comparison", found, options.out))


def measure(models: Sequence[str], folders: Sequence[Path]) -> dict[str, Any]:
    """Seconds to make the vectors, and to compare once they are there."""
    start = time.perf_counter()
    fill_store(models, [read_task(folder) for folder in folders])
    filled = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        found = stages.compare(models, folders, Path(out) / "comparison")
    spent = time.perf_counter() - filled
    return {
        "models": [row["model"] for row in found["overall"]],
        "store_seconds": filled - start,
        "compare_seconds": spent,
        "targets": [target("minutes of the whole command", spent / 60, most=MOST_MINUTES)],
        "forms": len(found["compression"][0]),
        "tasks": [
            {key: task[key] for key in ("name", "queries", "documents", "seconds")}
            for task in found["tasks"]
        ],
    }


def fill_store(models: Sequence[str], tasks: Sequence[RetrievalTask]) -> None:
    """Make the vectors that are not in the store."""
    for path in models:
        encoder = load_encoder(ModelConfig(path=path), "--models").to(default_device())
        for task in tasks:
            vectors(encoder, task.queries.texts, "query", title=f"{task.name}: queries")
            vectors(encoder, task.documents.texts, "document", title=f"{task.name}: documents")


def rows(found: Mapping[str, Any]) -> list[Row]:
    """A row for each collection, and the whole."""
    table = [
        {
            "Collection": task["name"],
            "Queries": f"{task['queries']:,}",
            "Documents": f"{task['documents']:,}",
            "Seconds": f"{task['seconds']:.0f}",
        }
        for task in found["tasks"]
    ]
    return [*table, {"Collection": "whole command", "Seconds": f"{found['compare_seconds']:.0f}"}]


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """What docs/comparing.md shows."""
    machine = found["machine"]
    note = (
        f"{', '.join(found['models'])}: the whole command takes "
        f"{found['compare_seconds'] / 60:.1f} minutes; speed and memory, {found['forms']} forms of "
        f"each model's vectors, page and plots included ({machine['processor']}, "
        f"{machine['threads']} threads). {targets_note(found['targets'])}"
    )
    return {"compare_time": f"{markdown_table(rows(found))}\n\n{note}"}


if __name__ == "__main__":
    main()
