"""Weight averages: arithmetic against a plain mean, and models that have none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig
from tercet.errors import UserError
from tercet.models import encode, load_encoder, merge_models
from tercet.models.heads import narrow
from tercet.models.layers import keep_layers, transformer
from tests.conftest import answer, question

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [question(n) for n in range(20)] + [answer(n) for n in range(20)]


@pytest.fixture
def base(tiny_model: Path) -> SentenceTransformer:
    return load_encoder(ModelConfig(path=str(tiny_model)))


@pytest.fixture
def tuned(tiny_model: Path) -> SentenceTransformer:
    model = load_encoder(ModelConfig(path=str(tiny_model)))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.05)
    return model


def test_the_merge_is_the_weighted_mean(
    base: SentenceTransformer, tuned: SentenceTransformer
) -> None:
    a, b = ({n: t.double() for n, t in m.state_dict().items()} for m in (base, tuned))
    merged = merge_models([base, tuned], [1.0, 3.0], ["base", "tuned"]).state_dict()
    for name, tensor in merged.items():
        torch.testing.assert_close(
            tensor.double(), 0.25 * a[name] + 0.75 * b[name], rtol=0, atol=1e-7
        )


def test_all_weight_on_one_model_is_that_model(
    base: SentenceTransformer, tuned: SentenceTransformer
) -> None:
    want = encode(tuned, TEXTS, "query")
    merged = merge_models([base, tuned], [0.0, 2.0], ["base", "tuned"])
    assert np.array_equal(encode(merged, TEXTS, "query"), want)


def test_half_precision_is_averaged_in_float32(
    base: SentenceTransformer, tuned: SentenceTransformer
) -> None:
    models = [base.bfloat16(), tuned.bfloat16()]
    name = next(n for n, t in base.state_dict().items() if t.ndim == 2)
    mean = sum(m.state_dict()[name].float() for m in models) / 2
    merged = merge_models(models, [1, 1], ["base", "tuned"]).state_dict()[name]
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, mean.bfloat16())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [([1.0], "1 for 2 models"), ([1.0, -1.0], "must be positive"), ([0.0, 0.0], "positive")],
)
def test_weights_that_do_not_fit(
    base: SentenceTransformer, tuned: SentenceTransformer, weights: list[float], complaint: str
) -> None:
    with pytest.raises(UserError, match=f"weights: .*{complaint}"):
        merge_models([base, tuned], weights, ["base", "tuned"])


def test_models_that_differ_in_more_than_weights(
    base: SentenceTransformer, tuned: SentenceTransformer, tiny_model: Path
) -> None:
    def refused(complaint: str) -> None:
        with pytest.raises(UserError, match=complaint) as error:
            merge_models([base, tuned], [1, 1], ["base", "tuned"])
        assert "\n" not in str(error.value)

    transformer(tuned).config.num_attention_heads = 4
    refused("num_attention_heads is 4 in tuned and 2 in base")
    transformer(tuned).config.num_attention_heads = 2
    tuned.tokenizer.add_tokens(["zebra"])
    refused("different tokenizers")
    keep_layers(tuned, "first:1")
    refused(r"layer.1.* is missing in tuned and \(")
    tuned = load_encoder(ModelConfig(path=str(tiny_model)))
    narrow(tuned, encode(tuned, TEXTS, "query"), 4)
    refused("tuned is built of .*Dense.*; no mean")


def test_tensors_that_are_not_floats_must_be_equal(
    base: SentenceTransformer, tuned: SentenceTransformer
) -> None:
    for number, model in enumerate((base, tuned)):
        model.register_buffer("steps", torch.tensor(number))
    with pytest.raises(UserError, match="steps is not a float tensor and differs"):
        merge_models([base, tuned], [1, 1], ["base", "tuned"])
