"""Numbers that show whether training is healthy."""

import math

import torch
from torch import Tensor


def effective_rank(vectors: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007).

    vectors (N, H). Between 1 (all collapsed onto one direction) and min(N, H); NaN if one of
    them is not finite.

    >>> round(effective_rank(torch.eye(5)), 3)
    5.0
    """
    if not torch.isfinite(vectors).all():
        return math.nan
    gram = vectors.T @ vectors if vectors.shape[1] <= len(vectors) else vectors @ vectors.T
    singular = torch.linalg.eigvalsh(gram.cpu().double()).clamp_min(0).sqrt()
    share = singular / singular.sum()
    return float(torch.special.entr(share).sum().exp())
