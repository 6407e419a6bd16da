"""Several models side by side: what they cost, how good they are, and what can be left out."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tercet.configs.schema import Prompts
from tercet.data import Leakage, RetrievalTask, read_task
from tercet.errors import UserError
from tercet.evaluation import (
    MAIN_METRIC,
    PLUS,
    Result,
    read_result,
    result_files,
    safe_name,
)
from tercet.evaluation.bm25 import NAME as BM25
from tercet.evaluation.compression import DIMS, compressions
from tercet.evaluation.contrast import contrast
from tercet.evaluation.indexes import LEAST, index_study
from tercet.evaluation.reduction import reductions
from tercet.files import writable_folder, write_json, write_text
from tercet.mining.ann import import_faiss
from tercet.models import resolve
from tercet.models.routes import gives_unit_vectors
from tercet.peers import together
from tercet.processes import on_main
from tercet.progress import say
from tercet.report.comparison import FORMAT, comparison_page
from tercet.stages.contestants import Contestant, check_widths, costs_of, load_contestant
from tercet.stages.figures import (
    adjust,
    delta,
    environment,
    leak_facts,
    mean_compression,
    overall,
    quality,
)
from tercet.stages.measuring import (
    Second,
    Sides,
    evaluate_bm25,
    evaluate_stages,
    second_stage,
    sides_of,
)
from tercet.stages.names import RESULTS, name_of, refuse_mixed, refuse_models, refuse_twice
from tercet.stages.tasks import PLAIN, Search, check, leaks, suited

PAGE = "report.html"
PLOTS = "plots"
SCORES = "results"  # folder of each model's scores per query
Json = dict[str, Any]
OWN: Mapping[str, Prompts] = {}  # every model's own


@dataclass(frozen=True)
class Study:
    """What is looked at on every task."""

    out: Path
    how: Search
    dims: Sequence[int]
    index: bool
    second: Second | None


@together()
def compare(
    models: Sequence[str],
    folders: Sequence[str | Path],
    out: Path,
    *,
    split: str = "test",
    how: Search = PLAIN,
    prompts: Mapping[str, Prompts] = OWN,
    trained_on: Sequence[str] = (),
    dims: Sequence[int] = DIMS,
    index: bool = False,
    trust_remote_code: bool = False,
) -> Json:
    """Measure `models` on BEIR folders, the first being the baseline; BM25 joins them.

    Writes `out`/results.json (returned), report.html, plots/ as SVG and PNG, and each model's
    scores per query below results/. Vectors come from the store. `how` says how documents are
    looked for; with a reranker each model has a second row. `prompts` by name of a model take the
    place of its own. `trained_on` names training data of the models: what of the collections is in
    there is counted. `index`: also an index study of every collection with 1,000 documents or more.
    Under `accelerate launch` the processes share the encoding. Raises UserError for whatever the
    user can mend, before any work.
    """
    start = time.perf_counter()
    names = [name_of(path) for path in models]
    reranked = [f"{name}{PLUS}{name_of(how.rerank)}" for name in names if how.rerank]
    refuse_models(models, (*reranked, BM25))
    if strange := sorted(set(prompts) - set(names)):
        why = "BM25 takes none" if strange[0] == BM25 else "no such model"
        raise UserError(f"prompts for {strange[0]!r}: {why}; there are {', '.join(names)}")
    for path in models:
        resolve(path, "model")
    if index:
        import_faiss("--index")
    tasks = _read(folders, split, how, index)
    refuse_foreign(out)
    leaked = leaks(tasks, trained_on)
    study = Study(out, how, dims, index, second_stage(how, trust_remote_code))
    compared = [
        load_contestant(path, name, prompts.get(name, Prompts()), trust_remote_code)
        for path, name in zip(models, names, strict=True)
    ]
    check_widths(compared, dims)
    # Speed first, since measuring it may fail.
    costs = on_main(lambda: costs_of(compared, tasks))
    measured = [_measure(task, compared, study, leaked.get(task.name)) for task in tasks]

    def finish() -> Json:
        from tercet.report.plots import write_plots  # matplotlib takes a while to import

        found = _found(costs, measured)
        found["seconds"] = {"total": time.perf_counter() - start}
        write_json(out / RESULTS, found)
        plots = write_plots(found, out / PLOTS)
        write_text(out / PAGE, comparison_page(found, plots))
        return found

    return on_main(finish)


def refuse_foreign(out: Path) -> None:
    """Raise UserError if `out` cannot be written or holds what no comparison of ours wrote."""
    refuse_mixed(out, RESULTS)
    writable_folder(out)
    path = out / RESULTS
    for theirs in (out / PAGE, out / PLOTS):
        if theirs.exists() and not path.exists():
            raise UserError(
                f"{theirs}: is there without {RESULTS} beside it, so no comparison wrote it; "
                "choose another --out, or remove it"
            )
    if path.exists() and (written := _format(path)) != FORMAT:
        raise UserError(
            f"{path}: of another version of tercet, or of another program (format {written}, this "
            f"one writes {FORMAT}); choose another --out, or remove it"
        )
    for file in result_files(out / SCORES):
        read_result(file)


def _format(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _read(
    folders: Sequence[str | Path], split: str, how: Search, index: bool
) -> list[RetrievalTask]:
    tasks = [read_task(folder, split) for folder in folders]
    refuse_twice("tasks", [safe_name(task.name) for task in tasks])
    for task in tasks:
        check(task, how)
    if index and all(len(task.documents) < LEAST for task in tasks):
        raise UserError(f"--index: no collection has {LEAST:,} documents; add a larger one")
    return tasks


def _measure(
    task: RetrievalTask, compared: Sequence[Contestant], study: Study, leak: Leakage | None
) -> tuple[Json, list[Result]]:
    """All that is measured on one task, and the results: of models, reranked ones, and BM25."""
    start = time.perf_counter()
    scores, how = study.out / SCORES, suited(study.how, task)
    sides = [sides_of(model.encoder, model.name, task) for model in compared]
    more: Any = {"second": study.second, "leak": leak}
    stages = [
        evaluate_stages(model.encoder, model.name, task, scores, how, sides=pair, **more)
        for model, pair in zip(compared, sides, strict=True)
    ]
    ours = [result for stage in zip(*stages, strict=True) for result in stage]

    def measure() -> tuple[Json, list[Result]]:
        results = [*ours, evaluate_bm25(task, scores, how)]
        found: Json = {
            "name": task.name,
            "split": task.split,
            "queries": len(task.queries),
            "documents": len(task.documents),
            "without_judgement": task.unjudged,
            "without_answer": task.answerless,
            "leakage": leak_facts(leak, results),
            "quality": [quality(result) for result in results],
            "deltas": [delta(results[0], other) for other in results[1:]],
            "contrast": [asdict(contrast(task, *pair, skip_self=how.skip_self)) for pair in sides],
            "compression": [
                _compressions(m, task, pair, study) for m, pair in zip(compared, sides, strict=True)
            ],
        }
        if study.index and len(task.documents) >= LEAST:
            found |= _indexes(task, compared, sides, study)
        return found | {"seconds": time.perf_counter() - start}, results

    return on_main(measure)


def _compressions(model: Contestant, task: RetrievalTask, sides: Sides, study: Study) -> list[Json]:
    say(f"{model.name} on {task.name}: fewer dimensions and bytes")
    forms = compressions(
        task,
        *sides,
        unit=gives_unit_vectors(model.encoder),
        dims=study.dims,
        ranges=model.ranges,
        skip_self=study.how.skip_self,
    )
    return [asdict(form) for form in forms]


def _indexes(
    task: RetrievalTask, compared: Sequence[Contestant], sides: Sequence[Sides], study: Study
) -> Json:
    alone = study.how.skip_self
    indexes, reduced = [], []
    for model, pair in zip(compared, sides, strict=True):
        ranges = model.ranges.get(pair[1].shape[1])
        found = index_study(task, *pair, ranges=ranges, skip_self=alone)
        indexes.append([asdict(one) for one in found])
        ways = reductions(task, *pair, dims=study.dims, skip_self=alone)
        reduced.append([asdict(way) for way in ways])
    return {"indexes": indexes, "reductions": reduced}


def _found(models: list[Json], measured: Sequence[tuple[Json, list[Result]]]) -> Json:
    """What results.json holds."""
    tasks = [task for task, _ in measured]
    adjust(tasks)
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "baseline": models[0]["name"],
        "metric": MAIN_METRIC,
        "environment": environment(),
        "models": models,
        "overall": overall([results for _, results in measured]),
        "compression": [mean_compression(m, tasks) for m in range(len(models))],
        "tasks": tasks,
    }
