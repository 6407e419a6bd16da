"""Tiny encoders of the usual kinds, with tokenizers trained on the spot: no network, no weights."""

import json
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    ByT5Tokenizer,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    MPNetTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizer,
)

from tests.conftest import NAMES, answer, question

LAYERS, WIDTH, LENGTH = 4, 16, 64
TEXTS = [f(n) for f in (question, answer) for n in range(len(NAMES))] + [
    "Grüße aus Köln, naïve café!",
    "def f(x): return [y ** 2 for y in x]  # the 12 squares",
    "日本語 and 🙂",
]
SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": LENGTH + 2,
}
CLS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
S = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def wordpiece(special: list[str]) -> dict[str, int]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer.get_vocab()


def byte_bpe(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def unigram() -> list[tuple[str, float]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=S[:4], unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    return [(piece, score) for piece, score in pieces] + [("<mask>", 0.0)]


def roberta_tokenizer() -> PreTrainedTokenizerBase:
    model = json.loads(byte_bpe(S).to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return RobertaTokenizer(vocab=model["vocab"], merges=merges, model_max_length=LENGTH)


def mpnet_tokenizer() -> PreTrainedTokenizerBase:
    special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    return MPNetTokenizer(vocab=wordpiece(special), model_max_length=LENGTH)


def modernbert_tokenizer() -> PreTrainedTokenizerBase:
    """Special tokens after the vocabulary, as in GPT-NeoX's."""
    tokenizer = byte_bpe([])
    tokenizer.add_special_tokens(CLS)
    ids = {name: tokenizer.token_to_id(name) for name in CLS}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")],
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), CLS, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=LENGTH,
        **{f"{role}_token": name for role, name in names.items()},
    )


def bodies(kind: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A random network and its tokenizer."""
    if kind in ("bert", "distilbert"):
        tokenizer = BertTokenizer(vocab=wordpiece(CLS), model_max_length=LENGTH)
        config = BertConfig(vocab_size=len(tokenizer), pad_token_id=0, **SHAPE)
        if kind == "bert":
            return BertModel(config), tokenizer
        small = DistilBertConfig(
            vocab_size=len(tokenizer), dim=WIDTH, n_layers=LAYERS, n_heads=2, hidden_dim=32
        )
        return DistilBertModel(small), tokenizer
    if kind == "bytes":  # a tokenizer in Python alone
        tokenizer = ByT5Tokenizer(extra_ids=4, model_max_length=LENGTH)
        return BertModel(BertConfig(vocab_size=len(tokenizer), pad_token_id=0, **SHAPE)), tokenizer
    if kind == "mpnet":
        tokenizer = mpnet_tokenizer()
        return MPNetModel(MPNetConfig(vocab_size=len(tokenizer), **SHAPE)), tokenizer
    if kind == "roberta":
        tokenizer = roberta_tokenizer()
        config = RobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, **SHAPE)
        return RobertaModel(config), tokenizer
    if kind == "xlm-roberta":
        tokenizer = XLMRobertaTokenizer(vocab=unigram(), model_max_length=LENGTH)
        config = XLMRobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, **SHAPE)
        return XLMRobertaModel(config), tokenizer
    tokenizer = modernbert_tokenizer()
    ids: dict[str, Any] = {
        f"{role}_token_id": tokenizer.convert_tokens_to_ids(name)
        for role, name in (("pad", "[PAD]"), ("cls", "[CLS]"), ("sep", "[SEP]"))
    }
    config = ModernBertConfig(
        vocab_size=len(tokenizer) + 3,  # rows that no token uses, as in the published ones
        local_attention=8,
        bos_token_id=ids["cls_token_id"],
        eos_token_id=ids["sep_token_id"],
        **ids,
        **SHAPE,
    )
    return ModernBertModel(config), tokenizer


KINDS = ("bert", "distilbert", "mpnet", "roberta", "xlm-roberta", "modernbert")


def save_encoder(kind: str, folder: Path) -> Path:
    """A sentence-transformers folder with prompts, mean pooling and unit vectors."""
    torch.manual_seed(0)
    body, tokenizer = bodies(kind)
    with torch.no_grad():
        for parameter in body.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    body.save_pretrained(folder / "body")
    tokenizer.save_pretrained(folder / "body")
    modules = [Transformer(str(folder / "body")), Pooling(WIDTH, pooling_mode="mean"), Normalize()]
    model = SentenceTransformer(
        modules=modules, prompts={"query": "query: ", "document": ""}, device="cpu"
    )
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"
