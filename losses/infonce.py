"""InfoNCE for retrieval: any number of positives, masks as data, memory that never holds Q x D.

Papers: van den Oord et al. 2018 (arXiv:1807.03748) for the loss, Li et al. 2023 (GTE,
arXiv:2308.03281) for the four-term form, Lan et al. 2025 (arXiv:2503.04812) for hardness
weighting, Solatorio 2024 (GISTEmbed, arXiv:2402.16829) for guided masks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tercet.losses.tiled import (
    TILE,
    Filter,
    MaskedSum,
    PairCosine,
    at_least_float32,
    masked_logsumexp,
)

Sides = tuple[Tensor, Tensor]  # of the queries, of the documents
# Vectors of both sides and, for each positive, the score that no negative may exceed.
Limits = dict[str, tuple[Sides, Tensor]]

# A direction puts the texts of one side against all texts of a side; 0: queries, 1: documents.
DIRECTIONS = {
    "query_to_document": (0, 1),
    "document_to_query": (1, 0),
    "query_to_query": (0, 0),
    "document_to_document": (1, 1),
}


class Relations(NamedTuple):
    """What is known about pairs (query, document) of a batch: int64 positions, (n, 2) each."""

    positives: Tensor  # the pairs to learn; a query or a document may occur in several
    negatives: Tensor  # each query's own negatives (mined or curated)
    ignored: Tensor  # neither: duplicates and known positives of the query


class Guide(NamedTuple):
    """A second model's unit vectors of the same texts: its opinion masks likely positives."""

    queries: Tensor  # (Q, G)
    documents: Tensor  # (D, G)
    margin: float = 0.0
    relative: bool = False  # the margin is a share of the positive's guide score


class InfoNCE(NamedTuple):
    """The loss, and what it saw of this process's share of positives (no gradient)."""

    loss: Tensor  # (): sum over this share, divided by all positives of the batch
    positive: Tensor  # (p,) cosine of each positive pair
    hardest: Tensor  # (p,) cosine of the hardest negative document, -inf if there is none
    by_margin: Tensor  # () int64, pairs the margin left out
    by_guide: Tensor  # () int64, pairs the guide left out beside those


def info_nce(
    queries: Tensor,
    documents: Tensor,
    relations: Relations,
    temperature: float | Tensor,
    *,
    directions: Sequence[str] = ("query_to_document",),
    joint: bool = False,
    in_batch_negatives: bool = True,
    hardness: float = 0.0,
    margin: float | None = None,
    guide: Guide | None = None,
    share: slice = slice(None),
    tile: int = TILE,
) -> InfoNCE:
    """Mean over positives (i, j) of -x_ij + log(exp x_ij + sum over negatives of exp x).

    queries (Q, H) and documents (D, H) are unit vectors, x = cosine / temperature. The negatives
    of (i, j) are all documents that are neither positive nor ignored for i; with
    in_batch_negatives=False only those of relations.negatives. Arithmetic is float32 or better.

    directions: `query_to_document` as above; `document_to_query` puts the queries against
    document j; `query_to_query` and `document_to_document` add queries beside i and documents
    beside j, those of the same row left out. Each direction has its own softmax and the mean is
    taken; with `joint` one softmax holds the terms of all (GTE: all four).
    hardness: alpha; alpha * cosine (no gradient) is added to the logits of negative documents.
    margin: negatives whose cosine exceeds the positive's by more than this are left out.
    guide: negatives whose guide score exceeds the positive's less a margin are left out.
    share: the positives this process answers for; the losses of all shares add up to the mean.
    tile: rows and columns of the score matrix held at once.

    Raises ValueError if there is no positive.
    """
    if len(relations.positives) == 0:
        raise ValueError("info_nce needs at least one positive pair")
    with torch.autocast(queries.device.type, enabled=False):
        texts = (at_least_float32(queries), at_least_float32(documents))
        pairs = relations.positives[share]
        cosine = PairCosine.apply(*texts, pairs)
        x = cosine / temperature
        limits = _limits(texts, cosine.detach(), pairs, margin, guide)

        def against(name: str) -> MaskedSum:
            row, column = DIRECTIONS[name]
            return masked_logsumexp(
                texts[row].index_select(0, pairs[:, row]),
                texts[column],
                _same_row(relations, pairs, row, column),
                temperature,
                hardness=hardness if name == "query_to_document" else 0.0,
                filters=[
                    Filter(v[row][pairs[:, row]], v[column], top) for v, top in limits.values()
                ],
                tile=tile,
            )

        if in_batch_negatives:
            sums = {name: against(name) for name in directions}
        else:
            own = _own_negatives(*texts, relations, pairs, temperature, hardness, limits)
            sums = {"query_to_document": own}
        terms = [
            torch.logaddexp(x, s.logsumexp) if _holds_positive(name) else s.logsumexp
            for name, s in sums.items()
        ]
        stacked = torch.stack(terms)
        log_z = stacked.logsumexp(dim=0) if joint else stacked.mean(dim=0)
        loss = (log_z - x).sum() / len(relations.positives)
        slope = 1 / temperature + hardness  # of a negative's logit in its cosine
        hardest = (sums["query_to_document"].highest / slope).detach()
        dropped = torch.stack([s.dropped for s in sums.values()]).sum(dim=0)
    by = dict(zip(limits, dropped, strict=True))
    none = torch.zeros((), dtype=torch.int64, device=x.device)
    counts = by.get("margin", none), by.get("guide", none)
    return InfoNCE(loss, cosine.detach(), hardest, *counts)


def _holds_positive(direction: str) -> bool:
    """Between queries and documents the positive is one of the scores; within a side it is not."""
    row, column = DIRECTIONS[direction]
    return row != column


def _limits(
    texts: Sides, cosine: Tensor, pairs: Tensor, margin: float | None, guide: Guide | None
) -> Limits:
    """The filters that are on, by name."""
    limits: Limits = {}
    if margin is not None:
        limits["margin"] = (texts[0].detach(), texts[1].detach()), cosine + margin
    if guide is not None:
        score = (guide.queries[pairs[:, 0]] * guide.documents[pairs[:, 1]]).sum(dim=1)
        slack = score.abs() * guide.margin if guide.relative else guide.margin
        limits["guide"] = (guide.queries, guide.documents), score - slack
    return limits


def _same_row(relations: Relations, pairs: Tensor, row: int, column: int) -> Tensor:
    """(n, 2) pairs (position in `pairs`, text of side `column`) that are no negatives.

    Documents that answer query i, or queries that document j answers; and beside a document j of
    the same side, also the query's own negatives (they are documents of its row).
    """
    known = [relations.positives, relations.ignored]
    if row == column == 1:
        known.append(relations.negatives)
    other = 1 - column
    return _join(pairs[:, other], torch.cat(known)[:, [other, column]])


def _join(keys: Tensor, pairs: Tensor) -> Tensor:
    """(m, 2): position r and value v for every r and every pair (keys[r], v)."""
    order = pairs[:, 0].argsort()
    ordered = pairs[order, 0].contiguous()
    start = torch.searchsorted(ordered, keys.contiguous())
    count = torch.searchsorted(ordered, keys.contiguous(), right=True) - start
    row = torch.arange(len(keys), device=keys.device).repeat_interleave(count)
    within = torch.arange(len(row), device=keys.device) - (count.cumsum(0) - count)[row]
    return torch.stack([row, pairs[order[start[row] + within], 1]], dim=1)


def _own_negatives(
    queries: Tensor,
    documents: Tensor,
    relations: Relations,
    pairs: Tensor,
    temperature: float | Tensor,
    hardness: float,
    limits: Limits,
) -> MaskedSum:
    """The same sum over each row's own negatives only."""
    joined = _join(pairs[:, 0], relations.negatives)
    known = torch.cat([relations.positives, relations.ignored])
    code = pairs[joined[:, 0], 0] * len(documents) + joined[:, 1]
    joined = joined[~torch.isin(code, known[:, 0] * len(documents) + known[:, 1])]
    left = [len(joined)]
    for (q, d), ceiling in limits.values():
        score = (q[pairs[joined[:, 0], 0]] * d[joined[:, 1]]).sum(dim=1)
        joined = joined[score <= ceiling[joined[:, 0]]]
        left.append(len(joined))
    row, document = joined.unbind(dim=1)
    cosine = PairCosine.apply(queries, documents, torch.stack([pairs[row, 0], document], dim=1))
    x = cosine / temperature + hardness * cosine.detach()
    highest = x.new_full((len(pairs),), -torch.inf).scatter_reduce(0, row, x.detach(), "amax")
    shift = highest.masked_fill(highest == -torch.inf, 0.0)
    total = torch.zeros_like(shift).index_add(0, row, (x - shift[row]).exp())
    empty = total == 0
    lse = (shift + total.masked_fill(empty, 1.0).log()).masked_fill(empty, -torch.inf)
    return MaskedSum(lse, highest, -torch.tensor(left, device=x.device).diff())
