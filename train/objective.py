"""From the sections `loss` and `distil` of a config and one batch to a function of vectors."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tercet.configs import Config, RelationalConfig
from tercet.data.batch import Batch
from tercet.losses import (
    Guide,
    InfoNCE,
    Relations,
    align,
    info_nce,
    listwise_kl,
    margin_mse,
    matryoshka,
    relational,
)
from tercet.models import Vectors
from tercet.train.step import Loss, Share, Terms
from tercet.train.teacher import Teacher

Sides = tuple[Tensor, Tensor]  # a teacher's vectors of the batch's queries and documents


class GuideVectors(NamedTuple):
    """A guide model's unit vectors of every query and document of the training set."""

    queries: Vectors | NDArray[np.float32]
    documents: Vectors | NDArray[np.float32]


def objective(
    config: Config,
    batch: Batch,
    temperature: float | Tensor,
    device: torch.device,
    guide: GuideVectors | None = None,
    teacher: Teacher | None = None,
    unit: bool = True,
) -> Loss:
    """The configured loss of `batch`, ready for `train.step.batch_gradient`.

    A weighted sum of terms, each at every width of `loss.matryoshka`. With a teacher the log gets
    each term's value apart. `unit`: the model gives unit vectors.
    """
    terms: dict[str, tuple[float, Loss]] = {}
    taught = config.distil.active
    if not taught or config.distil.infonce:
        weight = config.distil.infonce if taught else 1.0
        terms["infonce"] = weight, _contrast(config, batch, temperature, device, guide)
    if taught:
        terms |= _teaching(config, batch, temperature, device, teacher)

    def one_width(queries: Tensor, documents: Tensor, share: Share) -> Terms:
        found = {name: (w, term(queries, documents, share)) for name, (w, term) in terms.items()}
        loss = torch.stack([w * part.loss for w, part in found.values()]).sum()
        sums = {k: v for _, part in found.values() for k, v in part.sums.items()}
        if taught:
            sums |= {f"loss/{name}": part.loss.detach() for name, (_, part) in found.items()}
        return Terms(loss, sums)

    def loss(queries: Tensor, documents: Tensor, share: Share) -> Terms:
        nested = config.loss.matryoshka
        if nested is None:
            return one_width(queries, documents, share)
        wanted = matryoshka(
            lambda q, d: one_width(q, d, share), nested.dims, nested.weights, unit=unit
        )
        return wanted(queries, documents)

    return loss


def _contrast(
    config: Config,
    batch: Batch,
    temperature: float | Tensor,
    device: torch.device,
    guide: GuideVectors | None,
) -> Loss:
    settings, masks = config.loss, config.loss.false_negatives
    opinion = guide and Guide(
        _tensor(guide.queries[batch.queries], device),
        _tensor(guide.documents[batch.documents], device),
        masks.guide_margin,
        masks.guide_relative,
    )
    pairs = (batch.positives, batch.negatives, batch.ignored)
    relations = Relations(*(_tensor(p, device) for p in pairs))

    def term(queries: Tensor, documents: Tensor, share: Share) -> Terms:
        seen = info_nce(
            queries,
            documents,
            relations,
            temperature,
            directions=settings.directions,
            joint=settings.partition == "joint",
            in_batch_negatives=settings.in_batch_negatives,
            hardness=settings.hardness,
            margin=masks.margin,
            guide=opinion,
            share=share.of(len(batch.positives)),
        )
        return Terms(seen.loss, _sums(seen))

    return term


def _teaching(
    config: Config,
    batch: Batch,
    temperature: float | Tensor,
    device: torch.device,
    teacher: Teacher | None,
) -> dict[str, tuple[float, Loss]]:
    """The terms whose weight is not 0. The vectors of the batch's texts are looked up once."""
    settings = config.distil
    sides = None if teacher is None else teacher.of(batch.queries, batch.documents, device)
    found: dict[str, tuple[float, Loss]] = {}
    if sides is not None:
        found["align"] = settings.align, _near(sides)
        found["relational"] = settings.relational, _alike(settings.relations, sides)
    if settings.listwise_kl:
        ranked = _ranked(config, batch, temperature, device, sides)
        found["listwise_kl"] = settings.listwise_kl, ranked
    if settings.margin_mse:
        found["margin_mse"] = settings.margin_mse, _apart(config, batch, device, sides)
    return {name: (weight, term) for name, (weight, term) in found.items() if weight}


def _near(sides: Sides) -> Loss:
    """Each text's vector is compared with the teacher's; a prefix of it with the same prefix."""
    texts = torch.cat(sides)

    def term(queries: Tensor, documents: Tensor, share: Share) -> Terms:
        student = torch.cat([queries, documents])
        shown = texts[:, : student.shape[1]]
        return Terms(align(student, shown, share=share.of(len(texts))), {})

    return term


def _alike(settings: RelationalConfig, sides: Sides) -> Loss:
    """All texts' similarities are compared with the teacher's, at its full width.

    The student's may be narrower, as in Jasper; then there is no cosine between the two.
    """
    texts = torch.cat(sides)

    def term(queries: Tensor, documents: Tensor, share: Share) -> Terms:
        student = torch.cat([queries, documents])
        loss = relational(
            student,
            texts,
            cosine=settings.cosine if student.shape[1] == texts.shape[1] else 0.0,
            gram=settings.gram,
            relative=settings.relative,
            margin=settings.margin,
            share=share.of(len(texts)),
        )
        return Terms(loss, {})

    return term


def _ranked(
    config: Config,
    batch: Batch,
    temperature: float | Tensor,
    device: torch.device,
    sides: Sides | None,
) -> Loss:
    """Listwise KL over each query's own documents."""
    settings, (pairs, given) = config.distil, _candidates(batch)
    wanted = _tensor(pairs, device)
    scores = _opinions(config, wanted, given, sides)

    def term(queries: Tensor, documents: Tensor, share: Share) -> Terms:
        loss = listwise_kl(
            queries,
            documents,
            wanted,
            scores,
            temperature=settings.student_temperature or temperature,
            teacher_temperature=settings.score_temperature,
            calibration=settings.calibration,
            share=share.of(len(queries)),
        )
        return Terms(loss, {})

    return term


def _apart(config: Config, batch: Batch, device: torch.device, sides: Sides | None) -> Loss:
    """Margin MSE between each positive and each own negative of its query."""
    better, worse = _contests(batch)
    positives, negatives = batch.positives[better], batch.negatives[worse]
    triples = _tensor(np.column_stack([positives, negatives[:, 1]]), device)
    scores = [
        _opinions(config, _tensor(pairs, device), given[chosen] if len(given) else given, sides)
        for pairs, given, chosen in (
            (positives, batch.positive_scores, better),
            (negatives, batch.negative_scores, worse),
        )
    ]

    def term(queries: Tensor, documents: Tensor, share: Share) -> Terms:
        if len(triples) == 0:  # no row of this batch has a negative
            return Terms(0.0 * (queries.sum() + documents.sum()), {})
        loss = margin_mse(
            queries,
            documents,
            triples,
            scores[0] - scores[1],
            temperature=config.distil.margin_temperature,
            share=share.of(len(triples)),
        )
        return Terms(loss, {})

    return term


def _opinions(
    config: Config, pairs: Tensor, given: NDArray[np.float32], sides: Sides | None
) -> Tensor:
    """(n,) the teacher's scores of pairs (n, 2): those given with the data, or its cosines."""
    if config.distil.scores == "data":
        return _tensor(given, pairs.device)
    assert sides is not None  # the config is refused otherwise
    return (sides[0][pairs[:, 0]] * sides[1][pairs[:, 1]]).sum(dim=1)


def _candidates(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(n, 2) every query with its positives and own negatives, each pair once, and (n,) scores."""
    every = np.concatenate([batch.positives, batch.negatives])
    pairs, first = np.unique(every, axis=0, return_index=True)
    given = np.concatenate([batch.positive_scores, batch.negative_scores])
    return pairs, given[first] if len(given) else given


def _contests(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(m,) and (m,) places of a positive and of an own negative of the same query: all such."""
    positives, negatives = batch.positives, batch.negatives
    order = np.argsort(negatives[:, 0], kind="stable")
    first = np.searchsorted(negatives[order, 0], positives[:, 0], "left")
    last = np.searchsorted(negatives[order, 0], positives[:, 0], "right")
    better = np.repeat(np.arange(len(positives)), last - first)
    place = np.arange(len(better)) - np.repeat(np.cumsum(last - first) - last, last - first)
    return better, order[place]


def _tensor(array: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def report(sums: Mapping[str, float], positives: int) -> dict[str, float]:
    """What the log says of a batch with so many positives, from the sums of `objective`."""
    found = {name: value for name, value in sums.items() if name.startswith("loss/")}
    if "correct" not in sums:
        return found
    return found | {
        "in_batch_accuracy": sums["correct"] / positives,  # above every negative document
        "positive_score": sums["positive"] / positives,  # mean cosine
        "hardest_negative_score": sums["hardest"] / sums["rivalled"]
        if sums["rivalled"]
        else math.nan,
        "masked_by_margin": round(sums["by_margin"]),
        "masked_by_guide": round(sums["by_guide"]),
    }


def _sums(seen: InfoNCE) -> dict[str, Tensor]:
    rivalled = seen.hardest > -torch.inf
    return {
        "correct": (seen.positive > seen.hardest).sum(),
        "positive": seen.positive.sum(),
        "hardest": seen.hardest[rivalled].sum(),
        "rivalled": rivalled.sum(),
        "by_margin": seen.by_margin,
        "by_guide": seen.by_guide,
    }
