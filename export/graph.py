"""A model as one ONNX graph: token ids in, the final vector out."""

import inspect
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    StaticEmbedding,
    Transformer,
)
from tokenizers import Tokenizer
from torch import Tensor, nn

from tercet.errors import UserError
from tercet.files import library_errors
from tercet.models import max_length, prompt_of
from tercet.models.encode import pools_without_prompt

OPSET = 17  # the first with LayerNormalization as one operator
OUTPUT = "sentence_embedding"  # `embedding` would collide with the name of a node
TOKENS = "token_embeddings"
SUPPORTED = (Transformer, StaticEmbedding, Pooling, Dense, LayerNorm, Dropout, Normalize)
POOLED = (Transformer, Pooling, Dropout, Normalize)  # pooling is the last that shapes a vector
EXAMPLE = [[2, 3, 1, 4], [3, 2, 1, 0]], [[1, 1, 1, 1], [1, 1, 1, 0]]  # ids and mask to trace with


class Graph(nn.Module):
    """The model's own modules, one after the other, as a function of tensors."""

    def __init__(self, model: SentenceTransformer, with_tokens: bool) -> None:
        super().__init__()
        self.parts, self.with_tokens = nn.ModuleList(model), with_tokens

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(B, T) integers -> (B, H) vectors, after the (B, T, E) token vectors if asked for."""
        features: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            features["token_type_ids"] = token_type_ids
        for part in self.parts:
            features = part(features)
        vectors = features[OUTPUT]
        return (features[TOKENS], vectors) if self.with_tokens else vectors


class StaticGraph(nn.Module):
    """A static student: the mean of the table's rows over the tokens that the mask keeps.

    With int8 each row of the table is stored as 8-bit integers and one float32 scale.
    """

    def __init__(self, model: SentenceTransformer, int8: bool) -> None:
        super().__init__()
        first, *rest = model
        assert isinstance(first, StaticEmbedding)
        table = first.embedding.weight.detach().float()
        scale = table.abs().amax(dim=1, keepdim=True) / 127
        whole = torch.round(table / scale.clamp(min=1e-30)).to(torch.int8)
        self.table = nn.Buffer(whole if int8 else table)
        self.scale = nn.Buffer(scale) if int8 else None
        self.parts = nn.ModuleList(rest)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T) integers -> (B, H); a text without tokens gives zeros."""
        rows = self.table[input_ids].float()
        if self.scale is not None:
            rows = rows * self.scale[input_ids]
        mask = attention_mask.unsqueeze(-1).float()
        mean = (rows * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        features = {OUTPUT: mean}
        for part in self.parts:
            features = part(features)
        return features[OUTPUT]


def check_exportable(model: SentenceTransformer) -> None:
    """Raise UserError naming what of `model` has no place in a graph over token ids."""
    for module in model:
        if not isinstance(module, SUPPORTED):
            known = ", ".join(kind.__name__ for kind in SUPPORTED)
            raise UserError(
                f"--onnx: module {type(module).__name__} is not supported (supported: {known}); "
                "export without --onnx"
            )
    if pools_without_prompt(model) and (prompt_of(model, "query") or prompt_of(model, "document")):
        raise UserError(
            "--onnx: the pooling leaves the prompt's tokens out (include_prompt: false), which a "
            "graph over token ids cannot know; export without --onnx"
        )
    if not is_static(model) and not hasattr(model.tokenizer, "backend_tokenizer"):
        raise UserError(
            f"--onnx: {type(model.tokenizer).__name__} is no tokenizer of the tokenizers library, "
            "whose file goes beside the graph; export without --onnx"
        )


def is_static(model: SentenceTransformer) -> bool:
    """Whether the model is a table of token vectors without a transformer."""
    return isinstance(model[0], StaticEmbedding)


def gives_tokens(model: SentenceTransformer) -> bool:
    """Whether token vectors are an output too: who pools them himself gets the right vectors."""
    return all(isinstance(part, POOLED) for part in model)


def write_graph(model: SentenceTransformer, path: Path, *, int8: bool = False) -> None:
    """Write the model as ONNX, opset 17, with dynamic batch and length.

    Inputs (batch_size, sequence_length) int64: `input_ids`, `attention_mask` and, if the network
    uses them, `token_type_ids`. Output `sentence_embedding` (batch_size, H) float32; before it,
    where no layer stands between pooling and vector, `token_embeddings`, as Hugging Face's tools
    name them. `int8` is for static models only: a transformer is quantised afterwards.
    Raises UserError if the network does something that cannot be traced.
    """
    inputs = input_names(model)
    static = is_static(model)
    graph = StaticGraph(model, int8) if static else Graph(model, gives_tokens(model))
    outputs = output_names(model)
    axes = {name: {0: "batch_size", 1: "sequence_length"} for name in (*inputs, TOKENS)}
    ids, mask = (torch.tensor(rows) for rows in EXAMPLE)
    example = (ids, mask, torch.zeros_like(ids))[: len(inputs)]
    traced = library_errors(
        f"--onnx: {_body(model)} cannot be traced by torch.onnx", "export without --onnx"
    )
    with traced, _plain_attention(model), _quiet(), torch.no_grad():
        torch.onnx.export(
            graph.eval(),
            example,
            str(path),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes={
                **{name: axes[name] for name in (*inputs, *outputs) if name in axes},
                OUTPUT: {0: "batch_size"},
            },
            opset_version=OPSET,
            dynamo=False,
        )


def input_names(model: SentenceTransformer) -> list[str]:
    """What the graph is fed, in order."""
    names = ["input_ids", "attention_mask"]
    body = getattr(model[0], "auto_model", None)
    if (
        body is not None
        and "token_type_ids" in model.tokenizer.model_input_names
        and "token_type_ids" in inspect.signature(body.forward).parameters
    ):
        names.append("token_type_ids")
    return names


def output_names(model: SentenceTransformer) -> list[str]:
    """What the graph gives, in order."""
    return [TOKENS, OUTPUT] if gives_tokens(model) else [OUTPUT]


def write_tokenizer(model: SentenceTransformer, path: Path) -> None:
    """Write the tokenizer so that it cuts, pads and adds special tokens as the model expects."""
    static = is_static(model)
    whole: Any = model.tokenizer if static else model.tokenizer.backend_tokenizer
    rules = json.loads(whole.to_str())
    if static:
        rules["post_processor"] = None  # special tokens are not part of a static model's text
    backend = Tokenizer.from_str(json.dumps(rules))
    if static:
        backend.enable_padding(pad_id=0)
    else:
        backend.enable_truncation(max_length(model), direction=model.tokenizer.truncation_side)
        backend.enable_padding(
            pad_id=model.tokenizer.pad_token_id or 0, pad_token=str(model.tokenizer.pad_token)
        )
    path.write_text(backend.to_str(pretty=True), encoding="utf-8")


def _body(model: SentenceTransformer) -> str:
    """The class of the network, as transformers calls it."""
    return type(getattr(model[0], "auto_model", model[0])).__name__


@contextmanager
def _plain_attention(model: SentenceTransformer) -> Iterator[None]:
    """Attention written out as products and a softmax: what runtimes know how to fuse."""
    body = getattr(model[0], "auto_model", None)
    before = getattr(getattr(body, "config", None), "_attn_implementation", None)
    if body is None or before in (None, "eager"):
        yield
        return
    body.set_attn_implementation("eager")
    try:
        yield
    finally:
        body.set_attn_implementation(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of every size that it takes for a constant; parity is what proves it."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
