"""Vectors in, a result with error bars out, on disk in the shape MTEB's results have."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pydantic import TypeAdapter, ValidationError

from tercet.data.rows import RetrievalTask
from tercet.errors import UserError
from tercet.evaluation.metrics import Run, absent, score_runs
from tercet.evaluation.significance import Delta, bootstrap_interval, compare
from tercet.files import fingerprint, whole_file, write_json
from tercet.mining.search import Rows, top_k
from tercet.versions import installed_versions

MAIN_METRIC = "ndcg@10"
UNKNOWN_LANGUAGE = ("und-Zyyy",)  # ISO's codes for it; MTEB averages a list of none to NaN


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
    counts: dict[str, int]  # queries, documents, judgements, unanswered queries, depth
    fingerprints: dict[str, str]  # "task", and what the caller adds, such as "model"
    prompts: dict[str, str | None] = field(default_factory=dict)  # role -> text put before
    versions: dict[str, str] = field(default_factory=dict)  # package -> version
    seconds: float | None = None  # encoding and search
    languages: tuple[str, ...] = UNKNOWN_LANGUAGE  # as MTEB writes them: eng-Latn


def evaluate_vectors(
    task: RetrievalTask,
    query_vectors: Rows,
    document_vectors: Rows,
    k: int = 100,
) -> Run:
    """The k documents of largest inner product for each query; row i belongs to position i."""
    for vectors, texts, what in (
        (query_vectors, task.queries, "query"),
        (document_vectors, task.documents, "document"),
    ):
        if len(vectors) != len(texts):
            raise ValueError(f"{len(vectors)} {what} vectors for {len(texts)} texts")
    scores, positions = top_k(query_vectors, document_vectors, k)
    ids = task.documents.ids
    return {
        query: {ids[d]: float(s) for d, s in zip(found, values, strict=True)}
        for query, found, values in zip(task.queries.ids, positions, scores, strict=True)
    }


def score_task(
    task: RetrievalTask,
    run: Run,
    *,
    model: str,
    fingerprints: Mapping[str, str] | None = None,
    prompts: Mapping[str, str | None] | None = None,
    seconds: float | None = None,
    languages: Sequence[str] = UNKNOWN_LANGUAGE,
) -> Result:
    """Score a run of `task` and put an interval round every mean."""
    scores = score_runs(task.qrels, run)
    return Result(
        model=model,
        task=task.name,
        split=task.split,
        scores={m: dict(zip(task.qrels, v.tolist(), strict=True)) for m, v in scores.items()},
        means={m: Mean(float(v.mean()), *bootstrap_interval(v)) for m, v in scores.items()},
        counts={
            "queries": len(task.qrels),
            "documents": len(task.documents),
            "judgements": sum(map(len, task.qrels.values())),
            "unanswered": absent(task.qrels, run),
            "depth": max(map(len, run.values()), default=0),
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


def read_result(path: Path) -> Result:
    """Read what `write_result` wrote. Raises UserError if the file is anything else."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        return TypeAdapter(Result).validate_python({"task": whole["task_name"], **whole["tercet"]})
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


def write_run(run: Run, path: Path, name: str = "tercet") -> None:
    """TREC's run file: `query Q0 document rank score name`, best first, ties by id descending.

    The format parts its columns by white space, so white space and % in an id are written
    percent-encoded (`a b` as `a%20b`); `read_run` decodes them.
    """
    tag = re.sub(r"\s+", "_", name) or "tercet"
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for query, documents in run.items():
            ranked = sorted(documents.items(), key=lambda item: (item[1], item[0]), reverse=True)
            for rank, (document, score) in enumerate(ranked, start=1):
                file.write(
                    f"{_encoded(query)} Q0 {_encoded(document)} {rank} {float(score)!r} {tag}\n"
                )


def read_run(path: Path) -> Run:
    """Read a TREC run file: query -> document -> score, in the file's order.

    Ids are percent-decoded, as `write_run` encodes them. Raises UserError naming a line that has
    not six columns.
    """
    run: Run = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            query, _, document, _, score, _ = line.split()
            run.setdefault(unquote(query), {})[unquote(document)] = float(score)
        except ValueError:
            raise UserError(
                f"{path}, line {number}: not `query Q0 document rank score name`"
            ) from None
    return run


def _to_json(result: Result) -> dict[str, Any]:
    """MTEB's TaskResult, with all that is ours under one key of its own."""
    shown = {_mteb_name(metric): mean.mean for metric, mean in result.means.items()}
    main = shown[_mteb_name(MAIN_METRIC)]
    row = {**shown, "main_score": main, "hf_subset": "default", "languages": [*result.languages]}
    return {
        "dataset_revision": result.fingerprints["task"],
        "task_name": result.task,
        "mteb_version": None,
        "scores": {result.split: [row]},
        "evaluation_time": result.seconds,
        "kg_co2_emissions": None,
        "tercet": {
            "model": result.model,
            "split": result.split,
            "means": {metric: vars(mean) for metric, mean in result.means.items()},
            "counts": result.counts,
            "fingerprints": result.fingerprints,
            "prompts": result.prompts,
            "versions": result.versions,
            "seconds": result.seconds,
            "languages": [*result.languages],
            "scores": result.scores,
        },
    }


def _mteb_name(metric: str) -> str:
    return metric.replace("@", "_at_")


def _safe(name: str) -> str:
    """A file name: `a/b` becomes `a__b`, as MTEB writes it."""
    return re.sub(r"[^\w.\-]+", "_", name.strip("/").replace("/", "__")) or "_"


def _encoded(id_: str) -> str:
    return re.sub(r"[\s%]", lambda found: quote(found[0], safe=""), id_)
