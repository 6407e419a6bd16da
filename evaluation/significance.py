"""Is the difference real? Bootstrap intervals and a paired randomisation test, over queries.

Both treat the queries of a task as a sample. The test is the sign-flip one (Fisher's randomisation
test; Smucker, Allan and Carterette 2007), which keeps its level without assuming a distribution.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tercet.errors import UserError

PerQuery = Mapping[str, float]  # query id -> score of one metric
Floats = NDArray[np.float64]

DRAWS = 10_000
SEED = 12
_CELLS = 4_000_000  # random numbers held at once: 32 MB


@dataclass(frozen=True)
class Delta:
    """How much better b is than a: the mean of b - a over the queries both were scored on."""

    mean: float
    low: float  # 95 % bootstrap interval
    high: float
    p: float  # two-sided paired randomisation test
    queries: int
    effect: float | None = None  # mean / standard deviation of the differences (Cohen's d_z)


def bootstrap_interval(
    differences: Floats, *, level: float = 0.95, draws: int = DRAWS, seed: int = SEED
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `differences` (Q,), or of any scores."""
    ((low, high),) = bootstrap_intervals(differences[None], level=level, draws=draws, seed=seed)
    return float(low), float(high)


def bootstrap_intervals(
    scores: Floats, *, level: float = 0.95, draws: int = DRAWS, seed: int = SEED
) -> Floats:
    """(M, 2) percentile bootstrap intervals of the means of M metrics (M, Q), from the same draws.

    Raises UserError for Q = 0.
    """
    return _interval(_resampled_means(scores, draws, seed), level)


def ratio_interval(
    a: Floats, b: Floats, *, level: float = 0.95, draws: int = DRAWS, seed: int = SEED
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(b) / mean(a), both (Q,) scores of the same queries.

    Each draw takes the same queries of both: what makes a query easy for either falls out. Draws
    in which a's mean is 0 are left out; over all queries it must not be 0.

    >>> ratio_interval(np.array([0.2, 0.8]), np.array([0.1, 0.4]))
    (0.5, 0.5)
    """
    below, above = _resampled_means(np.stack([a, b]), draws, seed).T
    ratios = above[below != 0] / below[below != 0]
    low, high = _interval(ratios[:, None], level)[0].tolist()
    return low, high


def mean_over_tasks(
    tasks: Sequence[Floats], *, level: float = 0.95, draws: int = DRAWS, seed: int = SEED
) -> tuple[float, float, float]:
    """Mean of the means of several tasks' scores (Q,), each weighing the same, and its interval.

    The tasks are taken as they are, their queries as samples: a draw resamples the queries of each
    task (the stratified bootstrap of Davison and Hinkley 1997, section 3.2).

    >>> mean_over_tasks([np.array([0.0, 0.0]), np.array([1.0])])
    (0.5, 0.5, 0.5)
    """
    parts = enumerate(tasks, start=seed)  # a seed of its own: the draws of tasks are independent
    means = [_resampled_means(scores[None], draws, own) for own, scores in parts]
    low, high = _interval(np.mean(means, axis=0), level)[0].tolist()
    return float(np.mean([scores.mean() for scores in tasks])), low, high


def compare_over_tasks(
    differences: Sequence[Floats], *, draws: int = DRAWS, seed: int = SEED
) -> Delta:
    """Mean over tasks of the paired differences b - a (Q,) of each, every task weighing the same.

    The randomisation test turns the sign of each query's difference, weighed as the mean weighs it.
    The effect is that of the weighed differences.
    """
    mean, low, high = mean_over_tasks(differences, draws=draws, seed=seed)
    count = sum(map(len, differences))
    weighed = np.concatenate([d * (count / len(d) / len(differences)) for d in differences])
    p = randomisation_test(np.zeros(count), weighed, draws=draws, seed=seed)
    return Delta(mean, low, high, p, count, effect_size(weighed))


def randomisation_test(a: Floats, b: Floats, *, draws: int = DRAWS, seed: int = SEED) -> float:
    """Two-sided p value that a and b (Q,) of the same queries differ in mean by chance.

    If the systems were alike, each query's difference could as well have the other sign. p is the
    share of random sign patterns whose mean is as far from 0 as the one observed, the observed
    pattern counted with them (add one), so p is never 0 and the level is kept exactly.
    """
    if a.shape != b.shape:
        raise ValueError(f"a {a.shape} and b {b.shape} must hold the same queries")
    differences = (b - a)[b != a]  # a query without a difference has no sign to turn
    observed = abs(differences.sum())
    generator = np.random.default_rng(seed)

    def flipped(count: int) -> Floats:
        signs = generator.integers(0, 2, (count, len(differences)), dtype=np.int8)
        return (2.0 * signs - 1.0) @ differences

    totals = _in_chunks(flipped, draws, max(1, len(differences)))
    rounding = 1e-12 * np.abs(differences).sum()  # an equal sum in another order is still equal
    return float((1 + np.sum(np.abs(totals) >= observed - rounding)) / (draws + 1))


def compare(a: PerQuery, b: PerQuery, *, draws: int = DRAWS, seed: int = SEED) -> Delta:
    """b against the baseline a. Raises UserError unless both scored the same queries."""
    different = sorted(a.keys() ^ b.keys())
    if different:
        raise UserError(
            f"{len(different)} queries are scored on one side only, {different[0]!r} among them; "
            "compare results of the same task and split"
        )
    left = np.array(list(a.values()), dtype=np.float64)
    right = np.array([b[query] for query in a], dtype=np.float64)
    low, high = bootstrap_interval(right - left, draws=draws, seed=seed)
    p = randomisation_test(left, right, draws=draws, seed=seed)
    return Delta(float((right - left).mean()), low, high, p, len(left), effect_size(right - left))


def effect_size(differences: Floats) -> float | None:
    """Mean of the differences (Q,) in their own standard deviations: Cohen's d_z (1988).

    p shrinks with every query added; this does not. 0.2 is called small, 0.5 medium, 0.8 large.
    None where all differences are the same, or there is one.

    >>> effect_size(np.array([1.0, 3.0, 5.0]))
    1.5
    """
    if len(differences) < 2 or np.ptp(differences) == 0:
        return None
    return float(differences.mean() / differences.std(ddof=1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number: the family-wise error rate is kept (Holm, 1979).

    Reject where the adjusted value is below the level. The smallest of n is multiplied by n, the
    next by n - 1 and so on, none falling below the one before it, none above 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


def _resampled_means(scores: Floats, draws: int, seed: int) -> Floats:
    """(draws, M) means of M metrics (M, Q) over queries drawn with replacement.

    How often each query was drawn is counted, and one product gives the means of all metrics.
    """
    size = scores.shape[1]
    if size == 0:
        raise UserError("no queries to take an interval over")
    generator = np.random.default_rng(seed)

    def resampled(count: int) -> Floats:
        drawn = generator.integers(0, size, (count, size))
        drawn += size * np.arange(count)[:, None]  # a range of numbers of its own for each draw
        times = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
        return times @ scores.T / size

    return _in_chunks(resampled, draws, size)


def _interval(means: Floats, level: float) -> Floats:
    """(M, 2) between which the middle share `level` of means (draws, M) lies."""
    tail = (1 - level) / 2
    return np.quantile(means, [tail, 1 - tail], axis=0).T


def _in_chunks(draw: Callable[[int], Floats], draws: int, width: int) -> Floats:
    """`draws` numbers, made so many at a time that count x width stays within `_CELLS`."""
    step = max(1, _CELLS // width)
    counts = [min(step, draws - start) for start in range(0, draws, step)]
    return np.concatenate([draw(count) for count in counts])
