"""The loss of a batch by its definition: every score in full, one positive pair at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tercet.data.batch import Batch
from tercet.data.rows import Indices
from tercet.losses import Guide

ALL = ("query_to_document", "document_to_query", "query_to_query", "document_to_document")


def reference(
    q: Tensor,
    d: Tensor,
    batch: Batch,
    t: Tensor,
    *,
    directions: Sequence[str] = ALL[:1],
    joint: bool = False,
    in_batch_negatives: bool = True,
    hardness: float = 0.0,
    margin: float | None = None,
    guide: Guide | None = None,
) -> Tensor:
    """InfoNCE of unit vectors q (Q, H) and d (D, H); the keywords are those of `info_nce`."""
    known, own = (marked(pairs, q, d) for pairs in (batch.positives, batch.negatives))
    known |= marked(batch.ignored, q, d)
    losses = []
    for i, j in batch.positives:
        negatives = {
            "query_to_document": ~known[i] if in_batch_negatives else ~known[i] & own[i],
            "document_to_query": ~known[:, j],
            "query_to_query": ~known[:, j],  # a query that j answers too stands for the same row
            "document_to_document": ~known[i] & ~own[i],
        }
        positive = q[i] @ d[j]
        x = positive / t
        logits = []
        for name in directions:
            cosine = cosines(name, q, d, i, j)
            left = negatives[name]
            if margin is not None:
                left = left & (cosine <= positive + margin)
            if guide is not None:
                limit = guide.queries[i] @ guide.documents[j] - guide.margin
                left = left & (cosines(name, guide.queries, guide.documents, i, j) <= limit)
            bonus = hardness * cosine.detach() if name == "query_to_document" else 0.0
            others = (cosine / t + bonus)[left]
            across = name in ("query_to_document", "document_to_query")
            logits.append(torch.cat([x[None], others]) if across else others)
        one = torch.cat(logits).logsumexp(0)
        each = torch.stack([part.logsumexp(0) for part in logits])
        losses.append((one if joint else each.mean()) - x)
    return torch.stack(losses).mean()


def nested_reference(
    q: Tensor, d: Tensor, batch: Batch, t: Tensor, widths: Mapping[int, float], **settings: Any
) -> Tensor:
    """The same at several widths, each with its weight (Matryoshka)."""
    losses = [
        weight * reference(F.normalize(q[:, :w]), F.normalize(d[:, :w]), batch, t, **settings)
        for w, weight in widths.items()
    ]
    return torch.stack(losses).sum()


def marked(pairs: Indices, q: Tensor, d: Tensor) -> Tensor:
    """(Q, D) bool."""
    found = torch.zeros(len(q), len(d), dtype=torch.bool)
    for i, j in pairs:
        found[i, j] = True
    return found


def cosines(name: str, q: Tensor, d: Tensor, i: int, j: int) -> Tensor:
    """What a direction compares query i or document j with: all texts of one side."""
    return {
        "query_to_document": lambda: d @ q[i],
        "document_to_query": lambda: q @ d[j],
        "query_to_query": lambda: q @ q[i],
        "document_to_document": lambda: d @ d[j],
    }[name]()
