"""`tercet demo`: code search on this machine's own Python, every stage, nothing downloaded."""

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from tercet import stages
from tercet.configs import Columns, Config, Source, load
from tercet.data import RetrievalTask, read_task
from tercet.data.code import IGNORE, CodeCounts, code_task
from tercet.errors import UserError
from tercet.evaluation import (
    MAIN_METRIC,
    Delta,
    Result,
    Run,
    comparison,
    read_run,
    result_path,
)
from tercet.files import writable_folder, write_json, write_text
from tercet.progress import say
from tercet.report import console_table, leak_line, model_table
from tercet.versions import installed_versions

# Installed with Tercet, written by different people, and none of them part of the standard
# library, which is the test set.
TRAIN = (
    "torch",
    "transformers",
    "sentence_transformers",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "numpy",
    "scipy",
    "sklearn",
    "pandas",
)
DEV = "networkx"
TEST = "stdlib"
TRAIN_PAIRS, DEV_PAIRS, TEST_PAIRS = 2_048, 300, 1_500
SHOWN = 3  # example queries, and hits of each


def run_demo(out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Build data, mine, train, evaluate, export, and print what came; write `summary.json`.

    Returns what is in summary.json: nDCG@10 of base, tuned and bm25, their difference with
    interval and p, counts, seconds and versions.
    """
    start = time.perf_counter()
    _refuse_other_work(writable_folder(out), overwrite)
    say("1/5  data: docstrings and code of the installed packages; test: the standard library")
    counts = _build(out / "code")
    config = _config(out)
    say("2/5  mine hard negatives with the base model")
    mined = stages.mine(config)
    say("3/5  fine-tune")
    data = config.data.model_copy(update={"mined": str(mined.path)})
    model = stages.finetune(config.model_copy(update={"data": data}))
    say("4/5  evaluate: base, BM25 and the tuned model on the standard library")
    results = stages.evaluate(
        str(model),
        [out / "code"],
        out / "results",
        against=["embedded"],
        trained_on=[str(out / "config.yaml")],
    )
    say("5/5  export with the results on its card")
    stages.export_run(out, model, results=results, overwrite=True)

    base, bm25, tuned = results
    delta = comparison(base, tuned)
    task = read_task(out / "code")
    leaked = tuned.leakage
    assert leaked is not None  # of every task, as trained_on was given
    _show(out, results, task)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    summary |= {
        "base": _scores(base),
        "tuned": _scores(tuned),
        "bm25": _scores(bm25),
        "delta": _delta(delta),
        "delta_bm25": _delta(comparison(bm25, tuned)),
        "queries": len(task.queries),
        "documents": len(task.documents),
        "train_pairs": counts.kept("train"),
        "test_functions_in_training": leaked.queries_by_hash + leaked.documents_by_hash,
        "seconds": round(time.perf_counter() - start, 1),
        "versions": installed_versions(),
    }
    write_json(out / "summary.json", summary)
    say(f"done in {summary['seconds']:.0f} s; model: {model}; numbers: {out / 'summary.json'}")
    return summary


def _refuse_other_work(out: Path, overwrite: bool) -> None:
    """A finished demo is replaced only when asked, an unfinished one is begun again."""
    summary = out / "summary.json"
    if summary.exists() and "delta" in summary.read_text(encoding="utf-8") and not overwrite:
        raise UserError(f"{out}: already holds a demo; choose another --out or say --overwrite")
    if any(out.iterdir()) and not (out / "code" / "code.json").exists():
        raise UserError(f"{out}: is not empty and holds no demo; choose another --out")


def _config(out: Path) -> Config:
    """The recipe `demo` on the data just built."""
    recipe = load("demo")
    columns = Columns(query_id="query_id", positive_id="positive_id")
    source = Source(path=str(out / "code" / "train.jsonl"), columns=columns, ignore=IGNORE)
    data = {"train": (source,), "held_out": (str(out / "code"),)}
    return recipe.model_copy(
        update={
            "output": str(out),
            "overwrite": True,
            "data": recipe.data.model_copy(update=data),
        }
    )


def _build(folder: Path) -> CodeCounts:
    train = [name for name in TRAIN if importlib.util.find_spec(name) is not None]
    return code_task(
        train,
        [TEST],
        [DEV],
        folder,
        limit_train=TRAIN_PAIRS,
        limit_dev=DEV_PAIRS,
        limit_test=TEST_PAIRS,
    )


def _scores(result: Result) -> dict[str, float]:
    return {metric: mean.mean for metric, mean in result.means.items()}


def _delta(delta: Delta) -> dict[str, Any]:
    return {"ndcg@10": delta.mean, "ci95": [delta.low, delta.high], "p": delta.p}


def _show(out: Path, results: list[Result], task: RetrievalTask) -> None:
    console = Console(highlight=False, record=True, soft_wrap=True)
    if not console.is_terminal:
        console.width = 100
    console.print(console_table(model_table(results), title="Code search, standard library"))
    for line in stages.delta_lines(results, results[-1].model):
        console.print(line)
    base, tuned = results[0], results[-1]
    console.print(f"{leak_line(tuned)}\n")
    before, after = _hits(out, base), _hits(out, tuned)
    for query in _examples(base, tuned):
        console.print(task.queries.texts[task.queries.index[query]], style="bold", markup=False)
        for name, hits in (("before", before[query]), ("after", after[query])):
            best = list(hits)[:SHOWN]
            marked = [f"[{d}]" if task.qrels[query].get(d, 0) > 0 else d for d in best]
            console.print(f"  {name:6}  " + "   ".join(marked), markup=False)
    write_text(out / "demo.txt", console.export_text())


def _examples(base: Result, tuned: Result) -> list[str]:
    """Queries to show: two that the tuning helped and one that it hurt, the first of each."""
    a, b = base.scores[MAIN_METRIC], tuned.scores[MAIN_METRIC]
    helped = [q for q in a if b[q] > a[q]]
    hurt = [q for q in a if b[q] < a[q]]
    return [*helped[: SHOWN - 1], *hurt[:1]]


def _hits(out: Path, result: Result) -> Run:
    path = result_path(result, out / "results").with_suffix(".run")
    return read_run(path)
