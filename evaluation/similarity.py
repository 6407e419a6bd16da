"""STS: do cosines order pairs of sentences as people do?"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tercet.data.sts import SimilarityTask
from tercet.errors import UserError
from tercet.evaluation.correlation import Floats, correlation_interval, pearson, spearman
from tercet.evaluation.retrieval import SPEARMAN, Mean, Result, Similarities
from tercet.files import fingerprint
from tercet.versions import installed_versions

PEARSON = "pearson"


def cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> Floats:
    """(N,) cosines of row i of one (N, H) and row i of the other, in float64; 0 for a zero row."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.where(lengths == 0, 1, lengths)


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
    texts = [*task.first, *task.second, task.scores.tobytes()]
    measures = {SPEARMAN: spearman, PEARSON: pearson}
    return Result(
        model=model,
        task=task.name,
        split=task.split,
        scores={},
        means={
            name: Mean(
                float(measure(task.scores, similarity)),
                *correlation_interval(measure, task.scores, similarity),
            )
            for name, measure in measures.items()
        },
        counts={"pairs": len(task)},
        fingerprints={"task": fingerprint(texts), **fingerprints},
        prompts=dict(prompts),
        versions=installed_versions(),
        seconds=seconds,
        main=SPEARMAN,
        similarities=Similarities(tuple(task.scores.tolist()), tuple(similarity.tolist())),
    )
