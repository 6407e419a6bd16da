"""A student whose vectors are to be the teacher's own."""

from torch import Tensor

from tercet.losses.teacher import check_vectors, check_width, unit


def align(student: Tensor, teacher: Tensor, *, share: slice = slice(None)) -> Tensor:
    """Mean over texts of ||y - t||^2, y and t the student's and the teacher's unit vectors.

    LEAF (Vujanic and Rueckstiess 2025, arXiv:2509.12539). student and teacher (N, T), the
    student's after its projection to the teacher's width; both are made unit vectors here. No
    gradient reaches the teacher. Equal to 2 - 2 cosine, but exact to the last bits when the two
    are close. In [0, 4]; arithmetic is float32 or better.

    share: the texts this process answers for; the losses of all shares add up to the mean.

    Raises ValueError if the two differ in shape or are empty.
    """
    check_vectors(student, teacher)
    check_width(student, teacher)
    difference = unit(student[share]) - unit(teacher[share]).detach()
    return difference.square().sum() / len(student)
