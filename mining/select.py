"""Which candidates of one query become its negatives. Pure: arrays in, a decision out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tercet.configs.schema import MiningConfig
from tercet.files import fingerprint

RULES: tuple[str, ...] = (
    "known",
    "repeat",
    "window",
    "margin",
    "surplus",
)  # in the order they are applied


@dataclass(frozen=True)
class Selection:
    """The negatives of one query, best rank first, and how many candidates each rule dropped."""

    positions: NDArray[np.int64]  # (n,) in the documents
    ranks: NDArray[np.int32]  # (n,) in the raw search, from 1
    scores: NDArray[np.float32]  # (n,)
    dropped: dict[str, int]  # rule -> candidates, in the order of RULES


def select(
    positions: NDArray[np.int64],
    scores: NDArray[np.float32],
    known: NDArray[np.int64],
    same: NDArray[np.int64],
    lowest_positive: float,
    config: MiningConfig,
    query_id: str,
) -> Selection:
    """Apply the rules to the candidates of one query.

    positions, scores (C,): the search's answer, best first; known: positions of all documents
    known to answer the query; same (D,): the first document with an equal text, of each document;
    lowest_positive: score of the positive least like the query. In order, a candidate is dropped if

    - known: it answers the query, under whichever id its normalised text stands;
    - repeat: its normalised text stood at a better rank already;
    - window: its rank is beyond `depth`, or it is among the first `skip` that the rules above left;
    - margin: it scores above `ceiling(lowest_positive, relative_margin)`;
    - surplus: it was fit, but `negatives` others were taken: the first ones (sampling: top) or
      any (random, drawn by seed and query id, so that no order of work changes the draw).

    May keep fewer than `negatives`, or none; the caller decides what that means.
    """
    texts = same[positions]
    alive = np.ones(len(positions), dtype=bool)
    left: list[int] = [len(positions)]

    def rule(keep: NDArray[np.bool_]) -> None:
        alive[:] &= keep
        left.append(int(alive.sum()))

    rule(~np.isin(texts, same[known]))
    rule(_first_seen(texts))
    rule(_in_window(alive, config.skip, config.depth))
    margin = config.relative_margin
    rule(scores <= (np.inf if margin is None else ceiling(lowest_positive, margin)))
    rule(_sampled(alive, config, query_id))

    kept = np.flatnonzero(alive)
    dropped = dict(zip(RULES, (-np.diff(left)).tolist(), strict=True))
    return Selection(positions[kept], (kept + 1).astype(np.int32), scores[kept], dropped)


def ceiling(lowest_positive: float, margin: float) -> float:
    """Highest score a negative may have: s - (1 - margin) |s| for a lowest positive score s.

    For s > 0 this is margin * s, TopK-PercPos of NV-Retriever (arXiv:2407.15831, section 3.2).
    For s < 0, margin * s would lie above s and let false negatives through; this stays below.

    >>> round(ceiling(0.8, 0.95), 6), round(ceiling(-0.8, 0.95), 6)
    (0.76, -0.84)
    """
    return lowest_positive - (1.0 - margin) * abs(lowest_positive)


def rule_text(config: MiningConfig) -> str:
    """What a kept negative went through, in a few words, for the record.

    >>> rule_text(MiningConfig(sampling="random"))
    'random of ranks 1-100, score <= 0.95 of lowest positive'
    """
    text = f"{config.sampling} of ranks {config.skip + 1}-{config.depth}"
    if config.relative_margin is None:
        return text
    return f"{text}, score <= {config.relative_margin:g} of lowest positive"


def _first_seen(texts: NDArray[np.int64]) -> NDArray[np.bool_]:
    first = np.zeros(len(texts), dtype=bool)
    first[np.unique(texts, return_index=True)[1]] = True
    return first


def _in_window(alive: NDArray[np.bool_], skip: int, depth: int) -> NDArray[np.bool_]:
    return (np.cumsum(alive) > skip) & (np.arange(len(alive)) < depth)


def _sampled(alive: NDArray[np.bool_], config: MiningConfig, query_id: str) -> NDArray[np.bool_]:
    fit = np.flatnonzero(alive)
    if config.sampling == "random":
        seed = int(fingerprint([str(config.seed), query_id]), 16)
        fit = np.random.default_rng(seed).permutation(fit)
    taken = np.zeros(len(alive), dtype=bool)
    taken[fit[: config.negatives]] = True
    return taken
