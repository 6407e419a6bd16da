"""The tokenizer loaded alone is the one the whole encoder has."""

from pathlib import Path

import pytest

from tercet.configs import ModelConfig
from tercet.errors import UserError
from tercet.models import load_encoder, max_length
from tercet.models.tokenizer import load_tokenizer


@pytest.mark.parametrize("folder", ["model", "body"], ids=["ours", "plain transformers"])
@pytest.mark.parametrize("length", [None, 9])
def test_tokens_and_length_are_the_encoders(
    tiny_model: Path, folder: str, length: int | None
) -> None:
    config = ModelConfig(path=str(tiny_model.parent / folder), max_length=length)
    tokenizer, longest = load_tokenizer(config)
    encoder = load_encoder(config)
    assert longest == max_length(encoder)
    text = "where does the bamex live"
    assert tokenizer(text)["input_ids"] == encoder.tokenizer(text)["input_ids"]


def test_the_length_sentence_transformers_saved_counts(tiny_model: Path, tmp_path: Path) -> None:
    encoder = load_encoder(ModelConfig(path=str(tiny_model), max_length=17))
    encoder.save(str(tmp_path), create_model_card=False)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    assert load_tokenizer(ModelConfig(path=str(tmp_path)))[1] == 16


def test_a_model_without_a_tokenizer_is_named(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model.parent / "body/config.json").read_bytes())
    with pytest.raises(UserError, match="its tokenizer has no vocabulary") as error:
        load_tokenizer(ModelConfig(path=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_damaged_tokenizer_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no such type"}')
    with pytest.raises(UserError, match="no tokenizer can be loaded") as error:
        load_tokenizer(ModelConfig(path=str(tmp_path)))
    assert "\n" not in str(error.value)
