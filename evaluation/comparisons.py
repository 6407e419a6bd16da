"""One model against all others on every task, with p values that know how many there are."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from tercet.errors import UserError
from tercet.evaluation.results import COMPARISONS, read_result, result_files, safe_name
from tercet.evaluation.retrieval import Result, comparison, refuse_others
from tercet.evaluation.significance import Delta, holm
from tercet.files import write_json
from tercet.progress import say

PLUS = " + "  # between a model's name and its reranker's
Pair = tuple[Result, Result]  # a result, and the baseline's on the same task


@dataclass(frozen=True)
class Comparison:
    """`model` against the baseline `base` on one task."""

    task: str
    split: str
    model: str
    base: str
    metric: str
    delta: Delta
    holm: float  # p adjusted over the tasks of the two models


def comparisons(results: Sequence[Result], model: str) -> list[Comparison]:
    """`model` against every other one, task by task, in the order of `results`, by main metric.

    A reranked form of `model` is compared with `model`. Results without scores of single queries
    or pairs are left out. Raises UserError if two results of a task measured other things.
    """
    return _compared(_pairs(results, model))


def comparisons_in(folder: Path, results: Sequence[Result], model: str) -> list[Comparison]:
    """`comparisons` of a run, and of the earlier ones into `folder`, anew from the results there.

    Two models that were ever compared are compared on every task that both have results of, so
    that p is adjusted for all of them. Where two results no longer measured the same, that is said.
    """
    asked = [(one.model, one.base) for one in read_comparisons(folder)]
    asked += [(new.model, base.model) for new, base in _pairs(results, model)]
    names = {name for pair in asked for name in pair}
    known = {(r.task, r.split, r.model): r for r in (*_stored(folder, names), *results)}
    found: list[Pair] = []
    for task, split in dict.fromkeys((task, split) for task, split, _ in known):
        for one, other in dict.fromkeys(asked):
            new, base = known.get((task, split, one)), known.get((task, split, other))
            if new is None or base is None or not _comparable(new, base):
                continue
            try:
                refuse_others(base, new)
            except UserError as error:
                say(f"{task} ({split}): {error}")
            else:
                found.append((new, base))
    return _compared(found)


def reranks(name: str, model: str) -> bool:
    """Whether `name` is `model` with a reranker behind it."""
    return name.startswith(model + PLUS)


def write_comparisons(found: Sequence[Comparison], folder: Path) -> Path:
    """Write them to `folder/comparisons.json`."""
    write_json(folder / COMPARISONS, [asdict(one) for one in found])
    return folder / COMPARISONS


def read_comparisons(folder: Path) -> list[Comparison]:
    """What `write_comparisons` wrote to `folder`; none if nothing did.

    Raises UserError if the file is anything else.
    """
    path = folder / COMPARISONS
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return TypeAdapter(list[Comparison]).validate_python(rows)
    except (OSError, ValueError) as error:  # a ValidationError is one
        reason = str(error).splitlines()[0]
    raise UserError(f"{path}: not the comparisons of `tercet evaluate` ({reason}); remove it")


def _pairs(results: Sequence[Result], model: str) -> list[Pair]:
    """Each result of `model` or of its reranked forms, with every baseline's on the same task."""
    return [
        (other, mine) if reranks(other.model, model) else (mine, other)
        for mine in results
        if mine.model == model
        for other in results
        if other.model != model and (other.task, other.split) == (mine.task, mine.split)
        if _comparable(mine, other)
    ]


def _comparable(a: Result, b: Result) -> bool:
    """Whether both have scores of single queries, or of pairs, under the same main metric."""
    both = (a, b)
    return a.main == b.main and (
        all(r.main in r.scores for r in both) or all(r.similarities is not None for r in both)
    )


def _compared(pairs: Sequence[Pair]) -> list[Comparison]:
    """The differences, p adjusted within each pair of models."""
    deltas = [comparison(base, new, new.main) for new, base in pairs]
    families: dict[tuple[str, str], list[int]] = {}
    for place, (new, base) in enumerate(pairs):
        families.setdefault((new.model, base.model), []).append(place)
    adjusted: dict[int, float] = {}
    for places in families.values():
        ps = holm([deltas[place].p for place in places])
        adjusted.update(zip(places, ps, strict=True))
    return [
        Comparison(new.task, new.split, new.model, base.model, new.main, deltas[i], adjusted[i])
        for i, (new, base) in enumerate(pairs)
    ]


def _stored(folder: Path, models: Iterable[str]) -> Iterator[Result]:
    """The results of these models below `folder`; what cannot be read as one is said."""
    for model in sorted(models):
        for path in result_files(folder / safe_name(model)):
            try:
                yield read_result(path)
            except UserError as error:
                say(str(error))
