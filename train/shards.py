"""What a launch with FSDP asks for: whole tensors out of shards, and shards out of whole tensors.

Under any other launch these functions do nothing.
"""

import copy
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. If it is in shards, every process must ask for it at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, or all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """`value`, whole and equal on every process, placed and cut up as `parameter` is."""
    if isinstance(parameter, DTensor):
        there = value.to(parameter.device_mesh.device_type)
        return distribute_tensor(there, parameter.device_mesh, parameter.placements)
    return value.to(parameter.device)


def gathered(tensors: Iterable[tuple[str, Tensor]], keep: bool) -> dict[str, Tensor]:
    """The named tensors, whole, in the main memory of the processes that `keep` them.

    All processes call it. One tensor at a time is whole on the device: together they may be what
    did not fit there and was sharded.
    """
    found = {}
    for name, tensor in tensors:
        all_of_it = whole(tensor.detach())
        if keep:
            found[name] = all_of_it.cpu()
    return found


def whole_copy(
    accelerator: Accelerator, encoder: SentenceTransformer, averaged: bool
) -> SentenceTransformer:
    """A model to save and evaluate: `encoder` itself, or a copy to be filled.

    A copy if `encoder` is about to be sharded, or if its weights will be averaged.
    """
    return copy.deepcopy(encoder) if accelerator.is_fsdp2 or averaged else encoder


def fill(target: SentenceTransformer, encoder: SentenceTransformer) -> None:
    """Put the present weights of a sharded `encoder` into its whole copy, on every process."""
    if target is encoder:
        return
    theirs = encoder.state_dict()
    with torch.no_grad():
        for name, tensor in target.state_dict().items():
            tensor.copy_(whole(theirs[name]))


def choose_layers(accelerator: Accelerator, encoder: SentenceTransformer) -> None:
    """Make FSDP wrap each layer of the body, unless the launch names others.

    transformers names the layers of a model on its body, where Accelerate, which gets the whole
    encoder, does not look; it would gather all weights at once.
    """
    if not accelerator.is_fsdp2:
        return
    # Accelerate takes a child called like a norm for a language model's last layer and shards it;
    # ours is the one without weights that makes unit vectors. It looks below this attribute, and
    # finding no module there, does not.
    encoder.base_model_prefix = "tokenizer"  # type: ignore[assignment]
    plugin = accelerator.state.fsdp_plugin
    if plugin is not None and plugin.transformer_cls_names_to_wrap is None:
        there = {type(module).__name__ for module in encoder.modules()}
        named = getattr(getattr(encoder[0], "auto_model", None), "_no_split_modules", None)
        plugin.transformer_cls_names_to_wrap = sorted(there & set(named or ()))
