"""A student whose texts are to be as similar to one another as the teacher's are."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tercet.losses.alignment import align
from tercet.losses.teacher import check_vectors, unit
from tercet.losses.tiled import TILE

GROUP = 1024  # texts whose similarities are compared with one another: half a million pairs


def relational(
    student: Tensor,
    teacher: Tensor,
    *,
    cosine: float = 10.0,
    gram: float = 200.0,
    relative: float = 20.0,
    margin: float = 0.015,
    share: slice = slice(None),
    tile: int = TILE,
    group: int = GROUP,
) -> Tensor:
    """The weighted sum of three distances between a student's and a teacher's view of N texts.

    Jasper and Stella (Zhang et al. 2024, arXiv:2412.19048), with their weights. student (N, H)
    and teacher (N, T) are made unit vectors S and T here; no gradient reaches the teacher.

    cosine: mean of 1 - s.t; needs H = T, so set it to 0 for a width without a projection.
    gram: mean over all N x N pairs of texts of the squared difference of S S^T and T T^T.
    relative: mean of max(0, s_b - s_a + margin) over all a, b, similarities of two texts i < j
    each, of which the teacher calls a greater than b. With more than `group` texts only
    similarities among neighbours in the batch are compared, in groups of at most that many.

    Memory is O(N (H + T) + tile N + group^2); the Gram matrices are recomputed in the backward
    pass, and the relative term counts its O(N^4) comparisons by sorting. Arithmetic is float32
    or better.
    share: the texts this process answers for; the losses of all shares add up to the whole.

    Raises ValueError if there is no text, a vector is missing, or H and T differ with cosine > 0.
    """
    check_vectors(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        s, t = unit(student), unit(teacher).detach()
        total = s[:0].sum()
        if cosine:
            total = total + cosine / 2 * align(student, teacher, share=share)
        if gram:
            total = total + gram * _gram_distance(s, t, share, tile)
        if relative:
            total = total + relative * _relative_hinge(s, t, margin, share, group)
    return total


def _gram_distance(s: Tensor, t: Tensor, share: slice, tile: int) -> Tensor:
    """Mean squared difference of the two similarity matrices, `tile` rows at a time.

    The identity with H x H products would need no N x N, but it subtracts sums that are nearly
    equal once the student has learnt: tiles keep every digit.
    """
    rows = range(len(s))[share]
    total = s[:0].sum()
    for start in range(rows.start, rows.stop, tile):
        r = slice(start, min(start + tile, rows.stop))
        total = total + checkpoint(
            _squared_difference, s[r], s, t[r], t, use_reentrant=False, preserve_rng_state=False
        )
    return total / len(s) ** 2


def _squared_difference(s_rows: Tensor, s: Tensor, t_rows: Tensor, t: Tensor) -> Tensor:
    return (s_rows @ s.T - t_rows @ t.T).square().sum()


def _relative_hinge(s: Tensor, t: Tensor, margin: float, share: slice, group: int) -> Tensor:
    """Mean hinge over comparable pairs of similarities.

    Each violated comparison adds s_b - s_a + margin, so the sum is linear in the similarities
    once it is known how often each is a and how often b: value and gradient follow from counts.
    """
    groups = -(-len(s) // group)
    cuts = [len(s) * g // groups for g in range(groups + 1)]
    own = torch.zeros(len(s), dtype=torch.bool, device=s.device)
    own[share] = True
    total, compared = s[:0].sum(), 0
    for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
        x = s[start:stop]
        i, j = torch.triu_indices(len(x), len(x), 1, device=s.device)
        with torch.no_grad():
            y = t[start:stop]
            seen = _count_violations((y @ y.T)[i, j], (x @ x.T)[i, j], margin, own[start:stop][i])
        times = x.new_zeros(len(x), len(x))
        times[i, j] = (seen.below - seen.above).to(x.dtype)
        total = total + ((times @ x) * x).sum() + margin * seen.below.sum().to(x.dtype)
        compared += seen.compared
    return total / max(compared, 1)


class _Violations(NamedTuple):
    below: Tensor  # (P,) int64, comparisons lost by x as the one that should be smaller
    above: Tensor  # (P,) int64, comparisons lost by x as the one that should be greater
    compared: int  # comparisons there are, lost or not, owned or not


def _count_violations(teacher: Tensor, student: Tensor, margin: float, own: Tensor) -> _Violations:
    """Count the pairs a, b with teacher_a > teacher_b and student_a < student_b + margin.

    All are (P,); only pairs whose b is `own` (bool) are counted. Exact, also for equal values.
    Two ranks differ first at one bit, where the greater has 1: for each bit, those with 1 are
    counted against those with 0 that agree in all higher bits, by one sort and search of both.
    O(P log^2 P) time, O(P) memory.
    """
    values, rank, sizes = teacher.unique(return_inverse=True, return_counts=True)
    places = torch.cat([student, student + margin]).unique(return_inverse=True)[1]
    place, shifted = places[: len(student)], places[len(student) :]
    width = 2 * len(student)  # above every place
    below, above = torch.zeros_like(rank), torch.zeros_like(rank)
    for bit in range(max(len(values) - 1, 0).bit_length()):
        block, high = (rank >> (bit + 1)) * width, ((rank >> bit) & 1).bool()
        a, b = high.nonzero()[:, 0], (~high & own).nonzero()[:, 0]
        a_keys, b_keys = block[a] + place[a], block[b] + shifted[b]
        a_sorted, b_sorted = a_keys.sort().values, b_keys.sort().values
        first = torch.searchsorted(a_sorted, block[b])
        below[b] += torch.searchsorted(a_sorted, b_keys) - first
        last = torch.searchsorted(b_sorted, block[a] + width)
        above[a] += last - torch.searchsorted(b_sorted, a_keys, right=True)
    compared = (len(teacher) ** 2 - int(sizes.square().sum())) // 2
    return _Violations(below, above, compared)
