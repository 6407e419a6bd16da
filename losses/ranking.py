"""A student whose scores are to rank and space candidates as the teacher's do."""

from typing import Literal

import torch
from torch import Tensor

from tercet.losses.tiled import PairCosine, at_least_float32

Calibration = Literal["none", "min_max", "standard"]


def listwise_kl(
    queries: Tensor,
    documents: Tensor,
    candidates: Tensor,
    scores: Tensor,
    *,
    temperature: float | Tensor,
    teacher_temperature: float = 1.0,
    calibration: Calibration = "none",
    share: slice = slice(None),
) -> Tensor:
    """Mean over queries of KL(teacher || student) between softmaxes over the query's candidates.

    Hinton et al. 2015 (arXiv:1503.02531) over candidate lists, as in RocketQAv2 (Ren et al. 2021,
    arXiv:2110.07367). queries (Q, H) and documents (D, H) are unit vectors; candidates (n, 2)
    int64 holds positions (query, document), each once and in any order, and scores (n,) the
    teacher's opinion of each. The student's logits are cosine / temperature, the teacher's
    score / teacher_temperature. A query with one candidate adds 0 to the sum and 1 to the count.

    calibration puts each list of teacher scores on a scale of its own first: `min_max` on
    [0, 1], `standard` on mean 0 and deviation 1; a list of equal scores becomes zeros. Use it
    when scores of several teachers, or of one that is not bounded, are mixed.
    share: the queries this process answers for; the losses of all shares add up to the mean.

    The value is not multiplied by temperature ** 2 (Hinton's factor, which keeps the gradient of
    a soft target comparable and makes it vanish at the temperatures of retrieval). Arithmetic is
    float32 or better. Raises ValueError if there is no candidate or not one score for each.
    """
    if len(candidates) == 0:
        raise ValueError("listwise_kl needs at least one candidate")
    if scores.shape != candidates.shape[:1]:
        raise ValueError(f"{len(candidates)} candidates have teacher scores {tuple(scores.shape)}")
    count = len(candidates[:, 0].unique())
    own = _within(share, candidates[:, 0], len(queries))
    _, lists = candidates[own, 0].unique(return_inverse=True)
    cosine = _cosines(queries, documents, candidates[own])
    target = _calibrated(at_least_float32(scores[own]).detach(), lists, calibration)
    target = _log_softmax(target / teacher_temperature, lists)
    found = _log_softmax(cosine / temperature, lists)
    probability = target.exp()
    terms = probability * (target - found)
    return terms.masked_fill(probability == 0, 0.0).sum() / count  # the limit of p log p


def margin_mse(
    queries: Tensor,
    documents: Tensor,
    triples: Tensor,
    margins: Tensor,
    *,
    temperature: float = 1.0,
    share: slice = slice(None),
) -> Tensor:
    """Mean over triples of (student margin - teacher margin)^2.

    Hofstaetter et al. 2020 (arXiv:2010.02666). queries (Q, H) and documents (D, H) are unit
    vectors; triples (m, 3) int64 holds positions (query, better document, worse document), and
    margins (m,) the teacher's score of the better less that of the worse. The student's margin is
    the difference of its cosines / temperature, so it lies in +-2 / temperature: choose one that
    lets it reach the teacher's margins.

    share: the triples this process answers for; the losses of all shares add up to the mean.

    Arithmetic is float32 or better. Raises ValueError if there is no triple or not one margin
    for each.
    """
    if len(triples) == 0:
        raise ValueError("margin_mse needs at least one triple")
    if margins.shape != triples.shape[:1]:
        raise ValueError(f"{len(triples)} triples have teacher margins {tuple(margins.shape)}")
    own = triples[share]
    better = _cosines(queries, documents, own[:, [0, 1]])
    worse = _cosines(queries, documents, own[:, [0, 2]])
    difference = (better - worse) / temperature - at_least_float32(margins[share]).detach()
    return difference.square().sum() / len(triples)


def _cosines(queries: Tensor, documents: Tensor, pairs: Tensor) -> Tensor:
    """(n,) inner products of the pairs (query, document) alone."""
    return PairCosine.apply(at_least_float32(queries), at_least_float32(documents), pairs)


def _within(share: slice, positions: Tensor, count: int) -> Tensor:
    """Whether each position is in the share of `range(count)`."""
    chosen = torch.zeros(count, dtype=torch.bool, device=positions.device)
    chosen[share] = True
    return chosen[positions]


def _log_softmax(logits: Tensor, lists: Tensor) -> Tensor:
    """(n,) log-softmax over each list; `lists` (n,) numbers them from 0 without a gap."""
    shifted = logits - _reduce(logits.detach(), lists, "amax")[lists]
    return shifted - _reduce(shifted.exp(), lists, "sum").log()[lists]


def _calibrated(scores: Tensor, lists: Tensor, how: Calibration) -> Tensor:
    if how == "none":
        return scores
    low, high = _reduce(scores, lists, "amin"), _reduce(scores, lists, "amax")
    origin, spread = low, high - low
    if how == "standard":
        size = _reduce(torch.ones_like(scores), lists, "sum")
        origin = _reduce(scores, lists, "sum") / size
        spread = (_reduce((scores - origin[lists]).square(), lists, "sum") / size).sqrt()
    # Where all are equal the deviation is rounding, and dividing by it would make up an order.
    return (scores - origin[lists]) / spread.masked_fill(low == high, 1.0)[lists]


def _reduce(values: Tensor, lists: Tensor, how: str) -> Tensor:
    """(L,) the sum, amin or amax of each list."""
    empty = values.new_zeros(int(lists.max()) + 1 if len(lists) else 0)
    return empty.scatter_reduce(0, lists, values, how, include_self=how == "sum")
