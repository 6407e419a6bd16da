"""The part `merge` of benchmarks.distillation: the teacher, its tuned self, what is between."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.distillation_work import (
    CODE,
    OTHERS,
    PAIRS,
    Work,
    encoder,
    per_query,
    test_scores,
)
from benchmarks.kept import kept_json, scored_by, trained, weights
from tercet import stages
from tercet.configs import load
from tercet.data import RetrievalTask, read_similarity, read_task
from tercet.evaluation.retention import summary
from tercet.evaluation.retrieval import SPEARMAN, comparison
from tercet.models import EMBEDDED, merge_line, resolve
from tercet.stages.merging import Curve, Point, best_share

POINTS = 6  # of the curve


def merge(work: Work, name: str) -> dict[str, Any]:
    """Fine-tune the teacher itself, and find the mean that forgets nothing."""
    run, out = work.run("teacher_tuned"), work.run(name)
    config = load("short_pairs", [f"output={run}", f"data.train={work.data(CODE)}"])
    tuned = trained(run, config, stages.finetune)["model"]
    halves = {other: work.halves(other) for other in OTHERS}
    tasks = [
        read_task(work.data(CODE), "dev"),
        *(read_task(choose) for choose, _ in halves.values()),
    ]
    curve = curve_of(work, name, tuned, tasks)
    parts = [EMBEDDED, tuned], [1 - curve.chosen, curve.chosen]
    stages.merge(*parts, out, overwrite=True)
    models = {"base": EMBEDDED, "tuned": tuned, "merged": str(out)}
    found: dict[str, Any] = {}
    reported = [read_task(work.whole(CODE)), *(read_task(report) for _, report in halves.values())]
    for task in reported:
        scores = {who: test_scores(work, who, encoder(p), task) for who, p in models.items()}
        found[task.name.removesuffix("-report")] = {"documents": len(task.documents)} | {
            who: summary(s, scores["base"]) for who, s in scores.items()
        }
    gains = {who: found[CODE][who]["against_teacher"]["mean"] for who in ("tuned", "merged")}
    return {
        "curve": curve.facts(),
        "chosen": curve.chosen,
        "test": found,
        "similarity": similarity(work, models),
        "gain_kept": gains["merged"] / gains["tuned"] if gains["tuned"] > 0 else None,
    }


def curve_of(work: Work, name: str, tuned: str, tasks: Sequence[RetrievalTask]) -> Curve:
    """The line from the teacher to its tuned self; each point is kept when it has been scored."""
    shares = np.linspace(0, 1, 3 if work.small else POINTS).round(6).tolist()
    made_by = scored_by(
        weights=[weights(resolve(path)) for path in (EMBEDDED, tuned)],
        tasks=[task.fingerprint for task in tasks],
    )
    points = []
    for share in shares:

        def score(share: float = share) -> dict[str, Any]:
            base, end = (encoder(path) for path in (EMBEDDED, tuned))
            model = next(merge_line(base, end, [share], ("base", "tuned")))
            return {"scores": {task.name: per_query(model, task) for task in tasks}}

        found = kept_json(work.step(name, f"share={share}"), score, made_by)
        points.append(Point(share, found["scores"]))
    return Curve(tasks[0].name, tuple(points), best_share(points, tasks[0].name))


def similarity(work: Work, models: Mapping[str, str]) -> dict[str, Any]:
    """Spearman's correlation with people's scores, and how it differs from that of the first."""
    task, out = read_similarity(work.shared / PAIRS), work.folder / "evaluated"
    results = {
        who: stages.evaluate_similarity(encoder(path), who, task, out)
        for who, path in models.items()
    }
    base = next(iter(results.values()))
    return {
        who: asdict(found.means[SPEARMAN])
        | {"against_base": asdict(comparison(base, found, SPEARMAN))}
        for who, found in results.items()
    }
