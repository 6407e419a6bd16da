"""A running mean of the weights, which generalises better than the last step's."""

from collections.abc import Iterator

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tercet.errors import UserError
from tercet.train.shards import like, own_part, whole

WEIGHTS = "weights/"  # of the names under which a checkpoint keeps what is trained


class Average:
    """Exponential moving average of the trained weights; under FSDP of this process's shards.

    A checkpoint's `model/` holds the averages, since they are what is evaluated and exported; the
    weights themselves are kept beside the optimizer's state.
    """

    def __init__(self, encoder: SentenceTransformer) -> None:
        self.tensors = {name: p.detach().clone() for name, p in _trained(encoder).items()}

    @torch.no_grad()
    def update(self, encoder: SentenceTransformer, decay: float) -> None:
        """average <- decay * average + (1 - decay) * weights."""
        for name, parameter in _trained(encoder).items():
            own_part(self.tensors[name]).lerp_(own_part(parameter), 1 - decay)

    @torch.no_grad()
    def fill(self, target: SentenceTransformer) -> None:
        """Put the averages into a whole copy of the encoder; all processes call it."""
        places = dict(target.named_parameters())
        for name, tensor in self.tensors.items():
            places[name].copy_(whole(tensor))


def decay_at(step: int, decay: float) -> float:
    """The decay after step 0, 1, ...: it grows to `decay`, so that the start is forgotten.

    min(decay, (1 + step) / (10 + step)), as TensorFlow's ExponentialMovingAverage has it.

    >>> [round(decay_at(step, 0.99), 3) for step in (0, 10, 10_000)]
    [0.1, 0.55, 0.99]
    """
    return min(decay, (1 + step) / (10 + step))


def weight_tensors(encoder: SentenceTransformer) -> Iterator[tuple[str, Tensor]]:
    """What is trained, as `weights/NAME`, for a checkpoint; sharded as it is."""
    return ((f"{WEIGHTS}{name}", tensor) for name, tensor in _trained(encoder).items())


@torch.no_grad()
def restore_weights(encoder: SentenceTransformer, tensors: dict[str, Tensor]) -> None:
    """The reverse of `weight_tensors`: takes them out of `tensors` and puts them in `encoder`.

    Raises UserError if one is missing or of another shape.
    """
    for name, parameter in _trained(encoder).items():
        saved = tensors.pop(f"{WEIGHTS}{name}", None)
        if saved is None or saved.shape != parameter.shape:
            raise UserError(f"the checkpoint does not hold the weights of {name}; start afresh")
        own_part(parameter).copy_(own_part(like(saved, parameter)))


def _trained(encoder: SentenceTransformer) -> dict[str, Tensor]:
    return {name: p for name, p in encoder.named_parameters() if p.requires_grad}
