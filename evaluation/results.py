"""Results on disk, in the shape that MTEB's have."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tercet.errors import UserError
from tercet.evaluation.ranking import DEPTH
from tercet.evaluation.retrieval import Result
from tercet.files import write_json

FORMAT = 2  # of what stands under "tercet"; raised when a reader of today could not read it
COMPARISONS = "comparisons.json"  # beside the folders of the models
PREDICTIONS = "_predictions.json"  # after TASK.SPLIT
ALONE = ".mteb.json"  # likewise
_OUTSIDE = ("task", "mteb")  # of a result: they stand beside "tercet" in the file


def write_result(result: Result, folder: Path) -> Path:
    """Write the result to its `result_path` and return that."""
    path = result_path(result, folder)
    write_json(path, _to_json(result))
    return path


def result_path(result: Result, folder: Path) -> Path:
    """`folder/MODEL/TASK.SPLIT.json`, slashes in names become __."""
    return place_of(folder, result.model, result.task, result.split)


def place_of(folder: Path, model: str, task: str, split: str) -> Path:
    """Where the result of a model on a task is written."""
    return folder / safe_name(model) / f"{safe_name(task)}.{safe_name(split)}.json"


def refuse_foreign(
    folder: Path, model: str, task: str, split: str, contents: str | None = None
) -> None:
    """Raise UserError if another program or a newer version wrote what a result would replace.

    `contents`: the task's fingerprint, where it is known. A result of other contents is kept, too:
    what it was compared with in that folder could be compared no more.
    """
    path = place_of(folder, model, task, split)
    if path.exists():
        before = read_result(path).fingerprints.get("task")
        if contents is not None and before != contents:
            raise UserError(
                f"{path}: of other contents of {task} than --data holds now; choose another "
                "folder, or remove the results of the old ones"
            )
    alone = path.with_suffix(ALONE)
    if alone.exists():
        _check_mteb(alone)


def write_mteb(facts: Mapping[str, Any], model: str, task: str, split: str, folder: Path) -> Path:
    """Write MTEB's TaskResult alone, of a task that has no scores of single queries."""
    path = place_of(folder, model, task, split).with_suffix(ALONE)
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
                f"{FORMAT}); update tercet, or choose another folder"
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
    raise UserError(f"{path}: not a result of `tercet evaluate` ({reason}); name another")


def _check_mteb(path: Path) -> None:
    """Raise UserError unless `write_mteb` may have written the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        found = None
    if not (isinstance(found, dict) and {"task_name", "mteb_version", "scores"} <= found.keys()):
        raise UserError(f"{path}: not a result of `tercet evaluate --mteb`; name another folder")


def _to_json(result: Result) -> dict[str, Any]:
    """MTEB's TaskResult, with all that is ours under one key of its own."""
    depth = result.counts.get("depth", DEPTH)  # none of STS
    names = {mteb_name(metric, depth): mean.mean for metric, mean in result.means.items()}
    shown = {name: mean for name, mean in names.items() if name is not None}
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


def mteb_name(metric: str, depth: int = DEPTH) -> str | None:
    """As MTEB calls it; its correlations are of cosines.

    MTEB looks at 1,000 documents of a query: MAP of a larger `depth` is none of its numbers (None).

    >>> mteb_name("recall@100"), mteb_name("map"), mteb_name("map", 5_000), mteb_name("spearman")
    ('recall_at_100', 'map_at_1000', None, 'cosine_spearman')
    """
    if metric == "map":
        return f"map_at_{DEPTH}" if depth <= DEPTH else None
    prefix = "cosine_" if metric in ("spearman", "pearson") else ""
    return prefix + metric.replace("@", "_at_")


def safe_name(name: str) -> str:
    """A file name: `a/b` becomes `a__b`, as MTEB writes it."""
    return re.sub(r"[^\w.\-]+", "_", name.strip("/").replace("/", "__")) or "_"
