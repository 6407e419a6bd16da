"""Means of models: one, or the best on the line from a base to its tuned self."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig
from tercet.data import RetrievalTask, read_task
from tercet.errors import UserError
from tercet.evaluation import Delta, PerQuery, bootstrap_interval, compare
from tercet.export import MODULES, export_model, made_card
from tercet.files import check_replaceable
from tercet.models import default_device, load_encoder, merge_line, merge_models
from tercet.processes import one_process
from tercet.progress import progress
from tercet.report import curve_table, markdown_table
from tercet.stages.measuring import per_query
from tercet.stages.names import name_of, refuse_twice

LEVEL = 0.05  # a loss is one if chance gives as large a difference less often than this
ENOUGH = 0.9  # of the best gain on dev: what more of the tuned model adds is not worth forgetting


# share of the tuned model, that mean, collections -> collection -> every query's nDCG@10
Score = Callable[[float, SentenceTransformer, Sequence[RetrievalTask]], Mapping[str, PerQuery]]


@dataclass(frozen=True)
class Point:
    """One mean of two models, and every query's nDCG@10 with it."""

    share: float  # of the tuned model; the rest is the base's
    scores: Mapping[str, PerQuery]  # collection -> query -> score


@dataclass(frozen=True)
class Curve:
    """The line from a base model (share 0) to its tuned self (share 1)."""

    dev: str  # the collection whose score decides
    points: tuple[Point, ...]  # by share, from 0
    chosen: float  # the share

    def facts(self) -> dict[str, Any]:
        """What is written as JSON: means with intervals, differences from the base."""
        return {
            "dev": self.dev,
            "chosen": self.chosen,
            "points": [
                {"share": point.share, "tasks": {t: self._fact(point, t) for t in point.scores}}
                for point in self.points
            ],
        }

    def _fact(self, point: Point, task: str) -> dict[str, Any]:
        values = np.array(list(point.scores[task].values()))
        low, high = bootstrap_interval(values)
        delta = compare(self.points[0].scores[task], point.scores[task])
        return {
            "mean": float(values.mean()),
            "low": low,
            "high": high,
            "queries": len(values),
            "against_base": asdict(delta),
        }


def merge(
    models: Sequence[str],
    weights: Sequence[float],
    out: Path,
    *,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Average the weights of models of one architecture; write the result to `out`, proven.

    Raises UserError under a launcher.
    """
    one_process("merge")
    check_replaceable(out, MODULES, overwrite=overwrite, keep=models)
    names = [name_of(path) for path in models]
    settings = [ModelConfig(path=path, trust_remote_code=trust_remote_code) for path in models]
    loaded = [load_encoder(one, "merge") for one in settings]
    merged = merge_models(loaded, weights, names)
    parts = [
        {"Model": name, "Weight": f"{weight:g}"}
        for name, weight in zip(names, weights, strict=True)
    ]
    card = made_card(name_of(str(out)), "A weighted mean of models.", markdown_table(parts))
    export_model(merged, out, card=card, overwrite=overwrite, trust_remote_code=trust_remote_code)


def merge_curve(
    base: str,
    tuned: str,
    dev: str | Path,
    out: Path,
    *,
    split: str = "dev",
    keep: Sequence[str | Path] = (),
    keep_split: str = "test",
    points: int = 11,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    score: Score | None = None,
) -> Curve:
    """Score `points` means on the line from `base` to `tuned`, and write the best of them.

    Which one is best `best_share` says, by nDCG@10 on `dev` and on the folders of `keep`, all of
    them BEIR folders. To `out` go the model, proven, its card with the table, and `results.json`
    (LM-Cocktail, arXiv:2311.13534, chooses by a dev set as well). `score` takes the place of the
    search that scores a mean: to keep what it found, for a program that may be stopped.
    Raises UserError under a launcher.
    """
    one_process("merge")
    check_replaceable(out, MODULES, overwrite=overwrite, keep=[base, tuned, dev, *keep])
    if points < 2:
        raise UserError(f"--points: {points} is no curve; take 2 or more")
    tasks = [read_task(dev, split), *(read_task(folder, keep_split) for folder in keep)]
    refuse_twice("collections", [task.name for task in tasks])
    names = name_of(base), name_of(tuned)

    def line(shares: Sequence[float]) -> Iterator[SentenceTransformer]:
        ends = (_load(path, trust_remote_code) for path in (base, tuned))
        return merge_line(next(ends), next(ends), shares, names)

    found = []
    shares = np.linspace(0, 1, points).tolist()
    with progress("merge curve", points) as advance:
        for share, model in zip(shares, line(shares), strict=True):
            found.append(Point(share, (score or _searched)(share, model, tasks)))
            advance()
    curve = Curve(tasks[0].name, tuple(found), best_share(found, tasks[0].name))
    (merged,) = line([curve.chosen])
    facts = curve.facts()
    card = made_card(
        name_of(str(out)),
        f"{1 - curve.chosen:.2g} of `{names[0]}` and {curve.chosen:.2g} of `{names[1]}`.",
        markdown_table(curve_table(facts)),
    )
    export_model(
        merged.to("cpu"),  # where what was written is loaded to be compared
        out,
        card=card,
        results=facts,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )
    return curve


def best_share(points: Sequence[Point], dev: str) -> float:
    """The share to take: the smallest that has most of what can be had on `dev`.

    Of the points that lose nothing significant (p < 0.05, paired randomisation test against the
    base) on any other collection, the first with at least 0.9 of the best gain on `dev` among them;
    0 if none gains. A loss that is there but not significant on these queries grows with the share.
    """

    def loses(point: Point, task: str) -> bool:
        delta = compare(points[0].scores[task], point.scores[task])
        return is_loss(delta)

    safe = [p for p in points if not any(loses(p, task) for task in p.scores if task != dev)]
    means = np.array([np.mean(list(point.scores[dev].values())) for point in safe])
    gains = means - means[0]  # the first is the base itself
    return safe[int(np.argmax(gains >= ENOUGH * gains.max()))].share


def is_loss(delta: Delta) -> bool:
    """Whether a difference is a significant loss."""
    return delta.mean < 0 and delta.p < LEVEL


def _searched(
    share: float, model: SentenceTransformer, tasks: Sequence[RetrievalTask]
) -> dict[str, PerQuery]:
    return {task.name: per_query(model, task) for task in tasks}


def _load(path: str, trust_remote_code: bool) -> SentenceTransformer:
    settings = ModelConfig(path=path, trust_remote_code=trust_remote_code)
    return load_encoder(settings, "merge").to(default_device())
