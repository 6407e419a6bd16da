"""Several models side by side: what they cost, how good they are, and what can be left out."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig
from tercet.data import RetrievalTask, read_task
from tercet.errors import UserError
from tercet.evaluation import MAIN_METRIC, Result, comparison
from tercet.evaluation.bm25 import NAME as BM25
from tercet.evaluation.compression import DIMS, Compressed, compressions
from tercet.evaluation.contrast import contrast
from tercet.evaluation.efficiency import measure_apart
from tercet.evaluation.indexes import LEAST, index_study
from tercet.evaluation.reduction import reductions
from tercet.evaluation.significance import holm
from tercet.files import writable_folder, write_json, write_text
from tercet.models import (
    Vectors,
    default_device,
    load_encoder,
    max_length,
    model_fingerprint,
    prompt_of,
    resolve,
    vectors,
)
from tercet.models.encode import gives_unit_vectors
from tercet.models.quantise import Ranges, read_ranges
from tercet.processes import on_main
from tercet.progress import say
from tercet.report.comparison import FORMAT, comparison_page
from tercet.stages.measuring import evaluate_bm25, evaluate_model
from tercet.stages.names import name_of, refuse_twice
from tercet.versions import installed_versions

RESULTS = "results.json"
PAGE = "report.html"
NORMAL_95 = 1.959964  # standard errors on each side of a 95 % interval
Sides = tuple[Vectors, Vectors]  # of queries and documents
Json = dict[str, Any]


@dataclass(frozen=True)
class Compared:
    """A model that takes part, loaded."""

    name: str
    config: ModelConfig
    encoder: SentenceTransformer
    ranges: Mapping[int, Ranges]  # stored with the model; none if it was never calibrated


def compare(
    models: Sequence[str],
    folders: Sequence[str | Path],
    out: Path,
    *,
    split: str = "test",
    dims: Sequence[int] = DIMS,
    index: bool = False,
    trust_remote_code: bool = False,
) -> Json:
    """Measure `models` on BEIR folders, the first being the baseline; BM25 joins them.

    Writes `out`/results.json (returned), report.html, plots/ as SVG and PNG, and each model's
    scores per query below results/. Vectors come from the store. `index`: also an index study
    of every collection with 1,000 documents or more. Under `accelerate launch` the processes share
    the encoding. Raises UserError for a model or a collection that is not there, before any work.
    """
    names = [name_of(path) for path in models]
    refuse_twice("models", [*names, BM25])
    tasks = [read_task(folder, split) for folder in folders]
    refuse_twice("tasks", [task.name for task in tasks])
    refuse_foreign(out)
    if index and all(len(task.documents) < LEAST for task in tasks):
        raise UserError(f"--index: no collection has {LEAST:,} documents; add a larger one")
    compared = [
        _load(path, name, trust_remote_code) for path, name in zip(models, names, strict=True)
    ]
    widths = {model.name: model.encoder.get_embedding_dimension() for model in compared}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} {width}" for name, width in widths.items())
        say(f"dimensions differ ({listed}): compare quality at equal bytes per vector too")
    measured = [_measure_task(task, compared, out, dims, index) for task in tasks]

    def finish() -> Json:
        from tercet.report.plots import write_plots  # matplotlib takes a while to import

        found = _found(compared, tasks, measured)
        write_json(out / RESULTS, found)
        plots = write_plots(found, out / "plots")
        write_text(out / PAGE, comparison_page(found, plots))
        return found

    return on_main(finish)


def refuse_foreign(out: Path) -> None:
    """Raise UserError if `out` cannot be written or holds results that this version cannot read."""
    writable_folder(out)
    path = out / RESULTS
    if not path.exists():
        return
    try:
        written = json.loads(path.read_text(encoding="utf-8"))["format"]
    except (ValueError, KeyError, TypeError):
        written = "unknown"
    if written != FORMAT:
        raise UserError(
            f"{path}: of another version of tercet, or of another program (format {written}, this "
            f"one writes {FORMAT}); choose another --out, or remove it"
        )


def _load(path: str, name: str, trust_remote_code: bool) -> Compared:
    config = ModelConfig(path=path, trust_remote_code=trust_remote_code)
    encoder = load_encoder(config, "model").to(default_device())
    ranges = read_ranges(Path(resolve(path, "model")), model_fingerprint(encoder))
    return Compared(name, config, encoder, ranges)


def _measure_task(
    task: RetrievalTask, compared: Sequence[Compared], out: Path, dims: Sequence[int], index: bool
) -> Json:
    """All that is measured on one task, a list entry for each model."""
    results = [evaluate_model(m.encoder, m.name, task, out / "results") for m in compared]
    sides = [_sides(model, task) for model in compared]

    def measure() -> Json:
        lexical = evaluate_bm25(task, out / "results")
        found: Json = {
            "name": task.name,
            "split": task.split,
            "queries": len(task.queries),
            "documents": len(task.documents),
            "quality": [_quality(result) for result in (*results, lexical)],
            "deltas": [_delta(results[0], other) for other in (*results[1:], lexical)],
            "contrast": [asdict(contrast(task, *pair)) for pair in sides],
            "compression": [
                [asdict(c) for c in _compressions(m, task, pair, dims)]
                for m, pair in zip(compared, sides, strict=True)
            ],
        }
        if index and len(task.documents) >= LEAST:
            found["indexes"] = [
                [asdict(i) for i in index_study(task, *pair, ranges=m.ranges.get(pair[1].shape[1]))]
                for m, pair in zip(compared, sides, strict=True)
            ]
            found["reductions"] = [
                [asdict(r) for r in reductions(task, *pair, dims=dims)] for pair in sides
            ]
        return found

    return on_main(measure)


def _sides(model: Compared, task: RetrievalTask) -> Sides:
    queries = vectors(model.encoder, task.queries.texts, "query")
    return queries, vectors(model.encoder, task.documents.texts, "document")


def _compressions(
    model: Compared, task: RetrievalTask, sides: Sides, dims: Sequence[int]
) -> list[Compressed]:
    say(f"{model.name} on {task.name}: fewer dimensions and bytes")
    unit = gives_unit_vectors(model.encoder)
    return compressions(task, *sides, unit=unit, dims=dims, ranges=model.ranges)


def _quality(result: Result) -> Json:
    return {
        "model": result.model,
        "means": {metric: asdict(mean) for metric, mean in result.means.items()},
        "unanswered": result.counts["unanswered"],
    }


def _delta(base: Result, other: Result) -> Json:
    """`other` against the baseline on MAIN_METRIC, and by how much on each query."""
    mine, theirs = other.scores[MAIN_METRIC], base.scores[MAIN_METRIC]
    differences = np.sort([mine[query] - theirs[query] for query in theirs])
    return {
        "model": other.model,
        "against": base.model,
        **asdict(comparison(base, other)),
        "wins": int((differences > 0).sum()),
        "losses": int((differences < 0).sum()),
        "ties": int((differences == 0).sum()),
        "differences": differences.tolist(),
    }


def _found(
    compared: Sequence[Compared], tasks: Sequence[RetrievalTask], measured: list[Json]
) -> Json:
    """What results.json holds."""
    deltas = [delta for task in measured for delta in task["deltas"]]
    for delta, adjusted in zip(deltas, holm([d["p"] for d in deltas]), strict=True):
        delta["p_holm"] = adjusted
    models = [_model(model, tasks) for model in compared]
    names = [*(model.name for model in compared), BM25]
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "baseline": compared[0].name,
        "metric": MAIN_METRIC,
        "environment": environment(),
        "models": models,
        "overall": [overall(name, place, measured) for place, name in enumerate(names)],
        "compression": [_mean_compression(m, measured) for m in range(len(models))],
        "tasks": measured,
    }


def _model(model: Compared, tasks: Sequence[RetrievalTask]) -> Json:
    say(f"{model.name}: load time, speed and memory, in a process of its own")
    texts = [text for task in tasks for text in task.documents.texts]
    asked = [text for task in tasks for text in task.queries.texts]
    random = np.random.default_rng(0)
    sample = [[side[i] for i in random.permutation(len(side))] for side in (texts, asked)]
    return {
        "name": model.name,
        "path": model.config.path,
        "fingerprint": model_fingerprint(model.encoder),
        "max_length": max_length(model.encoder),
        "prompts": {role: prompt_of(model.encoder, role) for role in ("query", "document")},
        "calibrated": sorted(model.ranges),
        "efficiency": asdict(measure_apart(model.config, *sample)),
    }


def overall(name: str, place: int, measured: Sequence[Json]) -> Json:
    """Mean over tasks of a model's MAIN_METRIC, each weighing the same, with its 95 % interval.

    The interval of a single task is its own; those of several are taken as normal ones of
    independent means.
    """
    means = [task["quality"][place]["means"][MAIN_METRIC] for task in measured]
    if len(means) == 1:
        return {"model": name, **{key: means[0][key] for key in ("mean", "low", "high")}}
    errors = [(mean["high"] - mean["low"]) / 2 / NORMAL_95 for mean in means]
    mean = float(np.mean([mean["mean"] for mean in means]))
    half = NORMAL_95 * float(np.sqrt(np.sum(np.square(errors)))) / len(means)
    return {"model": name, "mean": mean, "low": mean - half, "high": mean + half}


def _mean_compression(place: int, measured: Sequence[Json]) -> list[Json]:
    """Each form of a model's vectors, its scores averaged over tasks; the full form first."""
    forms = zip(*(task["compression"][place] for task in measured), strict=True)
    same = ("dims", "precision", "rescored", "bytes", "rescoring_bytes")
    return [
        {
            **{key: form[0][key] for key in same},
            "mean": float(np.mean([one["mean"] for one in form])),
            "kept": float(np.mean([one["kept"] for one in form])),
            "kept_least": min(one["kept"] for one in form),
        }
        for form in forms
    ]


def environment() -> Json:
    """The machine and the versions that the figures were measured with."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": installed_versions(),
    }
