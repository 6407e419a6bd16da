"""Tokenizer surgery on the variants that no encoder of the tests has: prefixes, suffixes, bytes."""

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tercet.errors import UserError
from tercet.models.surgery import Vocabulary, cut_tokenizer
from tercet.models.vocabulary import choose_tokens
from tests.encoders import TEXTS

SPECIAL = ["<s>", "</s>", "<pad>", "<unk>"]


def trained(tokenizer: Tokenizer, trainer: object) -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator(TEXTS[:60], trainer)  # type: ignore[arg-type]
    ids = tokenizer.get_vocab()
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.BertProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"])),
        ]
    )
    tokenizer.enable_padding(pad_id=ids["<pad>"], pad_token="<pad>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", cls_token="<s>"
    )


def bpe(**options: str | bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", **options))  # type: ignore[arg-type]
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    outside = [f"<0x{byte:02X}>" for byte in range(256)] if options.get("byte_fallback") else []
    words: dict[str, Any] = {k: v for k, v in options.items() if isinstance(v, str)}
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL + outside, **words)
    return trained(tokenizer, trainer)


def unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>")
    return trained(tokenizer, trainer)


def word_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return trained(tokenizer, trainers.WordLevelTrainer(special_tokens=SPECIAL))


TOKENIZERS = {
    "bpe": lambda: bpe(),
    "bpe with a suffix": lambda: bpe(end_of_word_suffix="</w>"),
    "bpe with a prefix": lambda: bpe(continuing_subword_prefix="##"),
    "bpe with both": lambda: bpe(continuing_subword_prefix="##", end_of_word_suffix="</w>"),
    "bpe with bytes": lambda: bpe(byte_fallback=True),
    "unigram": unigram,
    "words": word_level,
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


def test_covered_texts_are_cut_the_same(tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = Vocabulary(tokenizer)
    counts = np.zeros(vocabulary.size, dtype=np.int64)
    for ids in tokenizer(TEXTS[:60:2])["input_ids"]:
        counts += np.bincount(ids, minlength=len(counts))
    kept = choose_tokens(vocabulary, counts, "used")
    assert len(kept) < len(vocabulary)
    place = {int(old): new for new, old in enumerate(kept)}
    cut = cut_tokenizer(tokenizer, kept)
    compared = 0
    words = [word for text in TEXTS for word in text.split()]
    for text in [*TEXTS, *words, "żółw", *(a + b for a in words[:40] for b in words[:40])]:
        before, after = (t(text, padding=False)["input_ids"] for t in (tokenizer, cut))
        if set(before) <= place.keys():
            assert [place[i] for i in before] == after, text
            compared += 1
    assert compared > len(TEXTS) // 2
    assert cut(["a", "a b c"], padding=True)["input_ids"][0][-1] == cut.pad_token_id


def test_every_merge_leads_to_a_token_that_is_there() -> None:
    whole = bpe()
    vocabulary = Vocabulary(whole)
    longest = max(vocabulary.tokens, key=lambda i: len(vocabulary.tokens[i]))
    kept = np.array(sorted(vocabulary.special | vocabulary.parts(longest)), dtype=np.int64)
    cut = Vocabulary(cut_tokenizer(whole, kept))
    word = vocabulary.tokens[longest]
    assert len(word) > 4
    for a, b in cut.model["merges"]:
        assert {a, b, a + b} <= cut.ids.keys()
    assert cut.tokens[cut.ids[word]] == word


def test_places_that_are_kept_free_come_last() -> None:
    words = [*SPECIAL, "[unused0]", "<unused1>", "[unused]", "rare", "common", "never"]
    model = models.WordLevel({word: place for place, word in enumerate(words)}, "<unk>")
    vocabulary = Vocabulary(
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>")
    )
    counts = np.zeros(len(words), dtype=np.int64)
    counts[[words.index("rare"), words.index("common")]] = 1, 2
    kept = [words[i] for i in choose_tokens(vocabulary, counts, 8)]
    assert kept == [*SPECIAL, "[unused]", "rare", "common", "never"]
    assert len(choose_tokens(vocabulary, counts, 9)) == 9
    assert len(choose_tokens(vocabulary, counts, len(words))) == len(words)


def test_a_tokenizer_of_another_make_is_refused() -> None:
    class Slow:
        pass

    with pytest.raises(UserError, match="Slow is no WordPiece, BPE or Unigram tokenizer"):
        Vocabulary(Slow())  # type: ignore[arg-type]
