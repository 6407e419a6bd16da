"""The same model on the same folders, scored by `tercet evaluate` and by MTEB itself.

python -m benchmarks.mteb_agreement --shared FOLDER [--tasks scifact cranfield stackfaq]
                                    [--model NAME] [--out FOLDER]

MTEB gets the folder as an AbsTaskRetrieval and the model as sentence-transformers loads it, so that
neither reading, encoding, search nor scoring is shared. Writes mteb_agreement.json.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from benchmarks.machine import RESULTS, write_result
from tercet import stages
from tercet.data import read_task
from tercet.evaluation import Result
from tercet.evaluation.official import Scored, as_mteb_task, run_mteb
from tercet.models import default_device, resolve
from tercet.report.table import Row, console_table, markdown_table

TASKS = ("scifact", "cranfield", "stackfaq")
SHOWN = {"ndcg@10": "nDCG@10", "map": "MAP", "mrr@10": "MRR@10", "recall@100": "Recall@100"}
NAMES = {"map": "map_at_1000"}  # where MTEB calls it otherwise


def main() -> None:
    """Run what the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder with the BEIR folders")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    from rich import print as show

    found = agreement(options.model, [options.shared / name for name in options.tasks])
    show(console_table(rows(found)))
    print(write_result("mteb_agreement", found, options.out))


def agreement(model: str, folders: list[Path]) -> dict[str, Any]:
    """Both sides' numbers on every folder."""
    with tempfile.TemporaryDirectory() as out:
        results = stages.evaluate(model, folders, Path(out))
    name = stages.name_of(model)
    ours = {result.task: result for result in results if result.model == name}
    peer = SentenceTransformer(resolve(model), device=str(default_device()))
    theirs = [run_mteb(peer, as_mteb_task(read_task(folder)))[0] for folder in folders]
    return {
        "model": name,
        "mteb": theirs[0].mteb_version,
        "tasks": [_both(ours[one.name], one) for one in theirs],
    }


def _both(ours: Result, theirs: Scored) -> dict[str, Any]:
    """Every metric that both sides have."""
    both = {
        metric: {"ours": mean.mean, "mteb": theirs.row[name]}
        for metric, mean in ours.means.items()
        if (name := NAMES.get(metric, metric.replace("@", "_at_"))) in theirs.row
    }
    return {
        "task": ours.task,
        "queries": ours.counts["queries"],
        "documents": ours.counts["documents"],
        "metrics": both,
        "largest_difference": max(abs(b["ours"] - b["mteb"]) for b in both.values()),
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
    note = f"{found['model']}, mteb {found['mteb']}."
    return {"mteb_agreement": f"{markdown_table(rows(found))}\n\n{note}"}


if __name__ == "__main__":
    main()
