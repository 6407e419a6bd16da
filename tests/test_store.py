"""Vectors are computed once, and again as soon as anything that shapes them changes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig, Prompts
from tercet.models import encode, load_encoder, model_fingerprint, vectors
from tercet.models import store as store_module

TEXTS = [f"a bamex is an animal of the {place}" for place in ("forest", "river", "city")]


def tiny(path: Path, **options: object) -> SentenceTransformer:
    return load_encoder(ModelConfig(path=str(path), **options))  # type: ignore[arg-type]


def rows_computed(model: SentenceTransformer, texts: list[str], folder: Path) -> int:
    """How many texts went through the encoder for one call of `vectors`."""
    rows: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0]["input_ids"])))
    vectors(model, texts, "query", folder=folder)
    handle.remove()
    return sum(rows)


def test_the_second_call_computes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    model = tiny(tiny_model)
    assert rows_computed(model, TEXTS, tmp_path) == len(TEXTS)
    assert rows_computed(tiny(tiny_model), TEXTS, tmp_path) == 0
    np.testing.assert_array_equal(
        vectors(model, TEXTS, "query", folder=tmp_path), encode(model, TEXTS, "query")
    )


def test_every_change_computes_anew(tiny_model: Path, tmp_path: Path) -> None:
    rows_computed(tiny(tiny_model), TEXTS, tmp_path)
    nudged = tiny(tiny_model)
    with torch.no_grad():
        list(nudged.parameters())[-4].view(-1)[0] += 1e-6
    changed = {
        "one weight": (nudged, TEXTS),
        "the prompt": (tiny(tiny_model, prompts=Prompts(query="where is: ")), TEXTS),
        "the length": (tiny(tiny_model, max_length=9), TEXTS),
        "the precision": (tiny(tiny_model, dtype="bfloat16"), TEXTS),
        "one text": (tiny(tiny_model), [*TEXTS[:2], "another"]),
    }
    for what, (model, texts) in changed.items():
        assert rows_computed(model, texts, tmp_path) == len(texts), what


def test_the_number_of_heads_is_part_of_the_fingerprint(tiny_model: Path) -> None:
    """Four heads of 8 have the same weights as two of 16, and give other vectors."""
    model = tiny(tiny_model)
    before = model_fingerprint(model)
    body: Any = model[0].auto_model
    body.config.num_attention_heads = 4
    assert model_fingerprint(model) != before


def test_use_does_not_change_the_fingerprint(tiny_model: Path, tmp_path: Path) -> None:
    model = tiny(tiny_model)
    before = model_fingerprint(model)
    encode(model, ["one", "a much longer text than the one before"], "query")
    model.encode(TEXTS)
    assert model_fingerprint(model) == before
    model.save(str(tmp_path / "copy"), create_model_card=False)
    assert model_fingerprint(tiny(tmp_path / "copy")) == before


def test_a_killed_run_goes_on_at_the_missing_shard(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SHARD", 2)
    model = tiny(tiny_model)
    texts = [*TEXTS, "where does the bamex live", "of"]
    calls: list[int] = []

    def killed_at_the_third(*_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        vectors(model, texts, "query", folder=tmp_path, batch_tokens=1_000)
    handle.remove()
    assert len(sorted(tmp_path.rglob("*.npy"))) == 2
    assert rows_computed(model, texts, tmp_path) == 1
    assert rows_computed(model, texts, tmp_path) == 0
    # shards are encoded two by two, so padding and with it rounding may differ from one batch
    whole = encode(model, texts, "query")
    np.testing.assert_allclose(vectors(model, texts, "query", folder=tmp_path), whole, atol=1e-6)


def test_shards_become_one_mapped_file_with_its_hash(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SHARD", 2)
    found = vectors(tiny(tiny_model), TEXTS, "query", folder=tmp_path)
    assert isinstance(found, np.memmap) and not found.flags.writeable
    (file,) = tmp_path.rglob("*.npy")  # the shards are gone
    manifest = json.loads(file.with_name("manifest.json").read_text())
    assert manifest["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert manifest["shape"] == [3, 32]


def test_a_run_killed_before_the_manifest_tidies_up(tiny_model: Path, tmp_path: Path) -> None:
    model = tiny(tiny_model)
    before = np.array(vectors(model, TEXTS, "query", folder=tmp_path))
    (manifest,) = tmp_path.rglob("manifest.json")
    manifest.unlink()
    np.save(manifest.with_name("00000.npy"), before)
    assert rows_computed(model, TEXTS, tmp_path) == 0
    assert manifest.exists() and len(list(tmp_path.rglob("*.npy"))) == 1


def test_no_texts_are_no_vectors(tiny_model: Path, tmp_path: Path) -> None:
    found = vectors(tiny(tiny_model), [], "document", folder=tmp_path)
    assert found.shape == (0, 32) and found.dtype == np.float32
