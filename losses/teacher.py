"""What every loss does with a teacher: the same arithmetic, and refusing what teaches nothing."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tercet.losses.tiled import at_least_float32


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1 in float32 or better; a zero vector stays zero."""
    return F.normalize(at_least_float32(vectors), dim=1)


def check_scores(scores: Tensor, lists: Tensor) -> None:
    """Raise ValueError, in one line, if teacher scores cannot teach.

    scores (n,) float; lists (n,) int64 names the candidate list each score belongs to. They must
    be as many, finite, and at least one list must hold two different scores. For the place where
    scores are read: it waits for the device, so not for every step.
    """
    if scores.shape != lists.shape or scores.ndim != 1:
        raise ValueError(
            f"teacher scores: {_count(scores)} for {_count(lists)} candidates; give one for each"
        )
    bad = ~torch.isfinite(scores)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"teacher scores: {int(bad.sum())} of {len(scores)} are not finite, the first is "
            f"number {first}; score those pairs again or leave them out"
        )
    lists = lists.unique(return_inverse=True)[1]
    low, high = (
        scores.new_zeros(int(lists.max()) + 1 if len(lists) else 0).scatter_reduce(
            0, lists, scores, how, include_self=False
        )
        for how in ("amin", "amax")
    )
    if not (high > low).any():
        raise ValueError(
            f"teacher scores: each of the {len(low)} lists holds one value only, so no candidate "
            "is better than another; is it the right column?"
        )


def check_vectors(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless there is a teacher vector for each of the student's, both (n, ·)."""
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(
            f"student vectors {tuple(student.shape)} and teacher vectors {tuple(teacher.shape)}: "
            "each text needs one of both"
        )
    if len(student) == 0:
        raise ValueError("no text to compare with the teacher")


def check_width(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless both are equally wide."""
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"the student's vectors have {student.shape[1]} dimensions and the teacher's "
            f"{teacher.shape[1]}: project the student to the teacher's width"
        )


def _count(values: Tensor) -> str:
    return str(len(values)) if values.ndim == 1 else f"an array {tuple(values.shape)}"
