"""Correlations of pairs of sentences, and how sure they are: pairs are resampled, not queries."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from tercet.evaluation.significance import DRAWS, SEED, Delta

CELLS = 1_000_000  # numbers ranked at once: some tens of MB
Floats = NDArray[np.float64]
Correlation = Callable[[Floats, Floats], Floats]


def spearman(a: Floats, b: Floats) -> Floats:
    """Correlation of the ranks along the last axis, equal values sharing their mean rank."""
    return pearson(rankdata(a, axis=-1), rankdata(b, axis=-1))


def pearson(a: Floats, b: Floats) -> Floats:
    """Correlation along the last axis; NaN where one side is constant."""
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))


def correlation_interval(
    measure: Correlation, gold: Floats, given: Floats, *, draws: int = DRAWS, seed: int = SEED
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the correlation of gold (N,) with given (N,)."""
    return _ends(_resampled(measure, gold, given, draws, seed))


def compare_correlations(
    gold: Floats, a: Floats, b: Floats, *, draws: int = DRAWS, seed: int = SEED
) -> Delta:
    """Spearman's correlation of gold (N,) with b (N,) less that with the baseline a (N,).

    Paired bootstrap: the same pairs are drawn for both, so that what makes a pair hard for both
    cancels. p is two-sided, by the share of draws on the other side of 0, the observed one counted
    with them (Davison and Hinkley 1997, 4.2 and 5.3); an effect size is not defined.
    """
    near, far = (_resampled(spearman, gold, side, draws, seed) for side in (a, b))
    differences = far - near
    beyond = min((differences <= 0).sum(), (differences >= 0).sum())
    p = min(1.0, 2 * (1 + int(beyond)) / (draws + 1))
    return Delta(float(spearman(gold, b) - spearman(gold, a)), *_ends(differences), p, len(gold))


def _resampled(measure: Correlation, gold: Floats, given: Floats, draws: int, seed: int) -> Floats:
    """(draws,) correlations of resampled pairs; a draw in which all are the same counts as 0."""
    drawn = _pairs(len(gold), draws, seed)
    return np.nan_to_num(np.concatenate([measure(gold[some], given[some]) for some in drawn]))


def _pairs(size: int, draws: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """(some, size) numbers of pairs, `draws` rows in all; the same for the same seed."""
    generator = np.random.default_rng(seed)
    step = max(1, CELLS // size)
    for start in range(0, draws, step):
        yield generator.integers(0, size, (min(step, draws - start), size))


def _ends(draws: Floats) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
