"""Where sentence-transformers has the same loss, value and gradient of the weights agree."""

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from torch import Tensor

from tercet.losses import Guide, Relations, align, info_nce, listwise_kl, margin_mse
from tests.conftest import NAMES, answer, question

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 12
TEMPERATURE = 0.05
BOTH = ("query_to_document", "document_to_query")
FOUR = (*BOTH, "query_to_query", "document_to_document")
GIST = ("query_to_document", "query_to_query", "document_to_document")
THEIRS = {
    "query_to_document": "query_to_doc",
    "document_to_query": "doc_to_query",
    "query_to_query": "query_to_query",
    "document_to_document": "doc_to_doc",
}


@pytest.fixture
def model(tiny_model: Path) -> SentenceTransformer:
    return SentenceTransformer(str(tiny_model), device="cpu").eval()


@pytest.fixture
def guide(tiny_model: Path) -> SentenceTransformer:
    model = SentenceTransformer(str(tiny_model), device="cpu").eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.1)
    return model


def columns(negatives: int) -> list[list[str]]:
    """Queries, their answers, and per row answers to no query of the batch."""
    others = [[answer(COUNT + k * COUNT + n) for n in range(COUNT)] for k in range(negatives)]
    assert COUNT * (1 + negatives) <= len(NAMES)
    return [[question(n) for n in range(COUNT)], [answer(n) for n in range(COUNT)], *others]


def embed(model: SentenceTransformer, texts: list[str]) -> Tensor:
    return model(model.preprocess(texts))["sentence_embedding"]


def relations(negatives: int) -> Relations:
    row = torch.arange(COUNT)
    own = [torch.stack([row, row + COUNT * (k + 1)], dim=1) for k in range(negatives)]
    none = torch.zeros(0, 2, dtype=torch.int64)
    return Relations(torch.stack([row, row], dim=1), torch.cat([none, *own]), none)


def ours(model: SentenceTransformer, negatives: int, **options: object) -> Tensor:
    queries, *documents = columns(negatives)
    d = torch.cat([embed(model, column) for column in documents])
    q = embed(model, queries)
    return info_nce(q, d, relations(negatives), TEMPERATURE, **options).loss  # type: ignore[arg-type]


def gradient(model: SentenceTransformer, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def agree(model: SentenceTransformer, mine: Tensor, theirs: Tensor) -> None:
    assert mine.item() == pytest.approx(theirs.item(), abs=1e-5)
    a, b = gradient(model, mine), gradient(model, theirs)
    assert (a - b).norm() / b.norm() < 1e-5


def features(model: SentenceTransformer, negatives: int) -> list[dict[str, Tensor]]:
    return [model.preprocess(column) for column in columns(negatives)]


@pytest.mark.parametrize("negatives", [0, 1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"directions": BOTH},
        {"directions": FOUR, "joint": True},
        {"hardness": 4.0},
    ],
    ids=["one direction", "both", "all four", "hardness"],
)
def test_multiple_negatives_ranking(
    model: SentenceTransformer, negatives: int, options: dict
) -> None:
    directions = options.get("directions", BOTH[:1])
    hardness = options.get("hardness", 0.0)
    theirs = losses.MultipleNegativesRankingLoss(
        model,
        scale=1 / TEMPERATURE,
        directions=tuple(THEIRS[name] for name in directions),  # type: ignore[arg-type]
        partition_mode="joint" if options.get("joint") else "per_direction",
        hardness_mode="all_negatives" if hardness else None,
        hardness_strength=hardness,
    )
    want = theirs(features(model, negatives), torch.empty(0))
    agree(model, ours(model, negatives, **options), want)


@pytest.mark.parametrize("negatives", [0, 1, 2])
@pytest.mark.parametrize(
    "options",
    [{}, {"directions": BOTH}, {"directions": FOUR, "joint": True}],
    ids=["one direction", "both", "all four"],
)
def test_cached_multiple_negatives_ranking(
    model: SentenceTransformer, negatives: int, options: dict
) -> None:
    theirs = losses.CachedMultipleNegativesRankingLoss(
        model,
        scale=1 / TEMPERATURE,
        mini_batch_size=5,
        directions=tuple(THEIRS[n] for n in options.get("directions", BOTH[:1])),  # type: ignore[arg-type]
        partition_mode="joint" if options.get("joint") else "per_direction",
    )
    want = theirs(features(model, negatives), torch.empty(0))
    agree(model, ours(model, negatives, **options), want)


@pytest.mark.parametrize("negatives", [0, 1])
@pytest.mark.parametrize(("margin", "relative"), [(0.0, False), (0.02, False), (0.01, True)])
def test_gist_embed(
    model: SentenceTransformer,
    guide: SentenceTransformer,
    negatives: int,
    margin: float,
    relative: bool,
) -> None:
    theirs = losses.GISTEmbedLoss(
        model,
        guide,
        temperature=TEMPERATURE,
        margin=margin,
        margin_strategy="relative" if relative else "absolute",
    )
    with torch.no_grad():
        q, *d = (embed(guide, column) for column in columns(negatives))
    opinion = Guide(q, torch.cat(d), margin, relative)
    # Their negatives stand beside queries only, never beside documents: with hard negatives the
    # document_to_document term is left to the case without.
    directions = GIST if negatives == 0 else GIST[:2]
    if negatives:
        theirs.contrast_positives = False
    want = theirs(features(model, negatives), torch.empty(0))
    mine = ours(model, negatives, directions=directions, joint=True, guide=opinion)
    agree(model, mine, want)
    plain = ours(model, negatives, directions=directions, joint=True)
    assert abs(plain.item() - mine.item()) > 1e-3  # the guide did leave something out
    assert mine.item() > 0.1  # and not all


def opinions(negatives: int) -> Tensor:
    """(COUNT, 1 + negatives) what a teacher might say of the documents of each row."""
    random = torch.Generator().manual_seed(2)
    return torch.randn(COUNT, 1 + negatives, generator=random)


def sides(model: SentenceTransformer, negatives: int) -> tuple[Tensor, Tensor]:
    queries, *documents = columns(negatives)
    return embed(model, queries), torch.cat([embed(model, column) for column in documents])


@pytest.mark.parametrize("negatives", [1, 2])
def test_margin_mse(model: SentenceTransformer, negatives: int) -> None:
    said = opinions(negatives)
    want = losses.MarginMSELoss(model)(features(model, negatives), said)
    row = torch.arange(COUNT)
    triples = [torch.stack([row, row, row + COUNT * (k + 1)], 1) for k in range(negatives)]
    margins = [said[:, 0] - said[:, k + 1] for k in range(negatives)]
    agree(model, margin_mse(*sides(model, negatives), torch.cat(triples), torch.cat(margins)), want)


@pytest.mark.parametrize("negatives", [1, 2])
@pytest.mark.parametrize(("student", "teacher"), [(1.0, 1.0), (0.05, 0.3)])
def test_distill_kl_div(
    model: SentenceTransformer, negatives: int, student: float, teacher: float
) -> None:
    said = opinions(negatives)
    theirs = losses.DistillKLDivLoss(
        model, student_temperature=student, teacher_temperature=teacher
    )
    want = theirs(features(model, negatives), said) / student**2  # Hinton's factor, left out here
    row = torch.arange(COUNT)
    pairs = [torch.stack([row, row + COUNT * k], dim=1) for k in range(1 + negatives)]
    mine = listwise_kl(
        *sides(model, negatives),
        torch.cat(pairs),
        said.T.flatten(),
        temperature=student,
        teacher_temperature=teacher,
    )
    agree(model, mine, want)


@pytest.mark.parametrize("metric", ["cosine", "mse"])
def test_embed_distill(model: SentenceTransformer, guide: SentenceTransformer, metric: str) -> None:
    with torch.no_grad():
        teacher = torch.cat(sides(guide, 1))
    theirs = losses.EmbedDistillLoss(model, distance_metric=metric)  # type: ignore[arg-type]
    want = theirs(features(model, 1), teacher.view(3, COUNT, -1).transpose(0, 1))
    factor = 1 / 2 if metric == "cosine" else 1 / teacher.shape[1]
    agree(model, align(torch.cat(sides(model, 1)), teacher) * factor, want)
