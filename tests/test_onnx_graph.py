"""One graph from token ids to the final vector gives what the model gives, whatever it is made of.

The graph is traced on four tokens and asked with texts of all lengths: what the exporter took for
a constant would show.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
    StaticEmbedding,
    Transformer,
    WordWeights,
)
from torch import nn

from tercet.configs import ModelConfig, Prompts
from tercet.errors import UserError
from tercet.export.graph import check_exportable, input_names, write_graph
from tercet.export.parity import cosine
from tercet.export.runtime import OnnxEncoder
from tercet.export.sample import edge_texts
from tercet.export.variants import FULL, INT8, write_onnx
from tercet.models import Role, add_dense, encode, load_encoder, truncate
from tests.conftest import answer, question
from tests.encoders import KINDS, WIDTH, save_encoder

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")
ASKED = [*edge_texts(64), *map(question, range(6)), *(answer(n) * (n + 1) for n in range(8))]


def written(model: SentenceTransformer, folder: Path, *, int8: bool = False) -> OnnxEncoder:
    """The model's graph and tokenizer on disk, loaded without it."""
    write_onnx(model, folder, int8=int8)
    settings = {"prompts": model.prompts}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return OnnxEncoder(folder, INT8 if int8 else FULL)


def same(model: SentenceTransformer, graph: OnnxEncoder, dims: int | None = None) -> None:
    """Both roles, all texts: cosine at least 0.99999 and components within 1e-5."""
    roles: tuple[Role, Role] = ("query", "document")
    for role in roles:
        want, got = encode(model, ASKED, role, truncate_dim=dims), graph(ASKED, role)
        assert got.dtype == np.float32 and got.shape == want.shape
        assert cosine(want, got).min() >= 0.99999
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.fixture
def tiny(tiny_model: Path) -> SentenceTransformer:
    return load_encoder(ModelConfig(path=str(tiny_model)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture(kind: str, tmp_path: Path) -> None:
    model = load_encoder(ModelConfig(path=str(save_encoder(kind, tmp_path / "m"))))
    before = model[0].auto_model.config._attn_implementation  # type: ignore[union-attr]
    graph = written(model, tmp_path / "out")
    same(model, graph)
    assert ("token_type_ids" in graph.inputs) == (kind == "bert")
    assert model[0].auto_model.config._attn_implementation == before  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["cls", "max", "lasttoken", "mean_sqrt_len_tokens"])
def test_every_pooling(mode: Any, tiny_model: Path, tmp_path: Path) -> None:
    parts = [Transformer(str(tiny_model)), Pooling(32, pooling_mode=mode), Normalize()]
    model = SentenceTransformer(modules=parts, device="cpu").eval()
    same(model, written(model, tmp_path))


def test_layers_after_the_pooling_are_part_of_the_graph(tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = [
        Transformer(str(tiny_model)),
        Pooling(32),
        Dense(32, 24, activation_function=nn.Tanh()),
    ]
    model = SentenceTransformer(modules=[*parts, Normalize()], device="cpu").eval()
    add_dense(model, torch.randn(40, 24))
    graph = written(model, tmp_path)
    same(model, graph)
    outputs = [output.name for output in graph.session.get_outputs()]
    assert outputs == ["sentence_embedding"]  # whoever pooled by himself would miss the layers


def test_a_norm_after_the_pooling_leaves_no_token_vectors(tiny_model: Path, tmp_path: Path) -> None:
    norm = LayerNorm(32)
    with torch.no_grad():
        norm.norm.weight.copy_(torch.linspace(0.5, 2, 32))
        norm.norm.bias.copy_(torch.linspace(-1, 1, 32))
    parts = [Transformer(str(tiny_model)), Pooling(32), norm, Normalize()]
    model = SentenceTransformer(modules=parts, device="cpu").eval()
    graph = written(model, tmp_path)
    same(model, graph)
    assert [output.name for output in graph.session.get_outputs()] == ["sentence_embedding"]


def test_a_network_that_cannot_be_traced_is_named(tiny_model: Path, tmp_path: Path) -> None:
    model = load_encoder(ModelConfig(path=str(tiny_model)))

    class Odd(nn.Linear):
        """Ends in what ONNX has no operator for."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return torch.special.i0e(super().forward(input))

    model[0].auto_model.encoder.layer[0].output.dense = Odd(64, 32)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"BertModel cannot be traced by torch.onnx .*i0e") as found:
        write_graph(model, tmp_path / "model.onnx")
    assert "\n" not in str(found.value) and str(found.value).endswith("export without --onnx")


def test_a_truncation_in_the_settings_gives_way(tiny: SentenceTransformer) -> None:
    tiny.truncate_dim = 16
    truncate(tiny, 24)
    assert tiny.truncate_dim is None and tiny.get_embedding_dimension() == 24


def test_names_and_sizes_are_those_of_hugging_face(
    tiny: SentenceTransformer, tmp_path: Path
) -> None:
    import onnx

    graph = written(tiny, tmp_path)
    assert graph.inputs == input_names(tiny) == ["input_ids", "attention_mask", "token_type_ids"]
    shapes = {output.name: output.shape for output in graph.session.get_outputs()}
    assert shapes == {
        "token_embeddings": ["batch_size", "sequence_length", 32],
        "sentence_embedding": ["batch_size", 32],
    }
    for given in graph.session.get_inputs():
        assert given.shape == ["batch_size", "sequence_length"] and given.type == "tensor(int64)"
    loaded = onnx.load(tmp_path / "onnx" / "model.onnx")
    assert [(o.domain, o.version) for o in loaded.opset_import] == [("", 17)]
    onnx.checker.check_model(loaded, full_check=True)


def test_prompts_and_the_length_are_kept(tiny_model: Path, tmp_path: Path) -> None:
    prompts = Prompts(query="where is: ", document="")
    model = load_encoder(ModelConfig(path=str(tiny_model), prompts=prompts, max_length=11))
    graph = written(model, tmp_path)
    same(model, graph)
    assert {len(ids) for ids in graph.tokens(["word " * 50], "query")} == {11}


@pytest.mark.parametrize("dims", [1, 8, 32])
def test_truncated_dimensions(dims: int, tiny: SentenceTransformer, tmp_path: Path) -> None:
    cut = load_encoder(ModelConfig(path=tiny[0].auto_model.name_or_path))  # type: ignore[union-attr]
    truncate(cut, dims)
    assert cut.get_embedding_dimension() == dims
    same(tiny, written(cut, tmp_path), dims)


def static_model(normalised: bool = True) -> SentenceTransformer:
    """A table for 60 words; [CLS] and [SEP], which its tokenizer would add, are not zero."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[UNK]", "[CLS]", "[SEP]", *sorted({w for n in range(9) for w in answer(n).split()})]
    vocabulary = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    random = np.random.default_rng(0)
    table = random.normal(size=(len(words), WIDTH)) * random.uniform(0.01, 3, (len(words), 1))
    parts: list[nn.Module] = [
        StaticEmbedding(tokenizer, embedding_weights=table.astype(np.float32))
    ]
    return SentenceTransformer(modules=parts + [Normalize()] * normalised, device="cpu").eval()


@pytest.mark.parametrize("normalised", [True, False])
def test_a_static_student_is_a_masked_mean(normalised: bool, tmp_path: Path) -> None:
    model = static_model(normalised)
    graph = written(model, tmp_path)
    same(model, graph)
    assert graph.inputs == ["input_ids", "attention_mask"]
    nothing: NDArray[np.float32] = graph([""], "query")
    np.testing.assert_array_equal(nothing, np.zeros((1, WIDTH)))


def test_a_static_table_in_int8_has_a_scale_for_each_token(tmp_path: Path) -> None:
    model = static_model()
    small, whole = written(model, tmp_path / "8", int8=True), written(model, tmp_path / "32")
    assert cosine(whole(ASKED, "query"), small(ASKED, "query")).min() > 0.999
    model[0].embedding.weight.data[5] = 0  # type: ignore[union-attr]  # a row without a scale
    assert np.isfinite(written(model, tmp_path / "0", int8=True)(ASKED, "query")).all()


def test_a_truncated_static_student_is_smaller(tmp_path: Path) -> None:
    whole, cut = static_model(), static_model()
    truncate(cut, 5)
    assert cut[0].embedding.weight.shape[1] == 5  # type: ignore[union-attr]
    same(whole, written(cut, tmp_path), 5)


def test_what_no_graph_can_hold_is_named(tiny_model: Path) -> None:
    body = Transformer(str(tiny_model))
    weighted = [body, WordWeights(["a"], {"a": 1.0}), Pooling(32)]
    with pytest.raises(UserError, match="module WordWeights is not supported .*without --onnx"):
        check_exportable(SentenceTransformer(modules=weighted, device="cpu"))
    without = [body, Pooling(32, include_prompt=False)]
    model = SentenceTransformer(modules=without, prompts={"query": "find: "}, device="cpu")
    with pytest.raises(UserError, match="include_prompt: false"):
        check_exportable(model)
    model.prompts["query"] = ""
    check_exportable(model)  # nothing is left out
    with pytest.raises(UserError, match="truncate: 33 is not between 1 and the model's 32"):
        truncate(load_encoder(ModelConfig(path=str(tiny_model))), 33)
