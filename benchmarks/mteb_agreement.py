"""The same model on the same folders, scored by `tercet evaluate` and by MTEB itself.

python -m benchmarks.mteb_agreement --shared FOLDER [--tasks scifact cranfield stackfaq]
                                    [--model NAME] [--out FOLDER]

What `tercet evaluate --check-with-mteb` does: MTEB gets the folder as an AbsTaskRetrieval and the
model as sentence-transformers loads it, so that neither encoding, search nor scoring is shared.
Writes mteb_agreement.json, and fails afterwards if a number is not MTEB's.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, refuse_trial, target, targets_note, write_result
from tercet import stages
from tercet.errors import UserError
from tercet.evaluation import Result, read_result, result_files
from tercet.evaluation.official import AGREEMENT, disagreement
from tercet.report.table import Row, console_table, markdown_table

TASKS = ("scifact", "cranfield", "stackfaq")
SHOWN = {"ndcg@10": "nDCG@10", "map": "MAP", "mrr@10": "MRR@10", "recall@100": "Recall@100"}


def main() -> None:
    """Run what the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder with the BEIR folders")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    refuse_trial(parser, options, "tasks", "model")
    from rich import print as show

    found = agreement(options.model, [options.shared / name for name in options.tasks])
    show(console_table(rows(found)))
    print(write_result("mteb_agreement", found, options.out))
    if not all(one["met"] for one in found["targets"]):
        sys.exit(targets_note(found["targets"]))


def agreement(model: str, folders: list[Path]) -> dict[str, Any]:
    """Both sides' numbers on every folder, whether they are the same or not."""
    tasks = [both for folder in folders for both in compared(model, folder)]
    return {
        "model": stages.name_of(model),
        "mteb": version("mteb"),
        "tasks": tasks,
        "targets": [
            target(f"difference on {task['task']}", task["largest_difference"], most=AGREEMENT)
            for task in tasks
        ],
    }


def compared(model: str, folder: Path) -> list[dict[str, Any]]:
    """Both sides' numbers on a folder. Raises what `evaluate` raises before all is written."""
    with tempfile.TemporaryDirectory() as out:
        refusal = None
        try:
            stages.evaluate(model, [folder], Path(out), check_with_mteb=True)
        except UserError as error:  # of numbers that are not the same, when they are written
            refusal = error
        results = [read_result(file) for file in result_files(Path(out))]
        found = [_both(result, result.by_mteb) for result in results if result.by_mteb]
        if refusal is not None and not found:
            raise refusal
        return found


def _both(result: Result, theirs: Mapping[str, float]) -> dict[str, Any]:
    """Every metric that both sides have."""
    return {
        "task": result.task,
        "queries": result.counts["queries"],
        "documents": result.counts["documents"],
        "metrics": {
            metric: {"ours": result.means[metric].mean, "mteb": mean}
            for metric, mean in theirs.items()
        },
        "largest_difference": disagreement(result)[0],
    }


def rows(found: dict[str, Any]) -> list[Row]:
    """The table of docs/evaluation.md: two rows a task."""
    return [
        {
            "Task": task["task"],
            "Scored by": side,
            **{head: f"{task['metrics'][m][key]:.6f}" for m, head in SHOWN.items()},
            "Metrics": str(len(task["metrics"])),
            "Largest difference": f"{task['largest_difference']:.0e}",
        }
        for task in found["tasks"]
        for key, side in (("ours", "tercet evaluate"), ("mteb", "mteb"))
    ]


def tables(found: dict[str, Any]) -> dict[str, str]:
    """What stands between the marks of docs/evaluation.md."""
    note = f"{found['model']}, mteb {found['mteb']}. {targets_note(found['targets'])}"
    return {"mteb_agreement": f"{markdown_table(rows(found))}\n\n{note}"}


if __name__ == "__main__":
    main()
