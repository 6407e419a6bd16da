"""From the loss section of a config and one batch to a function of vectors."""

import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tercet.configs import LossConfig
from tercet.data.batch import Batch
from tercet.losses import Guide, InfoNCE, Relations, info_nce, matryoshka
from tercet.train.step import Loss, Share, Terms


class GuideVectors(NamedTuple):
    """A guide model's unit vectors of every query and document of the training set."""

    queries: NDArray[np.float32]
    documents: NDArray[np.float32]


def objective(
    config: LossConfig,
    batch: Batch,
    temperature: float | Tensor,
    device: torch.device,
    guide: GuideVectors | None = None,
) -> Loss:
    """The configured loss of `batch`, ready for `train.step.batch_gradient`."""

    def tensor(array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    masks = config.false_negatives
    opinion = guide and Guide(
        tensor(guide.queries[batch.queries]),
        tensor(guide.documents[batch.documents]),
        masks.guide_margin,
        masks.guide_relative,
    )
    one_width = partial(
        info_nce,
        relations=Relations(
            tensor(batch.positives), tensor(batch.negatives), tensor(batch.ignored)
        ),
        temperature=temperature,
        directions=config.directions,
        joint=config.partition == "joint",
        in_batch_negatives=config.in_batch_negatives,
        hardness=config.hardness,
        margin=masks.margin,
        guide=opinion,
    )

    def loss(queries: Tensor, documents: Tensor, share: Share) -> Terms:
        wanted = partial(one_width, share=share.of(len(batch.positives)))
        if config.matryoshka is not None:
            wanted = matryoshka(wanted, config.matryoshka.dims, config.matryoshka.weights)
        seen = wanted(queries, documents)
        return Terms(seen.loss, _sums(seen))

    return loss


def report(sums: Mapping[str, float], positives: int) -> dict[str, float]:
    """What the log says of a batch with so many positives, from the sums of `objective`."""
    return {
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
