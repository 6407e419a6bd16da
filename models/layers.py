"""Fewer transformer layers: any encoder whose layers stand in one list."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import PreTrainedModel

from tercet.errors import UserError


def transformer(model: SentenceTransformer) -> PreTrainedModel:
    """The transformers model inside. Raises UserError if there is none."""
    body = getattr(model[0], "auto_model", None)
    if not isinstance(body, PreTrainedModel):
        raise UserError(
            f"model.path: {type(model[0]).__name__} holds no transformer layers; of such a model "
            "only the width can be cut (student.dims)"
        )
    return body


def layer_count(model: SentenceTransformer) -> int:
    """Number of transformer layers; 0 for a model that has none."""
    body = getattr(model[0], "auto_model", None)
    return _count(body) if isinstance(body, PreTrainedModel) else 0


def keep_layers(model: SentenceTransformer, wanted: str | Sequence[int]) -> None:
    """Leave out all transformer layers of `model` but those wanted; nothing else changes.

    wanted: `all`; `first:3` or `last:3`; `even` (0, 2, 4, ...); `every:3` (0, 3, 6, ...); or
    positions counted from 0. Settings given layer by layer are cut with their layers.
    Raises UserError if a layer does not exist, or the encoder cannot do without one.
    """
    if wanted == "all":
        return
    body = transformer(model)
    kept = chosen_layers(wanted, _count(body))
    if len(kept) == _count(body):
        return
    prefix = _list_name(body) + "."
    places = {f"{prefix}{old}": f"{prefix}{new}" for new, old in enumerate(kept)}
    state = {}
    for name, tensor in body.state_dict().items():
        layer = prefix + name.removeprefix(prefix).split(".")[0]
        if not name.startswith(prefix):
            state[name] = tensor
        elif layer in places:
            state[places[layer] + name.removeprefix(layer)] = tensor
    replace_body(model, state, _settings_of(body, kept))


def chosen_layers(wanted: str | Sequence[int], count: int) -> list[int]:
    """Positions of the layers that stay, in ascending order.

    >>> chosen_layers("last:2", 6), chosen_layers("even", 6), chosen_layers("every:3", 7)
    ([4, 5], [0, 2, 4], [0, 3, 6])
    """
    if not isinstance(wanted, str):
        positions = sorted(wanted)
    else:
        how, _, number = wanted.partition(":")
        n = int(number or 0)
        choices = {
            "all": range(count),
            "even": range(0, count, 2),
            "first": range(n),
            "last": range(count - n, count),
            "every": range(0, count, n or 1),
        }
        positions = list(choices[how])
    outside = [p for p in positions if not 0 <= p < count]
    if outside or not positions:
        named = f"layer {outside[0]}" if outside else "no layer"
        raise UserError(
            f"student.layers: {wanted!r} asks for {named}; the model has layers 0 to {count - 1}"
        )
    return positions


def replace_body(
    model: SentenceTransformer, state: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> None:
    """Put a new transformer into `model`: the old one's settings with changes, and these weights.

    It is built from its config, as any later loading will build it. Raises UserError if the
    weights do not fill it exactly.
    """
    body = transformer(model)
    config = copy.deepcopy(body.config)
    for name, value in settings.items():
        setattr(config, name, value)
    built = type(body)(config)
    needed, given = built.state_dict(), dict(state)
    wrong = sorted(
        name
        for name in needed.keys() | given.keys()
        if name not in needed or name not in given or needed[name].shape != given[name].shape
    )
    if wrong:
        raise UserError(
            f"student: {config.model_type} builds {wrong[0]} differently when it is cut this way "
            "(often the first layer is unlike the others); keep layer 0"
        )
    built.load_state_dict(given)
    built.to(device=body.device, dtype=body.dtype)  # type: ignore[call-arg]
    model[0].model = built.train(body.training)


def _count(body: PreTrainedModel) -> int:
    return int(getattr(body.config, "num_hidden_layers", 0) or 0)


def _list_name(body: PreTrainedModel) -> str:
    """Name of the one list of as many modules as the config says there are layers."""
    lists = [
        name
        for name, module in body.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == _count(body)
    ]
    outermost = [n for n in lists if not any(n.startswith(f"{other}.") for other in lists)]
    if len(outermost) != 1:
        raise UserError(
            f"student.layers: {body.config.model_type} does not keep its layers in one list "
            f"({', '.join(outermost) or 'none'} found); its layers cannot be chosen"
        )
    return outermost[0]


def _settings_of(body: PreTrainedModel, kept: Sequence[int]) -> dict[str, Any]:
    """The config's number of layers, and every list in it that has an entry for each layer."""
    settings: dict[str, Any] = {
        name: [value[layer] for layer in kept]
        for name, value in body.config.to_dict().items()
        if isinstance(value, list | tuple) and len(value) == _count(body)
    }
    return settings | {"num_hidden_layers": len(kept)}
