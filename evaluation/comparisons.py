"""One model against all others on every task, with p values that know how many there are."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tercet.evaluation.retrieval import COMPARISONS, MAIN_METRIC, Result, comparison
from tercet.evaluation.significance import Delta, holm
from tercet.files import write_json

PLUS = " + "  # between a model's name and its reranker's


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


def comparisons(
    results: Sequence[Result], model: str, metric: str = MAIN_METRIC
) -> list[Comparison]:
    """`model` against every other one, task by task, in the order of `results`.

    A reranked form of `model` is compared with `model`. Results without scores of single queries
    are left out. Raises UserError if two results of a task measured other things.
    """
    found = [
        (new, base, comparison(base, new, metric))
        for mine in results
        if mine.model == model and metric in mine.scores
        for other in results
        if other.model != model and (other.task, other.split) == (mine.task, mine.split)
        for base, new in [(mine, other) if reranks(other.model, model) else (other, mine)]
    ]
    adjusted = {}
    for pair in {(new.model, base.model) for new, base, _ in found}:
        places = [i for i, (new, base, _) in enumerate(found) if (new.model, base.model) == pair]
        ps = holm([found[i][2].p for i in places])
        adjusted.update(zip(places, ps, strict=True))
    return [
        Comparison(new.task, new.split, new.model, base.model, metric, delta, adjusted[i])
        for i, (new, base, delta) in enumerate(found)
    ]


def reranks(name: str, model: str) -> bool:
    """Whether `name` is `model` with a reranker behind it."""
    return name.startswith(model + PLUS)


def write_comparisons(found: Sequence[Comparison], folder: Path) -> Path:
    """Write them to `folder/comparisons.json`."""
    write_json(folder / COMPARISONS, [asdict(one) for one in found])
    return folder / COMPARISONS
