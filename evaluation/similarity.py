"""STS: do cosines order pairs of sentences as people do?"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from tercet.data.sts import SimilarityTask
from tercet.errors import UserError
from tercet.evaluation.retrieval import Mean, Result, installed_versions
from tercet.evaluation.significance import DRAWS, SEED
from tercet.files import fingerprint

SPEARMAN, PEARSON = "spearman", "pearson"
CELLS = 1_000_000  # numbers ranked at once: some tens of MB
Floats = NDArray[np.float64]


def cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> Floats:
    """(N,) cosines of row i of one (N, H) and row i of the other, in float64; 0 for a zero row."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.where(lengths == 0, 1, lengths)


def spearman(a: Floats, b: Floats) -> Floats:
    """Correlation of the ranks along the last axis, equal values sharing their mean rank."""
    return pearson(rankdata(a, axis=-1), rankdata(b, axis=-1))


def pearson(a: Floats, b: Floats) -> Floats:
    """Correlation along the last axis; NaN where one side is constant."""
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))


def score_similarity(
    task: SimilarityTask,
    similarity: Floats,
    *,
    model: str,
    fingerprints: Mapping[str, str],
    prompts: Mapping[str, str | None],
    seconds: float | None = None,
) -> Result:
    """Spearman's and Pearson's correlation with the task's scores, with 95 % bootstrap intervals.

    similarity (N,). The pairs are resampled. Raises UserError if it is constant.
    """
    if np.ptp(similarity) == 0:
        raise UserError(f"{model} gives every pair of {task.name} the same similarity")
    draws = _draws(task.scores, similarity)
    texts = [*task.first, *task.second, task.scores.tobytes()]
    result = Result(
        model=model,
        task=task.name,
        split=task.split,
        scores={},
        means={
            metric: Mean(float(measure(task.scores, similarity)), *_ends(draws[metric]))
            for metric, measure in ((SPEARMAN, spearman), (PEARSON, pearson))
        },
        counts={"pairs": len(task)},
        fingerprints={"task": fingerprint(texts), **fingerprints},
        prompts=dict(prompts),
        versions=installed_versions(),
        seconds=seconds,
    )
    return replace(result, main=SPEARMAN)


def _draws(gold: Floats, given: Floats) -> dict[str, Floats]:
    """Both correlations of resampled pairs; a draw in which all are the same counts as 0."""
    generator, size = np.random.default_rng(SEED), len(gold)
    step = max(1, CELLS // size)
    found: dict[str, list[Floats]] = {SPEARMAN: [], PEARSON: []}
    for start in range(0, DRAWS, step):
        drawn = generator.integers(0, size, (min(step, DRAWS - start), size))
        found[SPEARMAN].append(spearman(gold[drawn], given[drawn]))
        found[PEARSON].append(pearson(gold[drawn], given[drawn]))
    return {name: np.nan_to_num(np.concatenate(parts)) for name, parts in found.items()}


def _ends(draws: Floats) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
