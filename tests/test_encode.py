"""Our encoder gives what sentence-transformers gives, in the order of the texts."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Normalize,
    Pooling,
    StaticEmbedding,
)

from tercet.configs import ModelConfig, Prompts
from tercet.errors import UserError
from tercet.models import Role, encode, load_encoder, single_encoder, token_batches, tokenise
from tercet.models.encode import encode_parts

TEXTS = [
    "a bamex is an animal of the forest",
    "where does the donag live",
    "",
    "the the the " * 40,  # longer than the model reads
    "a bamex is an animal of the forest",
    "of",
]


@pytest.fixture
def model(tiny_model: Path) -> SentenceTransformer:
    prompts = Prompts(query="where is: ", document="animal: ")
    return load_encoder(ModelConfig(path=str(tiny_model), max_length=32, prompts=prompts))


@pytest.mark.parametrize("budget", [1, 40, 4096])
def test_vectors_are_those_of_sentence_transformers(
    model: SentenceTransformer, budget: int
) -> None:
    for role, theirs in (("query", model.encode_query), ("document", model.encode_document)):
        got = encode(model, TEXTS, role, batch_tokens=budget)  # type: ignore[arg-type]
        np.testing.assert_allclose(got, theirs(TEXTS), atol=1e-6)


def test_a_pooling_that_leaves_the_prompt_out_is_followed(tiny_model: Path) -> None:
    body = SentenceTransformer(str(tiny_model), device="cpu")[0]
    pooling = Pooling(32, pooling_mode="mean", include_prompt=False)
    prompts = {"query": "where is: ", "document": "animal: "}
    model = SentenceTransformer(
        modules=[body, pooling, Normalize()], device="cpu", prompts=prompts
    ).eval()
    texts = [text for text in TEXTS if text]
    for role, theirs in (("query", model.encode_query), ("document", model.encode_document)):
        got = encode(model, texts, role)  # type: ignore[arg-type]
        np.testing.assert_allclose(got, theirs(texts), atol=1e-6)


def test_a_model_whose_order_inner_products_do_not_give_is_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    def saved(similarity: Any, unit: bool) -> str:
        body, pooling = list(SentenceTransformer(str(tiny_model), device="cpu"))[:2]
        modules = [body, pooling, Normalize()] if unit else [body, pooling]
        model = SentenceTransformer(modules=modules, similarity_fn_name=similarity, device="cpu")
        path = tmp_path / f"{similarity}-{unit}"
        model.save(str(path), create_model_card=False)
        return str(path)

    for similarity, unit in (("euclidean", False), ("manhattan", False), ("manhattan", True)):
        path = saved(similarity, unit)
        with pytest.raises(UserError, match=f"model: {path} compares vectors by {similarity}"):
            load_encoder(ModelConfig(path=path), "model")
        wanted = load_encoder(ModelConfig(path=path, normalize=True))
        assert wanted.similarity_fn_name == "cosine" and isinstance(wanted[-1], Normalize)
        raw = load_encoder(ModelConfig(path=path, normalize=False))
        assert raw.similarity_fn_name == "dot" and not isinstance(raw[-1], Normalize)
    units = load_encoder(ModelConfig(path=saved("euclidean", True)))
    found = encode(units, TEXTS, "document")
    theirs = units.similarity(found, found).numpy()  # less the distance: it falls as products rise
    np.testing.assert_allclose(theirs**2, 2 - 2 * found @ found.T, atol=1e-5)


def test_equal_texts_are_computed_once_and_order_is_kept(model: SentenceTransformer) -> None:
    rows = []
    handle = model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0]["input_ids"])))
    vectors = encode(model, TEXTS * 3, "query")
    handle.remove()
    assert sum(rows) == len(set(TEXTS))
    assert np.array_equal(vectors[: len(TEXTS)], vectors[len(TEXTS) : 2 * len(TEXTS)])
    assert np.array_equal(vectors[0], vectors[4]) and not np.array_equal(vectors[0], vectors[1])


def test_a_model_in_training_stays_in_training(model: SentenceTransformer) -> None:
    model.train()
    encode(model, TEXTS, "query")
    assert model.training


def test_a_model_in_training_keeps_nothing_that_its_backward_pass_cannot_use(
    model: SentenceTransformer,
) -> None:
    seen: list[bool] = []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.is_inference_mode_enabled()))
    for training in (True, False):
        encode(model.train(training), ["a text"], "query")
    assert seen == [False, True]


def test_a_tokenizer_gets_a_window_of_texts_at_a_time(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: what it keeps of each is a hundred bytes a token."""
    whole, sizes = tokenise(model, TEXTS, "query"), []
    kind = type(model.tokenizer)
    plain = kind.__call__

    def noted(self: object, texts: list[str], **how: object) -> object:
        sizes.append(len(texts))
        return plain(self, texts, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "__call__", noted)
    monkeypatch.setattr(sys.modules[tokenise.__module__], "WINDOW", 4)
    assert [ids.tolist() for ids in tokenise(model, TEXTS, "query")] == [w.tolist() for w in whole]
    assert sizes == [4, 2]


def test_no_text_gives_no_vector(model: SentenceTransformer) -> None:
    assert encode(model, [], "query").shape == (0, 32)


def test_damaged_weights_are_refused(model: SentenceTransformer) -> None:
    with torch.no_grad():
        next(model.parameters())[:] = torch.nan
    with pytest.raises(UserError, match="not finite for 6 texts, the first in row 0: 'a bamex is"):
        encode(model, TEXTS, "document")


def test_batches_hold_every_text_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 200)
    batches = token_batches(lengths, 120)
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    assert all(len(b) * lengths[b].max() <= 120 for b in batches)


def test_the_number_of_threads_changes_no_bit(model: SentenceTransformer) -> None:
    """Also: it is restored, and every thread's modules share the weights."""
    before = torch.get_num_threads()
    texts = [f"{text} {word}" for text in TEXTS for word in ("river", "cave", "city", "desert")]
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(encode(model, texts, "query", batch_tokens=64))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*found)


def test_one_text_is_one_pass_of_the_model_itself_with_all_threads(
    model: SentenceTransformer,
) -> None:
    roles: tuple[Role, ...] = ("query", "document")
    want = {role: encode(model, TEXTS, role) for role in roles}
    passes: list[tuple[int, bool, int]] = []

    def note(module: torch.nn.Module, args: Any) -> None:
        passes.append((len(args[0]["input_ids"]), module is model, torch.get_num_threads()))

    model.register_forward_pre_hook(note)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for role in roles:
            one = single_encoder(model, role)
            np.testing.assert_allclose([one(text)[0] for text in TEXTS], want[role], atol=1e-6)
    finally:
        torch.set_num_threads(before)
    assert passes == [(1, True, 3)] * (2 * len(TEXTS))
    model.truncate_dim = 8
    cut = encode(model, TEXTS[:1], "query")
    np.testing.assert_allclose(single_encoder(model, "query")(TEXTS[0]), cut, atol=1e-6)
    with torch.no_grad():
        next(model.parameters())[:] = torch.nan
    with pytest.raises(UserError, match="not finite for 1 texts, the first in row 0: 'of'"):
        single_encoder(model, "query")("of")


def test_a_static_model_takes_its_texts_as_they_come(model: SentenceTransformer) -> None:
    """Nothing is padded: one pass over all, without sorting, and no copy for another thread."""
    random = np.random.default_rng(0).normal(size=(model.tokenizer.vocab_size, 8))
    tokenizer = model.tokenizer.backend_tokenizer
    tokenizer.no_truncation()
    table = StaticEmbedding(tokenizer, embedding_weights=random.astype(np.float32))
    static = SentenceTransformer(modules=[table, Normalize()], device="cpu").eval()
    passes = []
    static.register_forward_pre_hook(lambda _, args: passes.append(len(args[0]["offsets"])))
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found = encode(static, TEXTS * 3, "query", batch_tokens=16)
    finally:
        torch.set_num_threads(before)
    assert passes == [len(set(TEXTS))] * 2
    np.testing.assert_allclose(found, static.encode(TEXTS * 3), atol=1e-6)
    one = single_encoder(static, "query")
    np.testing.assert_allclose([one(text)[0] for text in TEXTS * 3], found, atol=1e-6)


def test_fewer_dimensions_stay_unit_vectors_if_they_were(model: SentenceTransformer) -> None:
    whole = encode(model, TEXTS, "document")
    cut = encode(model, TEXTS, "document", truncate_dim=8)
    want = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, want, atol=1e-6)
    model.truncate_dim = 8  # as a checkpoint may say of itself
    np.testing.assert_array_equal(encode(model, TEXTS, "document"), cut)
    model.truncate_dim = None
    del model._modules["2"]  # Normalize
    plain = encode(model, TEXTS, "document", truncate_dim=8)
    np.testing.assert_allclose(plain, encode(model, TEXTS, "document")[:, :8], atol=1e-6)


def test_parts_come_one_by_one_and_depend_on_themselves_alone(model: SentenceTransformer) -> None:
    seen: list[int] = []

    def advance(done: int = 1, note: str = "") -> None:
        seen.append(done)

    parts = [TEXTS, ["of", "of", "the"], TEXTS[:2]]
    found = list(encode_parts(model, parts, "query", advance))
    assert sum(seen) == sum(map(len, parts))
    for part, vectors in zip(parts, found, strict=True):
        (alone,) = encode_parts(model, [part], "query", advance)
        np.testing.assert_array_equal(vectors, alone)


@pytest.mark.parametrize("how", ["compiled", "autocast"])
def test_threads_run_a_model_that_training_has_wrapped(
    how: str, model: SentenceTransformer
) -> None:
    """As in the evaluation during a run."""
    if how == "compiled":
        model.compile(backend="eager", dynamic=True)
    else:
        plain = model.forward
        model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(plain)  # type: ignore[method-assign]
    want = encode(model, TEXTS, "query", batch_tokens=64)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        got = encode(model, TEXTS, "query", batch_tokens=64)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(got, want)
