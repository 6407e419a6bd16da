"""What a student is cut from stays what it was: parity against the uncut model, layer by layer,
token by token, for every kind of encoder and tokenizer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    StaticEmbedding,
)
from torch import nn
from transformers import ByT5Tokenizer

from tercet.configs import ModelConfig, StudentConfig
from tercet.errors import UserError
from tercet.models import Corpus, Size, encode, load_encoder, make_student, tokenise
from tercet.models.heads import narrow, principal_directions
from tercet.models.layers import chosen_layers, keep_layers, transformer
from tercet.models.static import static_student, token_vectors
from tercet.models.surgery import Vocabulary
from tercet.models.vocabulary import keep_tokens, token_counts
from tests.conftest import NAMES, answer, question
from tests.encoders import KINDS, LAYERS, TEXTS, WIDTH, save_encoder

pytestmark = pytest.mark.usefixtures("one_thread")
Vectors = NDArray[np.float32]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    return {kind: save_encoder(kind, folder / kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, encoders: dict[str, Path]) -> str:
    return str(encoders[request.param])


def load(path: str | Path) -> SentenceTransformer:
    return load_encoder(ModelConfig(path=str(path)))


def vectors(model: SentenceTransformer, texts: list[str] = TEXTS) -> Vectors:
    return encode(model, texts, "query")


def reloaded(model: SentenceTransformer, folder: Path) -> SentenceTransformer:
    model.save(str(folder / "saved"), create_model_card=False)
    return load(folder / "saved")


# Layers


def test_keeping_all_layers_changes_no_bit(path: str) -> None:
    model, whole = load(path), vectors(load(path))
    keep_layers(model, "all")
    keep_layers(model, list(range(LAYERS)))
    assert np.array_equal(vectors(model), whole)


@pytest.mark.parametrize("kept", [[0, 2], [0, 1, 3]])
def test_the_layers_that_stay_are_the_old_ones(path: str, kept: list[int], tmp_path: Path) -> None:
    model, want = load(path), load(path)
    keep_layers(model, kept)
    for module in transformer(want).modules():  # the reference: take the others out of the list
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == LAYERS:
                setattr(module, name, nn.ModuleList(child[i] for i in kept))
    assert np.abs(vectors(model) - vectors(want)).max() < 1e-6
    assert np.abs(vectors(model) - vectors(load(path))).max() > 1e-3
    assert np.array_equal(vectors(reloaded(model, tmp_path)), vectors(model))
    assert Size.of(model).layers == len(kept)
    assert model.prompts["query"] == "query: "


@pytest.mark.parametrize("wanted", ["first:7", "last:7", [0, 6], [-1], []])
def test_a_layer_that_is_not_there_is_named(wanted: str | list[int]) -> None:
    with pytest.raises(UserError, match=r"student.layers: .* the model has layers 0 to 5"):
        chosen_layers(wanted, 6)


def test_an_encoder_whose_first_layer_is_special_says_so(encoders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="modernbert .* keep layer 0"):
        keep_layers(load(encoders["modernbert"]), "last:2")


# Vocabulary


@pytest.mark.parametrize("target", ["used", 0.8])
@pytest.mark.parametrize("characters", ["all", "used"])
def test_texts_that_need_no_dropped_token_stay_as_they_are(
    path: str, target: str | float, characters: str, tmp_path: Path
) -> None:
    whole, model = load(path), load(path)
    corpus = [question(n) for n in range(0, len(NAMES), 3)]
    counts = token_counts(model, {"query": corpus})
    size = len(Vocabulary(model.tokenizer))
    wanted = "used" if target == "used" else int(float(target) * size)
    kept = keep_tokens(model, counts, wanted, characters)  # type: ignore[arg-type]
    assert len(kept) == len(Vocabulary(model.tokenizer)) < size
    assert wanted == "used" or len(kept) == wanted
    assert transformer(model).get_input_embeddings().weight.shape == (len(kept), WIDTH)  # type: ignore[union-attr]
    place = {int(old): new for new, old in enumerate(kept)}
    covered = [
        text
        for text, ids in zip(TEXTS, tokenise(whole, TEXTS, "query"), strict=True)
        if set(ids.tolist()) <= place.keys()
    ]
    assert set(corpus) <= set(covered)
    again = reloaded(model, tmp_path)
    for student in (model, again):
        for before, after in zip(
            tokenise(whole, covered, "query"), tokenise(student, covered, "query"), strict=True
        ):
            assert [place[i] for i in before.tolist()] == after.tolist()
        assert np.abs(vectors(student, covered) - vectors(whole, covered)).max() < 1e-6
    assert np.array_equal(vectors(again), vectors(model))
    for role in ("pad", "cls", "sep", "mask", "unk"):
        token = getattr(whole.tokenizer, f"{role}_token")
        assert getattr(again.tokenizer, f"{role}_token") == token
        assert (
            getattr(again.tokenizer, f"{role}_token_id")
            == place[getattr(whole.tokenizer, f"{role}_token_id")]
        )


def test_random_words_of_kept_tokens_are_cut_the_same(path: str) -> None:
    """Words made at random meet merges and paths that no corpus shows."""
    whole, model = load(path), load(path)
    counts = token_counts(model, {"document": TEXTS[:40]})
    kept = keep_tokens(model, counts, "used")
    place = {int(old): new for new, old in enumerate(kept)}
    random = np.random.default_rng(0)
    letters = np.array(list("abcdegiklmnorstuvw  "))
    texts = ["".join(random.choice(letters, size=12)) for _ in range(2000)]
    compared = 0
    for before, after in zip(
        tokenise(whole, texts, "document"), tokenise(model, texts, "document"), strict=True
    ):
        if set(before.tolist()) <= place.keys():
            assert [place[i] for i in before.tolist()] == after.tolist()
            compared += 1
    assert compared > 20


def test_a_target_of_all_tokens_changes_no_bit(path: str) -> None:
    model, whole = load(path), vectors(load(path))
    counts = token_counts(model, {"query": TEXTS})
    kept = keep_tokens(model, counts, len(counts) + 5)
    assert kept.tolist() == list(range(len(counts)))
    assert np.array_equal(vectors(model), whole)


def test_a_target_below_what_always_stays_is_refused(path: str) -> None:
    model = load(path)
    counts = token_counts(model, {"query": TEXTS[:3]})
    with pytest.raises(UserError, match=r"student.vocabulary: 4 tokens are fewer than the \d+"):
        keep_tokens(model, counts, 4)


# Width


def test_the_pca_keeps_inner_products_as_well_as_any_map(encoders: dict[str, Path]) -> None:
    model = load(encoders["bert"])
    whole = vectors(model)
    narrow(model, whole, 5)
    u, s, _ = np.linalg.svd(whole.astype(np.float64), full_matrices=False)
    best = (u[:, :5] * s[:5]) @ (u[:, :5] * s[:5]).T
    got = vectors(model)
    assert got.shape[1] == model.get_embedding_dimension() == 5
    rows = (u[:, :5] * s[:5]) / np.linalg.norm(u[:, :5] * s[:5], axis=1, keepdims=True)
    assert np.abs(got @ got.T - rows @ rows.T).max() < 1e-5
    assert np.abs(best - whole @ whole.T).max() < 1


def test_the_map_is_saved_as_a_dense_without_bias(
    encoders: dict[str, Path], tmp_path: Path
) -> None:
    model = load(encoders["mpnet"])
    narrow(model, vectors(model), 5)
    again = SentenceTransformer(str(reloaded(model, tmp_path) and tmp_path / "saved"), device="cpu")
    dense, last = list(again)[-2:]
    assert isinstance(dense, Dense) and not dense.bias and isinstance(last, Normalize)
    assert np.abs(again.encode_query(TEXTS) - vectors(model)).max() < 1e-6


def test_the_map_has_the_models_dtype(encoders: dict[str, Path], tmp_path: Path) -> None:
    model = load_encoder(ModelConfig(path=str(encoders["bert"]), dtype="bfloat16"))
    whole = vectors(model)
    narrow(model, whole, 5)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    exact = load(encoders["bert"])
    narrow(exact, whole, 5)
    np.testing.assert_allclose(vectors(model), vectors(exact), atol=0.05)
    model.save(str(tmp_path / "saved"), create_model_card=False)
    settings = ModelConfig(path=str(tmp_path / "saved"), dtype="bfloat16")
    assert np.array_equal(vectors(load_encoder(settings)), vectors(model))


def test_all_dims_change_no_bit(encoders: dict[str, Path]) -> None:
    model = load(encoders["bert"])
    whole = vectors(model)
    narrow(model, whole, WIDTH)
    assert np.array_equal(vectors(model), whole)


def test_a_pca_of_too_few_texts_or_too_many_dims_is_refused() -> None:
    few = np.random.default_rng(0).normal(size=(6, 20)).astype(np.float32)
    with pytest.raises(UserError, match="to 8 dimensions needs more texts: the 6 there are span 6"):
        principal_directions(few, 8)
    with pytest.raises(UserError, match="span 1; give a larger corpus"):
        principal_directions(np.repeat(few[:1], 50, axis=0), 2)
    with pytest.raises(UserError, match="student.dims: 21 is more than the model's width 20"):
        principal_directions(few, 21)


# Static students


@pytest.fixture
def static(encoders: dict[str, Path]) -> SentenceTransformer:
    teacher = load(encoders["bert"])
    counts = token_counts(teacher, {"query": TEXTS})
    return static_student(teacher, token_vectors(teacher), counts, None, 0.01)


def test_a_static_table_is_the_teacher_on_single_tokens(
    static: SentenceTransformer, encoders: dict[str, Path]
) -> None:
    teacher = load(encoders["bert"])
    counts = token_counts(teacher, {"query": TEXTS})
    alone = token_vectors(teacher)
    as_it_is = static_student(teacher, alone, counts, None, 0.01, centre=False)
    table, uncentred = (
        model[0].embedding.weight.detach().numpy()  # type: ignore[union-attr]
        for model in (static, as_it_is)
    )
    mean = alone.mean(axis=0)
    assert np.array_equal(alone, token_vectors(teacher))
    ids = teacher.tokenizer.convert_tokens_to_ids(["forest", "where", "q", "##s"])
    for token in ids:
        features = {
            "input_ids": torch.tensor(
                [[teacher.tokenizer.cls_token_id, token, teacher.tokenizer.sep_token_id]]
            ),
            "attention_mask": torch.ones(1, 3, dtype=torch.int64),
        }
        with torch.no_grad():
            said = teacher(features)["sentence_embedding"][0].numpy()
        weight = 0.01 / (0.01 + counts[token] / counts.sum())
        np.testing.assert_allclose(table[token], (said - mean) * weight, atol=1e-6)
        np.testing.assert_allclose(uncentred[token], said * weight, atol=1e-6)
    assert not table[teacher.tokenizer.all_special_ids].any()


def test_a_static_vector_is_the_mean_of_its_tokens(
    static: SentenceTransformer, tmp_path: Path
) -> None:
    table = static[0].embedding.weight.detach().numpy()  # type: ignore[union-attr]
    texts = [*TEXTS, "", "word " * 500, "日本"]
    want = []
    for text in texts:
        ids = static.tokenizer.encode(text, add_special_tokens=False).ids
        mean = table[ids].mean(axis=0) if ids else np.zeros(WIDTH)
        want.append(mean / max(np.linalg.norm(mean), 1e-12))
    again = reloaded(static, tmp_path)
    assert isinstance(again[0], StaticEmbedding)
    for model in (static, again):
        np.testing.assert_allclose(vectors(model, texts), np.stack(want), atol=1e-6)
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(theirs.encode_query(texts), np.stack(want), atol=1e-6)


def test_a_token_stands_without_the_prompt(encoders: dict[str, Path]) -> None:
    """A pooling that leaves the prompt out has none to leave out of a single token."""
    plain, spare = load(encoders["bert"]), load(encoders["bert"])
    spare.prompts["document"] = "document: "
    pooling: Pooling = spare[1]  # type: ignore[assignment]
    pooling.include_prompt = False
    np.testing.assert_allclose(token_vectors(spare), token_vectors(plain), atol=1e-6)


def test_a_static_student_may_be_narrow(encoders: dict[str, Path]) -> None:
    teacher = load(encoders["roberta"])
    counts = token_counts(teacher, {"query": TEXTS})
    alone = token_vectors(teacher)
    assert alone.shape == (len(counts), WIDTH)
    assert static_student(teacher, alone, counts, 4, 0.0).get_embedding_dimension() == 4
    with pytest.raises(UserError, match="student.dims: 17"):
        static_student(teacher, alone, counts, 17, 0.0)


def test_a_static_model_has_no_layers_and_no_maximum(
    static: SentenceTransformer, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="StaticEmbedding holds no transformer layers"):
        keep_layers(static, "first:1")
    static.save(str(tmp_path / "saved"), create_model_card=False)
    with pytest.raises(UserError, match="model.max_length: .* has no transformer"):
        load_encoder(ModelConfig(path=str(tmp_path / "saved"), max_length=8))


# The factory


def test_asking_for_nothing_changes_no_bit(path: str) -> None:
    made = make_student(load(path), StudentConfig(), {})
    assert np.array_equal(vectors(made.model), vectors(load(path)))
    assert made.before == made.after and made.covered == 1.0


def test_what_a_model_cuts_off_its_vectors_stays_off(encoders: dict[str, Path]) -> None:
    """A checkpoint may say that its vectors end after so many dimensions."""
    corpus: Corpus = {"query": TEXTS}

    def made(**settings: Any) -> SentenceTransformer:
        model = load(encoders["bert"])
        model.truncate_dim = 8
        return make_student(model, StudentConfig(**settings), corpus).model

    model = load(encoders["bert"])
    model.truncate_dim = 8
    np.testing.assert_allclose(vectors(made()), vectors(model), atol=1e-6)
    widths = [vectors(made(**settings)).shape[1] for settings in ({"dims": 5}, {"kind": "static"})]
    assert widths == [5, 8]
    with pytest.raises(UserError, match="student.dims: 9 is more than the model's width 8"):
        made(dims=9)


def test_the_size_of_any_tokenizers_vocabulary(encoders: dict[str, Path]) -> None:
    """Some are written in Python and know nothing of the tokenizers library."""
    model = load(encoders["bert"])
    assert Size.of(model).tokens == len(Vocabulary(model.tokenizer))
    model[0].processor = ByT5Tokenizer()  # type: ignore[assignment]
    assert not hasattr(model.tokenizer, "backend_tokenizer")
    assert Size.of(model).tokens == len(model.tokenizer)
    with pytest.raises(UserError, match="ByT5Tokenizer is no WordPiece, BPE or Unigram tokenizer"):
        make_student(model, StudentConfig(vocabulary="used"), {})


def test_all_cuts_together(encoders: dict[str, Path], tmp_path: Path) -> None:
    settings = StudentConfig(vocabulary="used", layers="even", dims=6)
    corpus: Corpus = {"query": TEXTS[:30], "document": TEXTS[30:60]}
    made = make_student(load(encoders["roberta"]), settings, corpus)
    assert (made.before.layers, made.before.dims) == (LAYERS, WIDTH)
    assert (made.after.layers, made.after.dims) == (2, 6)
    assert made.after.tokens < made.before.tokens
    assert made.after.parameters == sum(p.numel() for p in made.model.parameters())
    assert made.after.megabytes == made.after.parameters * 4 / 1e6
    assert made.covered == 1.0
    again = reloaded(made.model, tmp_path)
    assert np.array_equal(vectors(again), vectors(made.model))
    assert again.prompts["query"] == "query: " and again.similarity_fn_name == "cosine"


def test_a_smaller_vocabulary_says_what_it_covers(encoders: dict[str, Path]) -> None:
    teacher = load(encoders["bert"])
    size = len(Vocabulary(teacher.tokenizer).special | Vocabulary(teacher.tokenizer).characters)
    settings = StudentConfig(vocabulary=size + 5, kind="static")
    made = make_student(teacher, settings, {"query": [answer(n) for n in range(9)]})
    assert 0.3 < made.covered < 1.0
    assert made.after.tokens == size + 5 and made.after.layers == 0


def test_a_student_from_scratch_is_seeded(encoders: dict[str, Path], tmp_path: Path) -> None:
    settings = StudentConfig(kind="scratch", scratch={"layers": 1, "width": 8, "heads": 2})  # type: ignore[arg-type]
    state = torch.get_rng_state()
    made = [make_student(load(encoders["roberta"]), settings, {}, seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    one, same, other = (vectors(student.model) for student in made)
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert (made[0].after.layers, made[0].after.dims) == (1, 8)
    again = reloaded(made[0].model, tmp_path)
    assert np.array_equal(vectors(again), one) and again.prompts["query"] == "query: "
