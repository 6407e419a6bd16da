"""What the parts of benchmarks.distillation aim at, set before anything was measured."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.distillation_work import CODE, PAIRS
from benchmarks.machine import target
from tercet.evaluation import Delta
from tercet.stages.merging import is_loss

Section = Mapping[str, Any]

SHARE = "share of the teacher's nDCG@10"
ASYMMETRIC = "that share on the teacher's index"
DOCUMENTS = "documents a second over the teacher's"
QUERIES = "queries a second over the teacher's"
MINUTES = "minutes of training"
ABOVE = "nDCG@10 above the untuned teacher's"
GAIN = "share of the gain that the merge keeps"
LOSSES = "collections with a significant loss"

AIMS: dict[str, dict[str, float]] = {
    "three_code": {SHARE: 0.99, ASYMMETRIC: 0.975, DOCUMENTS: 1.8, MINUTES: 30},
    "three_debian": {SHARE: 0.97, ASYMMETRIC: 0.975, DOCUMENTS: 1.8, MINUTES: 60},
    "two_code": {SHARE: 0.96, DOCUMENTS: 2.5},
    "static_code": {SHARE: 0.85, QUERIES: 50, MINUTES: 15},
    "vocabulary_code": {SHARE: 0.99},
    "tuned_code": {ABOVE: 0},
    "tuned_debian": {ABOVE: 0},
    "merge": {GAIN: 0.7, LOSSES: 0},
}
AT_MOST = (MINUTES, LOSSES)  # the others: at least


def aims(name: str, found: Section) -> list[dict[str, Any]]:
    """Each aim of a part, what was found, and whether it was met."""
    return [
        target(what, MEASURES[what](found), **{"most" if what in AT_MOST else "least": bound})
        for what, bound in AIMS.get(name, {}).items()
    ]


def losses(merged: Section) -> list[str]:
    """Of the part `merge`, the collections not tuned on where the merged model loses."""
    deltas = {d: models["merged"]["against_teacher"] for d, models in merged["test"].items()}
    deltas[PAIRS.split("/")[0]] = merged["similarity"]["merged"]["against_base"]
    return [d for d, delta in deltas.items() if d != CODE and is_loss(Delta(**delta))]


MEASURES: dict[str, Callable[[Section], float]] = {
    SHARE: lambda found: found["student"]["share"] or 0.0,  # None of a teacher that finds nothing
    ASYMMETRIC: lambda found: found["asymmetric"]["share"] or 0.0,
    DOCUMENTS: lambda found: found["speed"]["student"]["documents_times_faster"],
    QUERIES: lambda found: found["speed"]["student"]["queries_times_faster"],
    MINUTES: lambda found: found["minutes"],
    ABOVE: lambda found: found["student"]["against_teacher"]["mean"],
    GAIN: lambda found: found["gain_kept"] or 0.0,  # None if there is none
    LOSSES: lambda found: len(losses(found)),
}
