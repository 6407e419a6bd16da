"""The student factory: smaller models made from a larger one, and what was cut from it."""

import tempfile
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from tercet.configs import Scratch, StudentConfig
from tercet.models.encode import encode
from tercet.models.heads import narrow, settle_width
from tercet.models.layers import keep_layers, layer_count, transformer
from tercet.models.load import max_length
from tercet.models.routes import refuse_pair
from tercet.models.static import static_student, token_vectors
from tercet.models.surgery import Vocabulary
from tercet.models.vocabulary import Corpus, keep_tokens, token_counts

PCA_TEXTS = 50_000  # evenly drawn from a larger corpus: a PCA of hundreds of dims needs no more


@dataclass(frozen=True)
class Size:
    """How large a model is."""

    parameters: int
    megabytes: float  # of its parameters, 10 ** 6 bytes
    layers: int  # of the transformer; 0 if there is none
    tokens: int  # in the vocabulary
    dims: int  # of a sentence vector

    @classmethod
    def of(cls, model: SentenceTransformer) -> "Size":
        parameters = list(model.parameters())
        return cls(
            parameters=sum(p.numel() for p in parameters),
            megabytes=sum(p.numel() * p.element_size() for p in parameters) / 1e6,
            layers=layer_count(model),
            tokens=_tokens(model),
            dims=model.get_embedding_dimension() or 0,
        )


@dataclass(frozen=True)
class Student:
    """A student, and what it was cut down from."""

    model: SentenceTransformer
    before: Size
    after: Size
    covered: float  # share of the corpus's tokens that the student's vocabulary still has


def make_student(
    model: SentenceTransformer, settings: StudentConfig, corpus: Corpus, seed: int = 0
) -> Student:
    """A smaller model out of `model`, which is taken apart. No weight is trained.

    cut: vocabulary, then layers, then dims by a PCA of the cut model's vectors of the corpus; all
    else stays, prompts and pooling included, and asking for everything changes no bit. static: a
    table of token vectors (`static_student`). scratch: random weights drawn from `seed`.
    Raises UserError if the model has no such layers, tokens or dims, or the corpus is too small.
    """
    refuse_pair(model, "model.path")
    settle_width(model)
    if settings.kind != "cut" or settings.vocabulary is not None:
        transformer(model)  # its tokenizer and its vectors of tokens are what the student has
    before, covered = Size.of(model), 1.0
    counts = np.zeros(0, dtype=np.int64)
    if settings.vocabulary is not None or settings.kind == "static":
        counts = token_counts(model, corpus)
    if settings.vocabulary is not None:
        kept = keep_tokens(model, counts, settings.vocabulary, settings.characters)
        covered = float(counts[kept].sum() / max(1, counts.sum()))
        counts = counts[kept]
    if settings.kind == "static":
        table = token_vectors(model)
        model = static_student(model, table, counts, settings.dims, settings.sif, settings.centre)
    elif settings.kind == "scratch":
        model = _from_scratch(model, settings.scratch, seed)
    else:
        keep_layers(model, settings.layers)
        if settings.dims is not None:
            narrow(model, _sample_vectors(model, corpus), settings.dims)
    return Student(model, before, Size.of(model), covered)


def _tokens(model: SentenceTransformer) -> int:
    """The size of the vocabulary; a static model holds the tokenizers library's own object."""
    tokenizer = model.tokenizer
    return tokenizer.get_vocab_size() if isinstance(tokenizer, Tokenizer) else len(tokenizer)


def _sample_vectors(model: SentenceTransformer, corpus: Corpus) -> NDArray[np.float32]:
    """(N, H) vectors of at most PCA_TEXTS texts of the corpus, each role by its prompt."""
    total = sum(map(len, corpus.values()))
    step = max(1, -(-total // PCA_TEXTS))
    parts = [
        encode(model, texts[::step], role, title=f"{role} vectors for the PCA")
        for role, texts in corpus.items()
    ]
    return np.concatenate(parts)


def _from_scratch(teacher: SentenceTransformer, shape: Scratch, seed: int) -> SentenceTransformer:
    """A BERT that has learnt nothing, with the teacher's tokenizer, length, prompts and metric."""
    tokenizer = teacher.tokenizer
    config = BertConfig(
        vocab_size=Vocabulary(tokenizer).size,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=max(max_length(teacher), 512),
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        body = BertModel(config)
    with tempfile.TemporaryDirectory() as folder:
        body.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        modules = [Transformer(folder), Pooling(shape.width, pooling_mode="mean")]
    modules += [module for module in teacher if isinstance(module, Normalize)]
    return SentenceTransformer(
        modules=modules,
        prompts={name: prompt or "" for name, prompt in teacher.prompts.items()},
        similarity_fn_name=teacher.similarity_fn_name,
        device=str(teacher.device),
    ).eval()
