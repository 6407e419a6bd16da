"""A smaller vocabulary for an encoder: the tokens that the user's texts need."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from tercet.errors import UserError
from tercet.models.encode import WINDOW, tokenise
from tercet.models.layers import replace_body, transformer
from tercet.models.load import Role
from tercet.models.surgery import Ids, Vocabulary, cut_tokenizer
from tercet.progress import progress

Corpus = Mapping[Role, Sequence[str]]
Counts = NDArray[np.int64]


def token_counts(model: SentenceTransformer, corpus: Corpus) -> Counts:
    """(V,) how often each token occurs in the texts as `model` reads them, prompts included."""
    counts = np.zeros(Vocabulary(model.tokenizer).size, dtype=np.int64)
    with progress("count tokens", sum(map(len, corpus.values()))) as advance:
        for role, texts in corpus.items():
            for start in range(0, len(texts), WINDOW):
                part = texts[start : start + WINDOW]
                tokens = np.concatenate(tokenise(model, part, role))
                counts += np.bincount(tokens, minlength=len(counts))
                advance(len(part))
    return counts


def keep_tokens(
    model: SentenceTransformer,
    counts: Counts,
    target: int | Literal["used"],
    characters: Literal["all", "used"] = "all",
) -> Ids:
    """Leave out tokens of the tokenizer and their rows of the embedding table.

    counts (V,) as `token_counts` gives them; target and characters as in `choose_tokens`. Returns
    the old ids of the tokens that stay, ascending: their new ids are their places in it. A text
    whose tokens all stay has the same tokens and the same vector as before. Nothing changes if
    the target is the whole vocabulary or more.
    """
    vocabulary = Vocabulary(model.tokenizer)
    kept = choose_tokens(vocabulary, counts, target, characters)
    if len(kept) == len(vocabulary):
        return kept
    body = transformer(model)
    table = body.get_input_embeddings()
    name = next(n for n, module in body.named_modules() if module is table) + ".weight"
    state = body.state_dict()
    state[name] = state[name][torch.from_numpy(kept).to(state[name].device)]
    replace_body(model, state, _settings(body.config.to_dict(), kept))
    tokenizer = cut_tokenizer(model.tokenizer, kept)
    first: Any = model[0]
    first.processor = first.input_formatter.processor = tokenizer
    return kept


def choose_tokens(
    vocabulary: Vocabulary,
    counts: Counts,
    target: int | Literal["used"],
    characters: Literal["all", "used"] = "all",
) -> Ids:
    """Ids of the tokens that stay, ascending.

    Always: special tokens, bytes, and single characters, all or those that are `used`. Then the
    tokens that occur, most frequent first, each with the tokens that BPE merges on the way to it;
    and where a target leaves room the first in the vocabulary, which tend to be common; places
    that it keeps free (`[unused7]`) come last.
    target: how many stay, or `used`: none that does not occur.
    Raises UserError if that is fewer than always stay.
    """
    single = {c for c in vocabulary.characters if characters == "all" or counts[c] > 0}
    kept = set().union(*(vocabulary.parts(i) for i in vocabulary.special | single))
    limit = len(vocabulary) if target == "used" else target
    if limit < len(kept):
        hint = ", or keep only the characters that occur" if characters == "all" else ""
        raise UserError(
            f"student.vocabulary: {limit:,} tokens are fewer than the {len(kept):,} special "
            f"tokens, bytes and characters that stay; ask for more{hint}"
        )
    places = np.array(sorted(vocabulary.tokens), dtype=np.int64)
    free = np.isin(places, list(vocabulary.unused))
    for place in places[np.lexsort((places, free, -counts[places]))].tolist():
        if len(kept) == limit or (target == "used" and counts[place] == 0):
            break
        new = vocabulary.parts(place) - kept
        if len(kept) + len(new) <= limit:
            kept |= new
    return np.array(sorted(kept), dtype=np.int64)


def _settings(config: dict[str, Any], kept: Ids) -> dict[str, Any]:
    """The config's vocabulary size, and every id of a token in it."""
    place = {int(old): new for new, old in enumerate(kept)}
    settings: dict[str, Any] = {"vocab_size": len(kept)}
    for name, value in config.items():
        if name.endswith("_token_id") and value is not None:
            several = isinstance(value, list)
            settings[name] = [place.get(v) for v in value] if several else place.get(value)
    return settings
