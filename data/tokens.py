"""Texts tokenised once: memory-mapped ids under a fingerprint of texts, tokenizer and length."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tercet.cache import CACHE, changed, keep, note_use, save_array
from tercet.errors import UserError
from tercet.files import cache_folder, disk_errors, fingerprint, whole_folder, write_json
from tercet.progress import progress

CHUNK = 8_192  # texts handed to the tokenizer at once
FILES, HASHES = ("ids.npy", "offsets.npy"), "tokens.json"
TRIES = 4  # another process may remove the cache while it is opened
Tokenise = Callable[[Sequence[str]], list[NDArray[np.int32]]]


@dataclass(frozen=True)
class TokenCache:
    """Token ids of a list of texts: text i is ids[offsets[i]:offsets[i + 1]]."""

    ids: NDArray[np.int32]  # (sum of lengths,) memory-mapped
    offsets: NDArray[np.int64]  # (N + 1,) memory-mapped

    def __getitem__(self, text: int) -> NDArray[np.int32]:
        return self.ids[self.offsets[text] : self.offsets[text + 1]]

    def lengths(self, texts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each text, special ones included."""
        return self.offsets[texts + 1] - self.offsets[texts]


def token_cache(
    texts: Sequence[str], tokenise: Tokenise, key: str, folder: Path | None = None
) -> TokenCache:
    """Read the ids of `texts`, tokenising them first if no run has yet.

    `tokenise` gives the final ids (prompt, special tokens, cut to length) and `key` names all
    that shapes them besides the texts. Two processes may build the same cache at once: the first
    to finish writes it, and the bytes are equal. One whose hashes do not fit is made again.
    Raises UserError if the disk does not take it.
    """
    place = (folder or cache_folder() / "tokens") / fingerprint([key, *texts])
    for _ in range(TRIES):
        if (found := _opened(place, len(texts))) is not None:
            note_use(place)
            return found
        with disk_errors(place, CACHE), whole_folder(place, replace=False) as partial:
            _write(partial, texts, tokenise)
    raise UserError(f"{place}: cannot be read back as it was written; is the disk sound?")


def _opened(place: Path, texts: int) -> TokenCache | None:
    """The cache as it lies there; None, and what is left of it removed, if it is not whole."""
    if not place.is_dir():
        return None
    try:
        ids, offsets = (np.load(place / name, mmap_mode="r") for name in FILES)
        keep(place, ids)
        fits = len(offsets) == texts + 1 and int(offsets[-1]) == len(ids)
        if fits and not changed(place / HASHES):
            return TokenCache(ids, offsets)
    except (FileNotFoundError, ValueError, EOFError):
        pass
    shutil.rmtree(place, ignore_errors=True)
    return None


def _write(folder: Path, texts: Sequence[str], tokenise: Tokenise) -> None:
    parts: list[NDArray[np.int32]] = []
    lengths = np.zeros(len(texts), dtype=np.int64)
    with progress("tokenise", len(texts)) as advance:
        for start in range(0, len(texts), CHUNK):
            ids = tokenise(texts[start : start + CHUNK])
            lengths[start : start + len(ids)] = [len(i) for i in ids]
            parts.append(np.concatenate(ids))
            advance(len(ids))
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    ids = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    arrays = zip(FILES, (ids, offsets), strict=True)
    hashes = {name: save_array(folder / name, array) for name, array in arrays}
    write_json(folder / HASHES, {"sha256": hashes})
