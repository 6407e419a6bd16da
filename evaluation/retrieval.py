"""Vectors in, a result with error bars out, on disk in the shape MTEB's results have."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from tercet.data.leaks import Leakage
from tercet.data.rows import RetrievalTask
from tercet.errors import UserError
from tercet.evaluation.handover import score_ranking, unanswered
from tercet.evaluation.metrics import Run, absent, score_runs
from tercet.evaluation.ranking import Ranking, run_of, search
from tercet.evaluation.significance import Delta, bootstrap_intervals, compare
from tercet.files import fingerprint, write_json
from tercet.mining.search import Rows
from tercet.versions import installed_versions

MAIN_METRIC = "ndcg@10"
FORMAT = 2  # of what stands under "tercet"; raised when a reader of today could not read it
COMPARISONS = "comparisons.json"  # beside the folders of the models
PREDICTIONS = "_predictions.json"  # after TASK.SPLIT
ALONE = ".mteb.json"  # likewise
UNKNOWN_LANGUAGE = ("und-Zyyy",)  # ISO's codes for it; MTEB averages a list of none to NaN
_OUTSIDE = ("task", "mteb")  # of a result: they stand beside "tercet" in the file


@dataclass(frozen=True)
class Mean:
    """A mean over queries and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Result:
    """One model on one task: every query's score, and all that is needed to trust it."""

    model: str
    task: str
    split: str
    scores: dict[str, dict[str, float]]  # metric -> query id -> score
    means: dict[str, Mean]  # metric -> over those queries
    counts: dict[str, int]  # what was scored, and the queries that were not
    fingerprints: dict[str, str]  # "task", and what the caller adds, such as "model"
    prompts: dict[str, str | None] = field(default_factory=dict)  # role -> text put before
    versions: dict[str, str] = field(default_factory=dict)  # package -> version
    seconds: float | None = None  # encoding and search
    languages: tuple[str, ...] = UNKNOWN_LANGUAGE  # as MTEB writes them: eng-Latn
    main: str = MAIN_METRIC  # which of the means stands for all
    leakage: Leakage | None = None  # where the training texts were named
    mteb: dict[str, Any] | None = None  # what MTEB itself says: revision, version, row of scores


def evaluate_vectors(
    task: RetrievalTask,
    query_vectors: Rows,
    document_vectors: Rows,
    k: int = 100,
) -> Run:
    """The k documents of largest inner product for each query; row i belongs to position i."""
    return run_of(task, search(task, query_vectors, document_vectors, k))


def score_task(
    task: RetrievalTask,
    found: Run | Ranking,
    *,
    model: str,
    fingerprints: Mapping[str, str] | None = None,
    prompts: Mapping[str, str | None] | None = None,
    seconds: float | None = None,
    languages: Sequence[str] = UNKNOWN_LANGUAGE,
) -> Result:
    """Score what was found for `task` and put an interval round every mean.

    A ranking is scored by the metrics it is deep enough for, a run by all.
    """
    if isinstance(found, Ranking):
        scores = score_ranking(task, found)
        missing, depth = unanswered(task, found), found.scores.shape[1]
    else:
        scores = score_runs(task.qrels, found)
        missing, depth = absent(task.qrels, found), max(map(len, found.values()), default=0)
    intervals = bootstrap_intervals(np.stack(list(scores.values())))
    return Result(
        model=model,
        task=task.name,
        split=task.split,
        scores={m: dict(zip(task.qrels, v.tolist(), strict=True)) for m, v in scores.items()},
        means={
            metric: Mean(float(values.mean()), float(low), float(high))
            for (metric, values), (low, high) in zip(scores.items(), intervals, strict=True)
        },
        counts={
            "queries": len(task.qrels),
            "documents": len(task.documents),
            "judgements": sum(map(len, task.qrels.values())),
            "unanswered": missing,
            "depth": depth,
            "without_judgement": task.unjudged,
            "without_answer": task.answerless,
        },
        fingerprints={"task": task_fingerprint(task), **(fingerprints or {})},
        prompts=dict(prompts or {}),
        versions=installed_versions(),
        seconds=seconds,
        languages=tuple(languages),
    )


def task_fingerprint(task: RetrievalTask) -> str:
    """Hash of the documents, queries and judgements: equal only if the task is."""
    grades = ((q, d, str(grade)) for q, row in task.qrels.items() for d, grade in row.items())
    sides = (task.documents.ids, task.documents.texts, task.queries.ids, task.queries.texts)
    return fingerprint([*map(fingerprint, sides), fingerprint(p for g in grades for p in g)])


def write_result(result: Result, folder: Path) -> Path:
    """Write the result to its `result_path` and return that."""
    path = result_path(result, folder)
    write_json(path, _to_json(result))
    return path


def result_path(result: Result, folder: Path) -> Path:
    """`folder/MODEL/TASK.SPLIT.json`, slashes in names become __."""
    return folder / _safe(result.model) / f"{_safe(result.task)}.{_safe(result.split)}.json"


def write_mteb(facts: Mapping[str, Any], model: str, task: str, split: str, folder: Path) -> Path:
    """Write MTEB's TaskResult alone, of a task that has no scores of single queries."""
    path = folder / _safe(model) / f"{_safe(task)}.{_safe(split)}{ALONE}"
    write_json(path, facts)
    return path


def result_files(folder: Path) -> list[Path]:
    """The results below a folder, without what stands beside them."""
    return [
        file
        for file in sorted(folder.rglob("*.json"))
        if file.name != COMPARISONS and not file.name.endswith((PREDICTIONS, ALONE))
    ]


def read_result(path: Path) -> Result:
    """Read what `write_result` wrote. Raises UserError if the file is anything else."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        ours = dict(whole["tercet"])
        written = ours.pop("format", 1)
        if written > FORMAT:
            raise UserError(
                f"{path}: written by a newer version of tercet (format {written}, this one reads "
                f"{FORMAT}); update tercet, or evaluate the model again"
            )
        return TypeAdapter(Result).validate_python({"task": whole["task_name"], **ours})
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"tercet.{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, TypeError) as error:
        reason = str(error)
    except KeyError as error:
        reason = f"no key {error}"
    raise UserError(
        f"{path}: not a result of `tercet evaluate` ({reason}); evaluate the model again"
    )


def comparison(a: Result, b: Result, metric: str = MAIN_METRIC) -> Delta:
    """b against the baseline a on one metric. Raises UserError if they measured other things."""
    for what, left, right in (
        ("task", a.task, b.task),
        ("split", a.split, b.split),
        ("task contents", a.fingerprints.get("task"), b.fingerprints.get("task")),
    ):
        if left != right:
            raise UserError(
                f"{a.model} and {b.model} cannot be compared: {what} {left!r} against {right!r}; "
                "evaluate both on the same data"
            )
    if metric not in a.scores or metric not in b.scores:
        raise UserError(f"unknown metric {metric!r}; these results hold {', '.join(a.scores)}")
    return compare(a.scores[metric], b.scores[metric])


def _to_json(result: Result) -> dict[str, Any]:
    """MTEB's TaskResult, with all that is ours under one key of its own."""
    shown = {_mteb_name(metric): mean.mean for metric, mean in result.means.items()}
    main = {"main_score": result.means[result.main].mean, "hf_subset": "default"}
    said = result.mteb or {}
    row = {**shown, **main, "languages": [*result.languages], **said.get("row", {})}
    ours = {name: value for name, value in asdict(result).items() if name not in _OUTSIDE}
    return {
        "dataset_revision": said.get("dataset_revision", result.fingerprints["task"]),
        "task_name": result.task,
        "mteb_version": said.get("mteb_version"),
        "scores": {result.split: [row]},
        "evaluation_time": result.seconds,
        "kg_co2_emissions": None,
        "tercet": {"format": FORMAT, **ours},
    }


def _mteb_name(metric: str) -> str:
    """As MTEB calls it; its correlations are of cosines."""
    prefix = "cosine_" if metric in ("spearman", "pearson") else ""
    return prefix + metric.replace("@", "_at_")


def _safe(name: str) -> str:
    """A file name: `a/b` becomes `a__b`, as MTEB writes it."""
    return re.sub(r"[^\w.\-]+", "_", name.strip("/").replace("/", "__")) or "_"
