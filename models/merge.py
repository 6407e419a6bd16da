"""Weight averaging: several checkpoints of one architecture become one model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tercet.errors import UserError
from tercet.models.store import UNTOLD, tokenizer_fingerprint


def merge_models(
    models: Sequence[SentenceTransformer], weights: Sequence[float], names: Sequence[str]
) -> SentenceTransformer:
    """The first model with every weight replaced by the weighted mean over all models.

    Model soups (Wortsman et al. 2022, arXiv:2203.05482); a tuned model and its base, to keep what
    tuning forgets: LM-Cocktail (Xiao et al. 2023, arXiv:2311.13534). weights are divided by their
    sum and may be negative. The mean is taken in float32 or better and stored in the first
    model's dtype; tensors that are not floats must be equal. Tokenizer, prompts and settings are
    the first model's. `names` stand for the models in complaints.
    Raises UserError if the weights do not fit or the models differ in more than their weights.
    """
    if len(models) < 2 or len(weights) != len(models):
        raise UserError(
            f"weights: {len(weights)} for {len(models)} models; name two or more models and give "
            "one weight for each"
        )
    if not 0 < sum(weights) < math.inf:
        raise UserError(f"weights: their sum must be positive and finite, got {sum(weights)}")
    for model, name in zip(models[1:], names[1:], strict=True):
        _refuse_unlike(models[0], names[0], model, name)
    shares = [weight / sum(weights) for weight in weights]
    models[0].load_state_dict(_mean_state([model.state_dict() for model in models], shares))
    return models[0]


def merge_line(
    base: SentenceTransformer,
    tuned: SentenceTransformer,
    shares: Sequence[float],
    names: Sequence[str],
) -> Iterator[SentenceTransformer]:
    """`base` as (1 - share) base + share tuned, for one share after the other.

    It is the same object each time, so use it before asking for the next. Raises UserError if the
    two differ in more than their weights.
    """
    _refuse_unlike(base, names[0], tuned, names[1])
    ends = [
        {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for model in (base, tuned)
    ]
    for share in shares:
        base.load_state_dict(_mean_state(ends, [1 - share, share]))
        yield base


def _mean_state(
    states: Sequence[Mapping[str, Tensor]], shares: Sequence[float]
) -> dict[str, Tensor]:
    return {name: _mean([state[name] for state in states], shares, name) for name in states[0]}


def _mean(tensors: Sequence[Tensor], shares: Sequence[float], name: str) -> Tensor:
    first = tensors[0]
    if not first.is_floating_point():
        if any(not torch.equal(first, other) for other in tensors[1:]):
            raise UserError(f"{name} is not a float tensor and differs; it has no mean")
        return first
    exact = torch.promote_types(first.dtype, torch.float32)
    total = torch.zeros_like(first, dtype=exact)
    for tensor, share in zip(tensors, shares, strict=True):
        total += tensor.to(total) * share
    return total.to(first.dtype)


def _refuse_unlike(
    a: SentenceTransformer, a_name: str, b: SentenceTransformer, b_name: str
) -> None:
    kinds = [[type(module).__name__ for module in model] for model in (a, b)]
    if kinds[0] != kinds[1]:
        raise UserError(f"{b_name} is built of {kinds[1]}, {a_name} of {kinds[0]}; no mean of them")
    shapes = [{n: tuple(t.shape) for n, t in model.state_dict().items()} for model in (a, b)]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        ours, theirs = (shape.get(name, "missing") for shape in shapes)
        if ours != theirs:
            raise UserError(f"{name} is {theirs} in {b_name} and {ours} in {a_name}")
    settings = [_settings(model) for model in (a, b)]
    for name in sorted(settings[0].keys() | settings[1].keys()):
        ours, theirs = (found.get(name) for found in settings)
        if ours != theirs:
            raise UserError(f"config {name} is {theirs!r} in {b_name} and {ours!r} in {a_name}")
    if tokenizer_fingerprint(a.tokenizer) != tokenizer_fingerprint(b.tokenizer):
        raise UserError(
            f"{b_name} and {a_name} have different tokenizers: the same rows of their "
            "tables stand for different tokens"
        )


def _settings(model: SentenceTransformer) -> dict[str, Any]:
    """What a transformer's shapes do not tell: heads, activation, pooling; dropout is no matter."""
    found: dict[str, Any] = {}
    for place, module in enumerate(model):
        body = getattr(module, "auto_model", None)
        describe = getattr(module, "get_config_dict", dict)
        described = describe() if body is None else body.config.to_dict()
        found |= {f"{place}.{name}": value for name, value in described.items()}
    ignored = {*UNTOLD, "use_cache"}
    return {
        name: value
        for name, value in found.items()
        if name.split(".", 1)[1] not in ignored and "dropout" not in name
    }
