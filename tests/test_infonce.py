"""The loss against a reference that a reader can check line by line: value and gradient."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tercet.losses import Guide, Relations, info_nce, matryoshka
from tercet.losses.tiled import masked_logsumexp

ALL = ("query_to_document", "document_to_query", "query_to_query", "document_to_document")


def batch(
    queries: int, documents: int, width: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor, Relations]:
    """Random unit vectors and relations with several positives, negatives and ignored pairs."""
    g = torch.Generator().manual_seed(seed)
    q = F.normalize(torch.randn(queries, width, generator=g, dtype=torch.float64), dim=1)
    d = F.normalize(torch.randn(documents, width, generator=g, dtype=torch.float64), dim=1)
    kind = torch.rand(queries, documents, generator=g)
    kind[:, 0] = 0.0  # every query has a positive; document 0 answers all of them
    if queries > 1:
        kind[:, 0] = 1.0
        kind[torch.arange(queries), torch.arange(queries) % documents] = 0.0
    positives, ignored = (kind < 0.03).nonzero(), ((kind > 0.9) & (kind < 1)).nonzero()
    negatives = ((kind > 0.4) & (kind < 0.5)).nonzero()
    return q.requires_grad_(), d.requires_grad_(), Relations(positives, negatives, ignored)


def plain(
    q: Tensor,
    d: Tensor,
    relations: Relations,
    temperature: float,
    directions: tuple[str, ...] = ALL[:1],
    joint: bool = False,
    own_only: bool = False,
    hardness: float = 0.0,
    margin: float | None = None,
    guide: Guide | None = None,
) -> Tensor:
    """InfoNCE by its definition, one positive pair at a time, every score matrix in full."""
    texts = {"query": q, "document": d}
    positive = {tuple(p) for p in relations.positives.tolist()}
    known = positive | {tuple(p) for p in relations.ignored.tolist()}
    own = {tuple(p) for p in relations.negatives.tolist()}
    losses = []
    for i, j in relations.positives.tolist():
        x = q[i] @ d[j] / temperature
        log_z = []
        for name in directions:
            row_side, column_side = name.split("_to_")
            row = texts[row_side][i if row_side == "query" else j]
            logits = [x] if row_side != column_side else []
            for c in range(len(texts[column_side])):
                pair = (i, c) if column_side == "document" else (c, j)
                if pair in known or (own_only and pair not in own):
                    continue
                if row_side == column_side == "document" and pair in own:
                    continue
                score = row @ texts[column_side][c]
                if margin is not None and score > q[i] @ d[j] + margin:
                    continue
                if guide is not None:
                    sides = {"query": guide.queries, "document": guide.documents}
                    opinion = sides[row_side][i if row_side == "query" else j]
                    limit = guide.queries[i] @ guide.documents[j]
                    limit = limit - guide.margin * (limit.abs() if guide.relative else 1)
                    if opinion @ sides[column_side][c] > limit:
                        continue
                bonus = hardness * score.detach() if name == "query_to_document" else 0.0
                logits.append(score / temperature + bonus)
            if logits:
                log_z.append(torch.stack(logits).logsumexp(0))
        whole = torch.stack(log_z)
        losses.append((whole.logsumexp(0) if joint else whole.mean()) - x)
    return torch.stack(losses).mean()


def same_value_and_gradient(got: Tensor, want: Tensor, inputs: list[Tensor], tight: float) -> None:
    torch.testing.assert_close(got, want, rtol=tight, atol=tight)
    for a, b in zip(
        torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=tight, atol=tight)


OPTIONS = [
    {},
    {"directions": ALL[:2]},
    {"directions": ALL, "joint": True},
    {"hardness": 5.0},
    {"margin": 0.1},
    {"margin": -0.2, "directions": ALL, "joint": True, "hardness": 2.0},
    {"own_only": True},
    {"own_only": True, "hardness": 3.0, "margin": 0.05},
    {"guide": 0.0},
    {"guide": 0.1, "relative": True, "directions": ALL, "joint": True},
]


@pytest.mark.parametrize(("options", "tile"), list(product(OPTIONS, [2, 5, 1024])))
def test_the_loss_is_its_definition(options: dict, tile: int) -> None:
    options = dict(options)
    q, d, relations = batch(9, 13)
    if "guide" in options:
        gq, gd, _ = batch(9, 13, width=4, seed=5)
        relative = options.pop("relative", False)
        options["guide"] = Guide(gq.detach(), gd.detach(), options["guide"], relative)
    want = plain(q, d, relations, 0.1, **options)
    in_batch = not options.pop("own_only", False)
    got = info_nce(q, d, relations, 0.1, in_batch_negatives=in_batch, tile=tile, **options).loss
    same_value_and_gradient(got, want, [q, d], 1e-10)


def dense(q: Tensor, d: Tensor, relations: Relations, temperature: float) -> Tensor:
    """The loss of one direction from the whole score matrix."""
    x = q @ d.T / temperature
    known = torch.cat([relations.positives, relations.ignored])
    blocked = torch.zeros_like(x, dtype=torch.bool)
    blocked[known[:, 0], known[:, 1]] = True
    others = x.masked_fill(blocked, -torch.inf).logsumexp(dim=1)
    i, j = relations.positives.T
    return (torch.logaddexp(x[i, j], others[i]) - x[i, j]).mean()


@pytest.mark.parametrize("width", [1, 7, 48, 384])
@pytest.mark.parametrize("size", [1, 3, 63, 64, 65, 1000])
def test_tiles_change_memory_not_the_loss(size: int, width: int) -> None:
    q, d, relations = batch(size, size + 1, width)
    tiled = info_nce(q, d, relations, 0.05, tile=64 if size > 3 else 2).loss
    same_value_and_gradient(tiled, dense(q, d, relations, 0.05), [q, d], 1e-10)


def test_a_thousand_rows_against_cross_entropy() -> None:
    g = torch.Generator().manual_seed(1)
    q = F.normalize(torch.randn(1000, 48, generator=g), dim=1).requires_grad_()
    d = F.normalize(torch.randn(1000, 48, generator=g), dim=1).requires_grad_()
    pairs = torch.arange(1000).repeat(2, 1).T
    none = torch.zeros(0, 2, dtype=torch.int64)
    got = info_nce(q, d, Relations(pairs, none, none), 0.02, tile=64).loss
    want = F.cross_entropy(q @ d.T / 0.02, torch.arange(1000))
    same_value_and_gradient(got, want, [q, d], 1e-6)


@pytest.mark.parametrize("tile", [2, 5, 1024])
def test_extreme_logits_in_every_tile(tile: int) -> None:
    """Logits between -200 and 200, whose running maximum changes from tile to tile."""
    q, d, relations = batch(9, 13, width=2)
    want = dense(q, d, relations, 0.005)
    got = info_nce(q.float(), d.float(), relations, 0.005, tile=tile).loss
    assert got.dtype == torch.float32
    same_value_and_gradient(got.double(), want, [q, d], 2e-4)


def test_shares_add_up_to_the_whole() -> None:
    q, d, relations = batch(9, 13)
    whole = info_nce(q, d, relations, 0.1, directions=ALL, joint=True).loss
    cut = len(relations.positives) // 3
    parts = [
        info_nce(q, d, relations, 0.1, directions=ALL, joint=True, share=share).loss
        for share in (slice(0, cut), slice(cut, cut), slice(cut, None))
    ]
    same_value_and_gradient(sum(parts[1:], parts[0]), whole, [q, d], 1e-12)


def test_the_backward_is_the_derivative() -> None:
    q, d, relations = batch(5, 6, width=3)
    log_t = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)

    def loss(q: Tensor, d: Tensor, log_t: Tensor) -> Tensor:
        return info_nce(q, d, relations, log_t.exp(), directions=ALL, joint=True, tile=2).loss

    assert torch.autograd.gradcheck(loss, (q, d, log_t))


def test_extreme_logits_do_not_overflow() -> None:
    q = F.normalize(torch.eye(6) + 1e-3, dim=1).requires_grad_()
    relations = Relations(torch.tensor([[0, 1]]), *[torch.zeros(0, 2, dtype=torch.int64)] * 2)
    loss = info_nce(q, q.detach(), relations, 0.005).loss  # the positive is the wrong one: x = 200
    loss.backward()
    assert loss.item() == pytest.approx(200, rel=0.01)
    assert q.grad is not None and torch.isfinite(q.grad).all()


def test_a_query_whose_every_document_is_known_costs_nothing() -> None:
    q, d, _ = batch(2, 2)
    none = torch.zeros(0, 2, dtype=torch.int64)
    relations = Relations(torch.tensor([[0, 0], [0, 1]]), none, none)
    loss = info_nce(q, d, relations, 0.05).loss
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert q.grad is not None
    assert q.grad.abs().max().item() == pytest.approx(0, abs=1e-12)


def test_no_positive_is_refused() -> None:
    none = torch.zeros(0, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least one positive"):
        info_nce(torch.eye(2), torch.eye(2), Relations(none, none, none), 0.05)


def test_half_precision_is_computed_in_float32() -> None:
    q, d, relations = batch(9, 13)
    q, d = q.detach().bfloat16(), d.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = info_nce(q, d, relations, 0.05).loss
    want = info_nce(q.float(), d.float(), relations, 0.05).loss
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_the_report_counts_and_ranks() -> None:
    q, d = torch.eye(3)[:2], F.normalize(torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1.0, 0]]))
    none = torch.zeros(0, 2, dtype=torch.int64)
    relations = Relations(torch.tensor([[0, 0], [1, 2]]), none, none)
    seen = info_nce(q, d, relations, 1.0, margin=-0.5)
    assert seen.positive.tolist() == pytest.approx([1.0, 1.0])
    assert (seen.by_margin.item(), seen.by_guide.item()) == (
        1,
        0,
    )  # document 1 scores 0.99 for query 0, above 1.0 - 0.5
    assert seen.hardest.tolist() == pytest.approx([0.0, 0.11], abs=0.01)


def test_a_row_without_columns_sums_to_minus_infinity() -> None:
    everything = torch.tensor([[0, 0], [0, 1]])
    out = masked_logsumexp(torch.eye(2), torch.eye(2), everything, 0.1)
    assert out.logsumexp[0] == -torch.inf and torch.isfinite(out.logsumexp[1])


def test_matryoshka_is_the_weighted_sum_of_truncated_losses() -> None:
    q, d, relations = batch(9, 13)
    nested = matryoshka(
        lambda a, b: info_nce(a, b, relations, 0.1), dims=(8, 4), weights=(1.0, 0.5)
    )
    short_q, short_d = F.normalize(q[:, :4], dim=1), F.normalize(d[:, :4], dim=1)
    want = plain(q, d, relations, 0.1) + 0.5 * plain(short_q, short_d, relations, 0.1)
    same_value_and_gradient(nested(q, d).loss, want, [q, d], 1e-10)


def test_matryoshka_cuts_vectors_of_any_length_as_they_are() -> None:
    q, d, relations = batch(9, 13)
    nested = matryoshka(lambda a, b: info_nce(a, b, relations, 1.0), dims=(8, 4), unit=False)
    want = plain(2 * q, 3 * d, relations, 1.0)
    want = want + plain(2 * q[:, :4], 3 * d[:, :4], relations, 1.0)
    same_value_and_gradient(nested(2 * q, 3 * d).loss, want, [q, d], 1e-10)


def test_matryoshka_refuses_dims_wider_than_the_vectors() -> None:
    q, d, relations = batch(9, 13)
    with pytest.raises(ValueError, match="exceed the width 8"):
        matryoshka(lambda a, b: info_nce(a, b, relations, 0.1), dims=(16,))(q, d)
