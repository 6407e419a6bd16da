"""From the loss section of a config and one batch to a function of vectors."""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tercet.configs import LossConfig
from tercet.data.batch import Batch
from tercet.losses import Guide, InfoNCE, Relations, info_nce, matryoshka
from tercet.models import Vectors
from tercet.train.step import Loss


class GuideVectors(NamedTuple):
    """A guide model's unit vectors of every query and document of the training set."""

    queries: Vectors | NDArray[np.float32]
    documents: Vectors | NDArray[np.float32]


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

    def loss(queries: Tensor, documents: Tensor, share: slice) -> InfoNCE:
        wanted = partial(one_width, share=share)
        if config.matryoshka is not None:
            wanted = matryoshka(wanted, config.matryoshka.dims, config.matryoshka.weights)
        return wanted(queries, documents)

    return loss
