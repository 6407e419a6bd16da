"""Numbers that show whether training is healthy."""

import math

import numpy as np
import torch
from torch import Tensor

from tercet.data.batch import Batch
from tercet.data.rows import Indices


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


def masked_pairs(batch: Batch, same: Indices) -> dict[str, int]:
    """Pairs that are no negatives of the batch, by reason.

    same: the document's own text under another id (`same` (N,) gives each document of the data
    the first of equal text); known: a positive of the query from a row outside the batch.
    """
    texts = same[batch.documents]

    def codes(pairs: Indices) -> Indices:
        return pairs[:, 0] * len(same) + texts[pairs[:, 1]]

    again = int(np.isin(codes(batch.ignored), codes(batch.positives)).sum())
    drawn = len(batch.positives) if len(batch.ignored) else 0  # they are among those ignored
    return {"masked_same": again - drawn, "masked_known": len(batch.ignored) - again}
