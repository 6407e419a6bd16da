"""A model whose tokenizer is in Python alone, here ByT5's over bytes."""

from pathlib import Path

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from tercet.configs import ModelConfig
from tercet.errors import UserError
from tercet.export.graph import check_exportable
from tercet.models import load_encoder, vectors
from tercet.models.store import tokenizer_fingerprint
from tests.encoders import save_encoder

TEXTS = ["a query", "日本語", "another one"]


@pytest.fixture(scope="module")
def by_bytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder("bytes", tmp_path_factory.mktemp("bytes"))


def test_its_vectors_are_stored_and_found_again(by_bytes: Path, tmp_path: Path) -> None:
    model = load_encoder(ModelConfig(path=str(by_bytes)))
    assert not hasattr(model.tokenizer, "backend_tokenizer")
    got = vectors(model, TEXTS, "query", folder=tmp_path)
    np.testing.assert_allclose(got[:], model.encode_query(TEXTS), atol=1e-6)
    again = load_encoder(ModelConfig(path=str(by_bytes)))
    assert vectors(again, TEXTS, "query", folder=tmp_path).fingerprint == got.fingerprint


def test_other_rules_are_another_fingerprint() -> None:
    one, same, other = ByT5Tokenizer(), ByT5Tokenizer(), ByT5Tokenizer(eos_token="<end>")
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(same)
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(other)


def test_a_graph_of_it_is_refused(by_bytes: Path) -> None:
    with pytest.raises(UserError, match="--onnx: ByT5Tokenizer is no tokenizer of the tokenizers"):
        check_exportable(load_encoder(ModelConfig(path=str(by_bytes))))
