"""What the parts of benchmarks.distillation aim at, set before anything was measured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.distillation_work import CODE, PAIRS
from benchmarks.machine import target
from tercet.evaluation import Delta, holm
from tercet.evaluation.retention import TEACHER
from tercet.stages.merging import is_loss

Section = Mapping[str, Any]
Measure = tuple[float, Sequence[float] | None]  # with its interval; of a speed, all rounds' range

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
    judged = []
    for what, bound in AIMS.get(name, {}).items():
        got, interval = MEASURES[what](found)
        limit = {"most" if what in AT_MOST else "least": bound}
        judged.append(target(what, got, interval=interval, **limit))
    return judged


def losses(merged: Section) -> list[str]:
    """Of the part `merge`, the collections not tuned on where the merged model loses.

    Several are asked, so p is adjusted for their number (Holm).
    """
    deltas = elsewhere(merged)
    adjusted = holm([delta["p"] for delta in deltas.values()])
    return [
        name
        for (name, delta), p in zip(deltas.items(), adjusted, strict=True)
        if is_loss(Delta(**{**delta, "p": p}))
    ]


def elsewhere(merged: Section) -> dict[str, Section]:
    """The merged model's difference from the base on each collection that was not tuned on."""
    deltas = {d: models["merged"]["against_teacher"] for d, models in merged["test"].items()}
    deltas[PAIRS.split("/")[0]] = merged["similarity"]["merged"]["against_base"]
    return {name: delta for name, delta in deltas.items() if name != CODE}


def _share(quality: Section) -> Measure:
    if quality["share"] is None:  # of a teacher that finds nothing
        return 0.0, None
    return quality["share"], (quality["share_low"], quality["share_high"])


def _faster(speed: Section, what: str) -> Measure:
    sides = (speed[who][f"{what}_seconds"] for who in (TEACHER, "student"))
    rounds = [slow / fast for slow, fast in zip(*sides, strict=True)]
    return speed["student"][f"{what}_times_faster"], (min(rounds), max(rounds))


def _above(delta: Section) -> Measure:
    return delta["mean"], (delta["low"], delta["high"])


MEASURES: dict[str, Callable[[Section], Measure]] = {
    SHARE: lambda found: _share(found["student"]),
    ASYMMETRIC: lambda found: _share(found["asymmetric"]),
    DOCUMENTS: lambda found: _faster(found["speed"], "documents"),
    QUERIES: lambda found: _faster(found["speed"], "queries"),
    MINUTES: lambda found: (found["minutes"], None),
    ABOVE: lambda found: _above(found["student"]["against_teacher"]),
    GAIN: lambda found: (found["gain_kept"] or 0.0, found["gain_kept_interval"]),  # None: no gain
    LOSSES: lambda found: (len(losses(found)), None),
}
