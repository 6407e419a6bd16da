"""A tokenizer's vocabulary as data, and the same tokenizer with fewer tokens.

Works on the JSON of the tokenizers library: WordPiece, WordLevel, Unigram and BPE. Ids keep their
order and close ranks. A text whose tokens all stay is cut into the same tokens as before:
WordPiece takes the longest match and Unigram the best path, and neither changes when other
candidates go; BPE needs, besides, every merge on the way to a token, hence `Vocabulary.parts`.
"""

import json
import re
import tempfile
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase

from tercet.errors import UserError

Ids = NDArray[np.int64]
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a byte of a character that the vocabulary has not
UNUSED = re.compile(r"[\[<]unused\d+[\]>]")  # a place kept free in BERT's and Gemma's vocabularies


class Vocabulary:
    """The tokens of a fast tokenizer, and which of them others depend on."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self.rules: dict[str, Any] = json.loads(backend.to_str()) if backend else {"model": {}}
        self.model: dict[str, Any] = self.rules["model"]
        if self.model.get("type") not in ("WordPiece", "WordLevel", "BPE", "Unigram"):
            raise UserError(
                f"student.vocabulary: {type(tokenizer).__name__} is no WordPiece, BPE or Unigram "
                "tokenizer of the tokenizers library; its vocabulary cannot be cut"
            )
        entries = self.model["vocab"]
        if self.model["type"] == "Unigram":
            entries = {token: place for place, (token, _) in enumerate(entries)}
        self.ids: dict[str, int] = dict(entries)
        self.ids |= {added["content"]: added["id"] for added in self.rules["added_tokens"]}
        self.tokens = {place: token for token, place in self.ids.items()}

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self.tokens) + 1

    @cached_property
    def special(self) -> set[int]:
        """Ids of what no tokenizer of this kind does without."""
        unknown = self.model.get("unk_id", self.ids.get(self.model.get("unk_token") or ""))
        found = {added["id"] for added in self.rules["added_tokens"]}
        found |= {unknown} if unknown is not None else set()
        if self.model["type"] == "Unigram":  # its score decides what an unknown character costs
            scores = [score for _, score in self.model["vocab"]]
            found.add(scores.index(min(scores)))
        alphabet = ByteLevel.alphabet() if '"ByteLevel"' in json.dumps(self.steps) else []
        found |= {self.ids[symbol] for symbol in alphabet if symbol in self.ids}
        return found | {place for place, token in self.tokens.items() if BYTE.fullmatch(token)}

    @property
    def steps(self) -> list[Any]:
        """What happens to a text before the vocabulary is asked."""
        return [self.rules.get("normalizer"), self.rules.get("pre_tokenizer")]

    @cached_property
    def characters(self) -> set[int]:
        """Ids of the tokens of one character, at the start of a word or inside it."""
        return {place for place, token in self.tokens.items() if len(self._bare(token)) == 1}

    @cached_property
    def unused(self) -> set[int]:
        """Ids of places kept free for tokens to come: no text has them."""
        return {place for place, token in self.tokens.items() if UNUSED.fullmatch(token)}

    def parts(self, place: int) -> set[int]:
        """The token itself and, for BPE, every token on the way from its characters to it."""
        token = self.tokens[place]
        if self.model["type"] != "BPE":
            return {place}
        pieces = self._symbols(token)
        seen = set(pieces)
        while len(pieces) > 1:
            ranks = [self._ranks.get(pair, len(self._ranks)) for pair in pairwise(pieces)]
            first = ranks.index(min(ranks))
            if ranks[first] == len(self._ranks):
                break
            pieces[first : first + 2] = [self._joined(pieces[first], pieces[first + 1])]
            seen.add(pieces[first])
        # A token that merging its characters does not reach is matched as a whole or not at all.
        reached = pieces == [token] and seen <= self.ids.keys()
        return {self.ids[piece] for piece in seen} if reached else {place}

    def cut(self, kept: Ids) -> dict[str, Any]:
        """The tokenizer's JSON with the tokens of ids `kept` (ascending) alone."""
        place = {int(old): new for new, old in enumerate(kept)}
        rules = json.loads(json.dumps(self.rules))
        model = rules["model"]
        if model["type"] == "Unigram":
            model["vocab"] = [model["vocab"][old] for old in place if old < len(model["vocab"])]
            model["unk_id"] = None if model["unk_id"] is None else place[model["unk_id"]]
        else:
            model["vocab"] = {t: place[old] for t, old in model["vocab"].items() if old in place}
        if model["type"] == "BPE":
            model["merges"] = [
                [a, b]
                for a, b in self._merges
                if {a, b, self._joined(a, b)} <= model["vocab"].keys()
            ]
        for added in rules["added_tokens"]:
            added["id"] = place[added["id"]]
        if rules.get("padding"):
            rules["padding"]["pad_id"] = place[rules["padding"]["pad_id"]]
        _renumber(rules.get("post_processor"), place)
        return rules

    @cached_property
    def _merges(self) -> list[tuple[str, str]]:
        merges = [m.split(" ") if isinstance(m, str) else m for m in self.model["merges"]]
        return [(a, b) for a, b in merges]

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {pair: rank for rank, pair in enumerate(self._merges)}

    @property
    def _prefix(self) -> str:
        return self.model.get("continuing_subword_prefix") or ""

    @property
    def _suffix(self) -> str:
        return self.model.get("end_of_word_suffix") or ""

    def _bare(self, token: str) -> str:
        bare = token.removeprefix(self._prefix) or token
        return bare.removesuffix(self._suffix) or bare

    def _joined(self, left: str, right: str) -> str:
        return left + right.removeprefix(self._prefix)

    def _symbols(self, token: str) -> list[str]:
        """The characters of a token as BPE starts from them."""
        bare = self._bare(token)
        inside = len(self._prefix) > 0 and token.startswith(self._prefix)
        symbols = [(self._prefix if i or inside else "") + c for i, c in enumerate(bare)]
        if self._suffix and token.endswith(self._suffix):
            symbols[-1] += self._suffix
        return symbols


def cut_tokenizer(tokenizer: PreTrainedTokenizerBase, kept: Ids) -> PreTrainedTokenizerBase:
    """The same tokenizer with the tokens of ids `kept` (ascending) alone, as 0, 1, 2, ...

    It goes through files, so that what comes back is what any later loading gives. Raises
    UserError if the tokenizer's class does not take the smaller vocabulary as it is.
    """
    vocabulary = Vocabulary(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        text = json.dumps(vocabulary.cut(kept), ensure_ascii=False)
        (Path(folder) / "tokenizer.json").write_text(text, encoding="utf-8")
        cut = type(tokenizer).from_pretrained(folder)
    if cut.get_vocab() != {vocabulary.tokens[int(old)]: new for new, old in enumerate(kept)}:
        raise UserError(
            f"student.vocabulary: {type(tokenizer).__name__} changes its vocabulary when it is "
            "loaded; it cannot be cut"
        )
    return cut


def _renumber(processor: dict[str, Any] | None, place: dict[int, int]) -> None:
    """Give the special tokens that are put around a text their new ids."""
    if processor is None:
        return
    for inner in processor.get("processors", ()):
        _renumber(inner, place)
    if processor["type"] == "TemplateProcessing":
        for token in processor["special_tokens"].values():
            token["ids"] = [place[old] for old in token["ids"]]
    for name in ("sep", "cls"):  # of BertProcessing and RobertaProcessing
        if name in processor:
            token, old = processor[name]
            processor[name] = [token, place[old]]
