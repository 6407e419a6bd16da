"""Distillation losses against references that can be checked line by line: value and gradient."""

from collections.abc import Callable
from itertools import combinations, product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tercet.losses import align, check_scores, listwise_kl, margin_mse, relational
from tercet.losses.ranking import Calibration

pytestmark = pytest.mark.usefixtures("one_thread")
QUERIES, DOCUMENTS, WIDTH = 5, 9, 6


def vectors(count: int, width: int = WIDTH, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=g, dtype=torch.float64).requires_grad_()


def units(count: int, seed: int) -> Tensor:
    return F.normalize(vectors(count, seed=seed), dim=1).detach().requires_grad_()


def candidates(seed: int = 3) -> tuple[Tensor, Tensor]:
    """Lists of one to four documents for all queries but one, in no order, with scores."""
    g = torch.Generator().manual_seed(seed)
    lists = [(q, d) for q in (4, 0, 2, 1) for d in torch.randperm(9, generator=g)[: q % 4 + 1]]
    pairs = torch.tensor([(q, int(d)) for q, d in lists])
    pairs = pairs[torch.randperm(len(pairs), generator=g)]
    return pairs, torch.randn(len(pairs), generator=g, dtype=torch.float64) * 3


def triples() -> tuple[Tensor, Tensor]:
    chosen = torch.tensor([[0, 1, 2], [0, 1, 3], [3, 8, 0], [4, 2, 2], [1, 1, 5]])
    return chosen, torch.tensor([0.3, -0.2, 5.0, 0.0, 1.0], dtype=torch.float64)


def same(got: Tensor, want: Tensor, inputs: list[Tensor], tight: float = 1e-10) -> None:
    torch.testing.assert_close(got, want, rtol=tight, atol=tight)
    for a, b in zip(
        torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=tight, atol=tight)


# The definitions, one text, candidate or comparison at a time.


def plain_align(student: Tensor, teacher: Tensor) -> Tensor:
    distances = []
    for y, t in zip(student, teacher.detach(), strict=True):
        distances.append((y / y.norm() - t / t.norm()).square().sum())
    return torch.stack(distances).mean()


def plain_kl(
    q: Tensor,
    d: Tensor,
    pairs: Tensor,
    scores: Tensor,
    t: float,
    tt: float,
    how: Calibration = "none",
) -> Tensor:
    losses = []
    for query in pairs[:, 0].unique():
        mine = pairs[:, 0] == query
        teacher = scores[mine]
        if how == "min_max":
            teacher = (teacher - teacher.min()) / max(float(teacher.max() - teacher.min()), 1e-30)
        if how == "standard":
            teacher = teacher - teacher.mean()
            teacher = teacher / max(float(teacher.std(correction=0)), 1e-30)
        student = torch.stack([q[query] @ d[j] for j in pairs[mine, 1]]) / t
        p, log_s = (teacher / tt).softmax(0), student.log_softmax(0)
        losses.append(sum(p[c] * (p[c].log() - log_s[c]) for c in range(len(p))))
    return torch.stack(losses).mean()


def plain_margin(q: Tensor, d: Tensor, chosen: Tensor, margins: Tensor, t: float) -> Tensor:
    errors = [
        ((q[i] @ d[b] - q[i] @ d[w]) / t - m) ** 2
        for (i, b, w), m in zip(chosen, margins, strict=True)
    ]
    return torch.stack(errors).mean()


def plain_relational(
    student: Tensor, teacher: Tensor, weights: tuple[float, float, float], margin: float
) -> Tensor:
    s, t = F.normalize(student, dim=1), F.normalize(teacher, dim=1).detach()
    total = weights[0] * (1 - (s * t).sum(1)).mean() if weights[0] else s.new_zeros(())
    total = total + weights[1] * F.mse_loss(s @ s.T, t @ t.T)
    pairs = list(combinations(range(len(s)), 2))
    hinges = [
        (s[m] @ s[n] - s[i] @ s[j] + margin).clamp(min=0)
        for (i, j), (m, n) in product(pairs, pairs)
        if t[i] @ t[j] > t[m] @ t[n]
    ]
    return total + weights[2] * torch.stack(hinges).mean() if hinges else total


@pytest.mark.parametrize("count", [1, 7])
def test_align_is_its_definition(count: int) -> None:
    student, teacher = vectors(count), vectors(count, seed=1)
    same(align(student, teacher), plain_align(student, teacher), [student])
    assert torch.autograd.grad(align(student, teacher), [teacher], allow_unused=True) == (None,)


@pytest.mark.parametrize("how", ["none", "min_max", "standard"])
def test_listwise_kl_is_its_definition(how: Calibration) -> None:
    q, d = units(QUERIES, 1), units(DOCUMENTS, 2)
    pairs, scores = candidates()
    got = listwise_kl(
        q, d, pairs, scores, temperature=0.1, teacher_temperature=0.7, calibration=how
    )
    same(got, plain_kl(q, d, pairs, scores, 0.1, 0.7, how), [q, d])


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_margin_mse_is_its_definition(temperature: float) -> None:
    q, d = units(QUERIES, 1), units(DOCUMENTS, 2)
    got = margin_mse(q, d, *triples(), temperature=temperature)
    same(got, plain_margin(q, d, *triples(), temperature), [q, d])


@pytest.mark.parametrize("count", [1, 2, 3, 9])
@pytest.mark.parametrize(
    "weights", [(10.0, 200.0, 20.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)]
)
@pytest.mark.parametrize("tile", [2, 1024])
def test_relational_is_its_definition(
    count: int, weights: tuple[float, float, float], tile: int
) -> None:
    student, teacher = vectors(count), vectors(count, seed=1)
    cosine, gram, relative = weights
    got = relational(
        student, teacher, cosine=cosine, gram=gram, relative=relative, margin=0.05, tile=tile
    )
    same(got, plain_relational(student, teacher, weights, 0.05), [student])


def test_relational_takes_a_teacher_of_another_width_without_the_cosine() -> None:
    student, teacher = vectors(8), vectors(8, width=11, seed=1)
    got = relational(student, teacher, cosine=0)
    same(got, plain_relational(student, teacher, (0, 200.0, 20.0), 0.015), [student])
    with pytest.raises(ValueError, match="have 6 dimensions and the teacher's 11"):
        relational(student, teacher)


def test_equal_similarities_are_not_compared() -> None:
    """The teacher sees two kinds of text, so its similarities take three values."""
    student = vectors(9)
    teacher = F.one_hot(torch.arange(9) % 2, 2).double()
    teacher[8] = 1.0
    got = relational(student, teacher, cosine=0, gram=0, relative=1, margin=0.3)
    same(got, plain_relational(student, teacher, (0, 0, 1), 0.3), [student])


def test_groups_compare_neighbours_only() -> None:
    student, teacher = vectors(11), vectors(11, seed=1)
    got = relational(student, teacher, cosine=0, gram=0, relative=1, group=4)
    parts = [slice(0, 3), slice(3, 7), slice(7, 11)]
    counts = [n * (n - 1) // 2 for n in (3, 4, 4)]
    counts = [p * (p - 1) // 2 for p in counts]
    each = [plain_relational(student[p], teacher[p], (0, 0, 1), 0.015) for p in parts]
    want = sum(n * loss for n, loss in zip(counts, each, strict=True)) / sum(counts)
    same(got, torch.as_tensor(want), [student])


Loss = Callable[[Tensor, Tensor, slice], Tensor]
LOSSES: dict[str, tuple[int, Loss]] = {  # what a share counts, and the loss
    "align": (QUERIES, lambda q, d, share: align(q, units(QUERIES, 4), share=share) + d.sum() * 0),
    "kl": (
        QUERIES,
        lambda q, d, share: listwise_kl(q, d, *candidates(), temperature=0.1, share=share),
    ),
    "margin": (5, lambda q, d, share: margin_mse(q, d, *triples(), share=share)),
    "relational": (
        DOCUMENTS,
        lambda q, d, share: (
            relational(d, vectors(DOCUMENTS, 4, seed=9), cosine=0, share=share) + q.sum() * 0
        ),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_shares_add_up_to_the_whole(name: str) -> None:
    count, loss = LOSSES[name]
    q, d = units(QUERIES, 1), units(DOCUMENTS, 2)
    cuts = [slice(0, count // 3), slice(count // 3, count // 3), slice(count // 3, None)]
    whole = loss(q, d, slice(None))
    parts = sum((loss(q, d, cut) for cut in cuts), start=q.sum() * 0 + d.sum() * 0)
    same(parts, whole + d.sum() * 0, [q, d], 1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_the_derivative(name: str) -> None:
    _, loss = LOSSES[name]
    q, d = units(QUERIES, 1), units(DOCUMENTS, 2)
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, slice(None)), (q, d))


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    _, loss = LOSSES[name]
    q, d = units(QUERIES, 1).bfloat16(), units(DOCUMENTS, 2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(q, d, slice(None)).float()
    want = loss(q.float(), d.float(), slice(None))
    torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-6)


def test_extreme_scores_do_not_overflow() -> None:
    q, d = units(1, 1), units(3, 2)
    pairs = torch.tensor([[0, 0], [0, 1], [0, 2]])
    scores = torch.tensor([1e4, -1e4, 0.0], dtype=torch.float64)
    loss = listwise_kl(q, d, pairs, scores, temperature=1e-3)
    assert torch.isfinite(
        torch.stack([loss, *(g.abs().max() for g in torch.autograd.grad(loss, [q, d]))])
    ).all()
    alike = listwise_kl(q, d, pairs, (q @ d.T)[0].detach() * 1e3, temperature=1e-3)
    assert alike.item() == pytest.approx(0, abs=1e-12)


def test_equal_scores_calibrate_to_an_even_target() -> None:
    """Three times 0.1 has a deviation that is rounding alone; it must not become an order."""
    q, d = units(1, 1).float(), units(3, 2).float()
    pairs = torch.tensor([[0, 0], [0, 1], [0, 2]])
    want = listwise_kl(q, d, pairs, torch.zeros(3), temperature=0.1)
    for how in ("min_max", "standard"):
        got = listwise_kl(q, d, pairs, torch.full((3,), 0.1), temperature=0.1, calibration=how)  # type: ignore[arg-type]
        assert got.item() == pytest.approx(want.item(), rel=1e-5)


def test_a_student_that_is_the_teacher_loses_nothing() -> None:
    student = units(6, 1)
    assert align(student, student).item() == 0
    assert relational(student, student, relative=0).item() == 0
    scaled = student.detach() * 7
    assert align(student, scaled).item() == pytest.approx(0, abs=1e-30)


def test_a_zero_vector_has_a_finite_gradient() -> None:
    student = torch.zeros(2, 3, requires_grad=True)
    loss = align(student, torch.eye(3)[:2])
    assert loss.item() == 1
    assert torch.isfinite(torch.autograd.grad(loss, [student])[0]).all()


def test_a_large_batch_holds_no_matrix_of_all_texts() -> None:
    """The saved tensors of the backward pass are a few copies of the vectors."""
    student, teacher = torch.randn(3000, 8, requires_grad=True), torch.randn(3000, 8)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: (kept.append(x.numel()), x)[1], lambda x: x
    ):
        loss = relational(student, teacher, relative=0, tile=128)
    loss.backward()
    assert max(kept) < 3000 * 128 / 4
    assert torch.isfinite(student.grad).all()  # type: ignore[arg-type]


def test_many_candidates_hold_no_vector_each() -> None:
    """The saved tensors of the backward pass are the vectors once, and numbers per candidate."""
    q, d = units(4, 1), units(DOCUMENTS, 2)
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(DOCUMENTS)).repeat(99, 1)
    worse = (pairs[:, 1:] + 1) % DOCUMENTS
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: (kept.append(x.numel()), x)[1], lambda x: x
    ):
        listwise_kl(q, d, pairs, torch.zeros(len(pairs)), temperature=1.0)
        margin_mse(q, d, torch.cat([pairs, worse], dim=1), torch.zeros(len(pairs)))
    assert 0 < max(kept) < len(pairs) * WIDTH


@pytest.mark.parametrize(
    ("scores", "lists", "complaint"),
    [
        ([1.0, 2.0], [0, 0, 1], "2 for 3 candidates"),
        ([1.0, float("nan"), float("inf")], [0, 0, 1], "2 of 3 are not finite, .* number 1"),
        ([2.0, 2.0, 3.0], [0, 0, 1], "each of the 2 lists holds one value only"),
        ([], [], "each of the 0 lists"),
    ],
)
def test_scores_that_teach_nothing_are_refused(
    scores: list[float], lists: list[int], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_scores(torch.tensor(scores), torch.tensor(lists, dtype=torch.int64))


def test_scores_that_teach_are_accepted() -> None:
    check_scores(torch.tensor([1.0, 1.0, 2.0, 3.0]), torch.tensor([7, 7, 2, 2]))


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: align(torch.eye(3), torch.eye(4)), "each text needs one of both"),
        (lambda: align(torch.eye(3), torch.ones(3, 5)), "3 dimensions and the teacher's 5"),
        (lambda: align(torch.eye(3)[:0], torch.eye(3)[:0]), "no text"),
        (lambda: relational(torch.eye(3), torch.ones(2, 3)), "each text needs one of both"),
        (
            lambda: listwise_kl(
                torch.eye(2), torch.eye(2), torch.tensor([[0, 0]]), torch.ones(2), temperature=1.0
            ),
            "1 candidates have teacher scores",
        ),
        (
            lambda: listwise_kl(
                torch.eye(2),
                torch.eye(2),
                torch.zeros(0, 2, dtype=torch.int64),
                torch.ones(0),
                temperature=1.0,
            ),
            "at least one candidate",
        ),
        (
            lambda: margin_mse(
                torch.eye(2), torch.eye(2), torch.tensor([[0, 0, 1]]), torch.ones(3)
            ),
            "1 triples have teacher margins",
        ),
        (
            lambda: margin_mse(
                torch.eye(2), torch.eye(2), torch.zeros(0, 3, dtype=torch.int64), torch.ones(0)
            ),
            "at least one triple",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], Tensor], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        call()
