"""The part `merge` of benchmarks.distillation: the teacher, its tuned self, what is between."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from benchmarks.distillation_work import CODE, OTHERS, PAIRS, Work, encoder, test_scores
from benchmarks.kept import kept_json, scored_by, trained, weights
from tercet import stages
from tercet.configs import load
from tercet.data import RetrievalTask, read_similarity, read_task
from tercet.evaluation import PerQuery, ratio_interval
from tercet.evaluation.retention import summary
from tercet.evaluation.retrieval import SPEARMAN, comparison
from tercet.models import EMBEDDED, resolve
from tercet.stages.merging import Score

POINTS = 6  # of the curve
MANY = 20_000  # documents: of so many, the tuned model's vectors are not worth the time


def merge(work: Work, name: str) -> dict[str, Any]:
    """Fine-tune the teacher itself, and find the mean that forgets nothing."""
    run, out = work.run("teacher_tuned"), work.run(name)
    config = load("short_pairs", [f"output={run}", f"data.train={work.data(CODE)}"])
    tuned = trained(run, config, stages.finetune)["model"]
    halves = [work.halves(other) for other in OTHERS]
    curve = stages.merge_curve(
        EMBEDDED,
        tuned,
        work.data(CODE),
        out,
        keep=[choose for choose, _ in halves],
        points=3 if work.small else POINTS,
        overwrite=True,
        score=keeping(work, name, (EMBEDDED, tuned)),
    )
    models = {"base": EMBEDDED, "tuned": tuned, "merged": str(out)}
    reported = [read_task(work.whole(CODE)), *(read_task(report) for _, report in halves)]
    scores = {task.name.removesuffix("-report"): shown(work, models, task) for task in reported}
    kept, interval = gain_kept(scores[CODE])
    return {
        "curve": curve.facts(),
        "chosen": curve.chosen,
        "test": {
            name: {"documents": len(task.documents)}
            | {who: summary(values, found["base"]) for who, values in found.items()}
            for task, (name, found) in zip(reported, scores.items(), strict=True)
        },
        "similarity": similarity(work, models),
        "gain_kept": kept,
        "gain_kept_interval": interval,
    }


def keeping(work: Work, name: str, ends: Iterable[str]) -> Score:
    """What scores a point of the curve between two models, and keeps it when it has been scored."""
    tensors = [weights(resolve(path)) for path in ends]

    def score(
        share: float, model: SentenceTransformer, tasks: Sequence[RetrievalTask]
    ) -> Mapping[str, PerQuery]:
        made_by = scored_by(weights=tensors, tasks=[task.fingerprint for task in tasks])

        def search() -> dict[str, Any]:
            return {"scores": {task.name: stages.per_query(model, task) for task in tasks}}

        return kept_json(work.step(name, f"share={share:g}"), search, made_by)["scores"]

    return score


def shown(work: Work, models: Mapping[str, str], task: RetrievalTask) -> dict[str, PerQuery]:
    """nDCG@10 of each query with each model; of a large collection without the tuned one."""
    return {
        who: test_scores(work, who, encoder(path), task)
        for who, path in models.items()
        if who != "tuned" or len(task.documents) <= MANY
    }


def gain_kept(scores: Mapping[str, PerQuery]) -> tuple[float | None, tuple[float, float] | None]:
    """Which part of the tuned model's gain the merged one has, and its interval; None if none."""
    base, tuned, merged = (
        np.array([scores[who][query] for query in scores["base"]])
        for who in ("base", "tuned", "merged")
    )
    whole, part = tuned - base, merged - base
    if whole.mean() <= 0:
        return None, None
    return float(part.mean() / whole.mean()), ratio_interval(whole, part)


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
