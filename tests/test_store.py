"""Vectors are computed once, and again as soon as anything that shapes them changes."""

import hashlib
import json
import resource
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling
from tokenizers.normalizers import BertNormalizer

from tercet.configs import ModelConfig, Prompts
from tercet.errors import UserError
from tercet.files import fingerprint
from tercet.models import (
    Vectors,
    encode,
    load_encoder,
    max_length,
    model_fingerprint,
    shards,
    vectors,
)
from tercet.models.store import UNTOLD, tokenizer_fingerprint

TEXTS = [f"a bamex is an animal of the {place}" for place in ("forest", "river", "city")]
MANY = [*TEXTS, "where does the bamex live", "of"]


def tiny(path: Path, **options: object) -> SentenceTransformer:
    return load_encoder(ModelConfig(path=str(path), **options))  # type: ignore[arg-type]


def rows_computed(model: SentenceTransformer, texts: list[str], folder: Path) -> int:
    """How many texts went through the encoder for one call of `vectors`."""
    rows: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0]["input_ids"])))
    try:
        vectors(model, texts, "query", folder=folder)
    finally:
        handle.remove()
    return sum(rows)


@pytest.fixture
def shards_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LEAST_ROWS", 2)


@pytest.fixture
def five(shards_of_two: None, tiny_model: Path, tmp_path: Path) -> Path:
    """A store of five texts in three shards."""
    vectors(tiny(tiny_model), MANY, "query", folder=tmp_path)
    (place,) = tmp_path.iterdir()
    return place


def manifest_of(place: Path) -> dict[str, Any]:
    return json.loads((place / "manifest.json").read_text())


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
        "the order": (tiny(tiny_model), TEXTS[::-1]),
    }
    for what, (model, texts) in changed.items():
        assert rows_computed(model, texts, tmp_path) == len(texts), what


def test_fewer_dimensions_are_another_store_of_unit_vectors(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = tiny(tiny_model)
    whole = vectors(model, TEXTS, "query", folder=tmp_path)
    cut = vectors(model, TEXTS, "query", folder=tmp_path, truncate_dim=8)
    assert cut.shape == (3, 8) and cut.fingerprint != whole.fingerprint
    want = whole[:][:, :8] / np.linalg.norm(whole[:][:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, want, atol=1e-6)
    for wrong in (0, 33):
        with pytest.raises(UserError, match=f"truncate_dim: {wrong} is not between 1 and .* 32"):
            vectors(model, TEXTS, "query", folder=tmp_path, truncate_dim=wrong)


def test_the_number_of_heads_is_part_of_the_fingerprint(tiny_model: Path) -> None:
    """Four heads of 8 have the same weights as two of 16, and give other vectors."""
    model = tiny(tiny_model)
    before = model_fingerprint(model)
    body: Any = model[0].auto_model
    body.config.num_attention_heads = 4
    assert model_fingerprint(model) != before


def test_pooling_and_tokenizer_are_part_of_the_fingerprint(tiny_model: Path) -> None:
    """Neither leaves a mark on the weights."""
    before = model_fingerprint(tiny(tiny_model))
    pooled, cased = tiny(tiny_model), tiny(tiny_model)
    pooled[1] = Pooling(32, pooling_mode="cls")
    assert model_fingerprint(pooled) != before
    cased.tokenizer.backend_tokenizer.normalizer = BertNormalizer(lowercase=False)
    assert model_fingerprint(cased) != before
    assert not np.allclose(encode(pooled, TEXTS, "query"), encode(tiny(tiny_model), TEXTS, "query"))


def test_use_does_not_change_the_fingerprint(tiny_model: Path, tmp_path: Path) -> None:
    model = tiny(tiny_model)
    before = model_fingerprint(model)
    encode(model, ["one", "a much longer text than the one before"], "query")
    model.encode(TEXTS)
    assert model_fingerprint(model) == before
    model.save(str(tmp_path / "copy"), create_model_card=False)
    assert model_fingerprint(tiny(tmp_path / "copy")) == before


def test_a_fingerprint_holds_one_tensor_at_a_time(tiny_model: Path) -> None:
    """And is that of all its parts in one list."""
    model = tiny(tiny_model)
    for _ in range(4):
        model.append(Dense(32, 20_000)).append(Dense(20_000, 32))
    largest = 32 * 20_000 * 4  # bytes
    model_fingerprint(tiny(tiny_model))  # what is imported and cached by the first call
    tracemalloc.start()
    got, peak = model_fingerprint(model), tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert largest <= peak < 2 * largest

    parts: list[str | bytes] = []
    for name, tensor in sorted(model.state_dict().items()):
        parts += [name, str(tensor.dtype), str(tuple(tensor.shape)), tensor.numpy().tobytes()]
    body: Any = model[0].auto_model
    told = {k: v for k, v in body.config.to_dict().items() if k not in UNTOLD}
    parts.append(json.dumps(told, sort_keys=True, default=str))
    for module in model:
        settings: Any = getattr(module, "get_config_dict", dict)()
        parts.append(type(module).__name__ + json.dumps(settings, sort_keys=True, default=str))
    parts += [tokenizer_fingerprint(model.tokenizer), str(max_length(model))]
    assert got == fingerprint(parts)


def test_the_manifest_says_what_the_files_are(five: Path, tiny_model: Path) -> None:
    told = manifest_of(five)
    files = sorted(file.name for file in five.iterdir() if not file.name.startswith("."))
    assert files == ["00000.npy", "00001.npy", "00002.npy", "manifest.json"]
    assert [shard["rows"] for shard in told["shards"]] == [2, 2, 1]
    for file, shard in zip(files, told["shards"], strict=False):
        assert shard["sha256"] == hashlib.sha256((five / file).read_bytes()).hexdigest()
    model = tiny(tiny_model)
    assert told["fingerprint"] == five.name and told["model"].startswith(str(tiny_model))
    assert told["model_fingerprint"] == model_fingerprint(model)
    facts = ("format", "role", "prompt", "max_length", "dim", "dtype", "model_dtype", "rows")
    assert [told[key] for key in facts] == [3, "query", "", 64, 32, "float32", "float32", 5]
    assert told["created"].startswith("20")


def stop_after(model: SentenceTransformer, batches: int, error: BaseException) -> Any:
    calls: list[int] = []

    def stop(*_: object) -> None:
        calls.append(1)
        if len(calls) > batches:
            raise error

    return model.register_forward_pre_hook(stop)


def test_a_stopped_run_goes_on_at_the_missing_shard(
    shards_of_two: None, one_thread: None, tiny_model: Path, tmp_path: Path
) -> None:
    model = tiny(tiny_model)
    handle = stop_after(model, 2, KeyboardInterrupt())  # a batch per shard
    with pytest.raises(KeyboardInterrupt):
        vectors(model, MANY, "query", folder=tmp_path, batch_tokens=1_000)
    handle.remove()
    assert len(list(tmp_path.rglob("*.npy"))) == 2
    assert rows_computed(model, MANY, tmp_path) == 1
    assert rows_computed(model, MANY, tmp_path) == 0
    # shards are encoded two by two, so padding and with it rounding may differ from one batch
    whole = encode(model, MANY, "query")
    np.testing.assert_allclose(vectors(model, MANY, "query", folder=tmp_path), whole, atol=1e-6)


@pytest.mark.parametrize("damage", ["a flipped byte", "truncated", "missing", "empty"])
def test_only_a_damaged_shard_is_made_again(damage: str, five: Path, tiny_model: Path) -> None:
    shard = five / "00001.npy"
    before = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    else:
        spoilt = {"truncated": before[:-7], "empty": b""}
        flipped = before[:-1] + bytes([before[-1] ^ 1])
        shard.write_bytes(spoilt.get(damage, flipped))
    assert rows_computed(tiny(tiny_model), MANY, five.parent) == 2
    assert shard.read_bytes() == before
    assert rows_computed(tiny(tiny_model), MANY, five.parent) == 0


def test_a_damaged_shard_of_an_unfinished_store_is_made_again(
    shards_of_two: None, one_thread: None, tiny_model: Path, tmp_path: Path
) -> None:
    model = tiny(tiny_model)
    handle = stop_after(model, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        vectors(model, MANY, "query", folder=tmp_path)
    handle.remove()
    first = min(tmp_path.rglob("*.npy"))
    first.write_bytes(first.read_bytes()[:-1] + b"\x00")
    assert rows_computed(model, MANY, tmp_path) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 3}', '{"format": 3, "shards": [1]}'])
def test_a_damaged_manifest_makes_all_again(text: str, five: Path, tiny_model: Path) -> None:
    whole = manifest_of(five)
    (five / "manifest.json").write_text(text)
    assert rows_computed(tiny(tiny_model), MANY, five.parent) == 5
    assert manifest_of(five)["shards"] == whole["shards"]


def test_a_newer_store_is_refused(five: Path, tiny_model: Path) -> None:
    (five / "manifest.json").write_text(json.dumps({"format": 4, "shards": "in a database"}))
    with pytest.raises(UserError, match=r"written by a newer version .*format 4.*update tercet"):
        vectors(tiny(tiny_model), MANY, "query", folder=five.parent)
    assert (five / "00000.npy").exists()


def test_a_vector_that_is_not_finite_is_refused_by_row(
    shards_of_two: None, one_thread: None, tiny_model: Path, tmp_path: Path
) -> None:
    model = tiny(tiny_model)
    vocabulary = model.tokenizer.get_vocab()
    body: Any = model[0].auto_model
    with torch.no_grad():
        body.embeddings.word_embeddings.weight[vocabulary["live"]] = torch.nan
    with pytest.raises(UserError, match="not finite for 1 texts, the first in row 3: 'where does"):
        vectors(model, MANY, "query", folder=tmp_path)
    assert len(list(tmp_path.rglob("*.npy"))) == 1  # the shard before it


def test_a_full_disk_is_one_line_and_leaves_a_sound_store(
    shards_of_two: None, one_thread: None, tiny_model: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands for the disk; it comes after the first shard."""
    model = tiny(tiny_model)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    calls: list[int] = []

    def fill_up(*_: object) -> None:
        calls.append(1)
        if list(tmp_path.rglob("*.sha256")):  # one or, on a busy machine, some more
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))

    handle = model.register_forward_pre_hook(fill_up)
    texts = MANY * 5
    try:
        with pytest.raises(UserError, match=r"cannot be written \(File too large\); make room"):
            vectors(model, [f"{t} {i}" for i, t in enumerate(texts)], "query", folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        handle.remove()
    shards = len(list(tmp_path.rglob("*.npy")))
    assert 1 <= shards < 13 and not list(tmp_path.rglob("*.partial"))
    left = rows_computed(model, [f"{t} {i}" for i, t in enumerate(texts)], tmp_path)
    assert left == 25 - 2 * shards


def test_a_folder_that_cannot_be_written_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .*TERCET_CACHE"):
        vectors(tiny(tiny_model), TEXTS, "query", folder=tmp_path / "file")


def test_leftovers_of_killed_runs_are_cleared_away(five: Path, tiny_model: Path) -> None:
    (five / ".00001.npy.77.partial").write_bytes(b"half")
    rows_computed(tiny(tiny_model), MANY, five.parent)
    assert not list(five.glob(".*.partial"))


def test_equal_texts_of_a_shard_are_computed_once(tiny_model: Path, tmp_path: Path) -> None:
    model = tiny(tiny_model)
    assert rows_computed(model, [*TEXTS, *TEXTS[::-1]], tmp_path) == 3
    found = vectors(model, [*TEXTS, *TEXTS[::-1]], "query", folder=tmp_path)
    np.testing.assert_array_equal(found[:3], found[3:][::-1])


def test_no_texts_are_no_vectors(tiny_model: Path, tmp_path: Path) -> None:
    found = vectors(tiny(tiny_model), [], "document", folder=tmp_path)
    assert found.shape == (0, 32) and np.asarray(found).dtype == np.float32
    assert len(found[:10]) == 0 and len(found[np.zeros(0, dtype=np.int64)]) == 0


@pytest.fixture
def sharded() -> tuple[Vectors, NDArray[np.float32]]:
    """Eleven rows in shards of three, and the same in one array."""
    whole = np.random.default_rng(0).normal(size=(11, 4)).astype(np.float32)
    return Vectors([whole[i : i + 3] for i in range(0, 11, 3)], (11, 4), "f"), whole


@pytest.mark.parametrize(
    "rows",
    [
        *(
            slice(a, b, c)
            for a in (None, 0, 4, -2, 30)
            for b in (None, 6, 1, -1)
            for c in (1, 2, -1)
        ),
        np.array([0, 10, 3, 3, 2]),
        np.array([-1, -11]),
        np.array([], dtype=np.int64),
        np.array([4], dtype=np.int32),
        np.int64(7),
        -1,
    ],
    ids=str,
)
def test_vectors_are_indexed_like_an_array(
    rows: Any, sharded: tuple[Vectors, NDArray[np.float32]]
) -> None:
    found, whole = sharded
    np.testing.assert_array_equal(found[rows], whole[rows])
    assert found[rows].dtype == np.float32 and found[rows].shape == whole[rows].shape


def test_vectors_as_one_array(sharded: tuple[Vectors, NDArray[np.float32]]) -> None:
    found, whole = sharded
    np.testing.assert_array_equal(np.asarray(found), whole)
    assert np.asarray(found, dtype=np.float64).dtype == np.float64
    assert [row.tolist() for row in found] == whole.tolist()  # type: ignore[attr-defined]
    assert len(found) == 11 and found.shape == (11, 4)


@pytest.mark.parametrize("rows", [np.array([11]), np.array([-12]), np.ones(11, bool), 11])
def test_rows_that_are_not_there(rows: Any, sharded: tuple[Vectors, NDArray[np.float32]]) -> None:
    with pytest.raises(IndexError):
        sharded[0][rows]


def test_a_slice_within_a_shard_copies_nothing(five: Path, tiny_model: Path) -> None:
    found = vectors(tiny(tiny_model), MANY, "query", folder=five.parent)
    part = found[2:4]
    assert isinstance(part, np.memmap) and not part.flags.writeable
