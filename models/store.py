"""Vectors computed once: memory-mapped shards under a fingerprint of all that shapes them."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerFast

from tercet.files import cache_folder, fingerprint, sha256, whole_file, write_json
from tercet.models.encode import BATCH_TOKENS, encode
from tercet.models.load import Role, max_length, prompt_of

Vectors = NDArray[np.float32]
FORMAT = 2
UNTOLD = {"_name_or_path", "architectures", "dtype", "transformers_version"}  # of a model's config
SHARD = 8_192  # texts per file: what a killed run can lose


def vectors(
    model: SentenceTransformer,
    texts: Sequence[str],
    role: Role,
    *,
    folder: Path | None = None,
    batch_tokens: int = BATCH_TOKENS,
    title: str = "encode",
) -> NDArray[np.float32]:
    """(N, H) vectors of `texts`, memory-mapped and read-only, computed if they are not stored yet.

    `folder` is the store (default: the user's cache). Shards are written whole, so a run that
    was killed goes on at the first missing one; the last makes one file of them. Beside it,
    `manifest.json` holds its shape and SHA-256.
    """
    if not texts:
        return np.empty((0, model.get_embedding_dimension() or 0), dtype=np.float32)
    key = fingerprint([str(FORMAT), model_fingerprint(model), prompt_of(model, role), *texts])
    place = (folder or cache_folder() / "vectors") / key
    whole, manifest = place / "all.npy", place / "manifest.json"
    if not (whole.exists() and manifest.exists()):
        if not whole.exists():
            shards = []
            for number, start in enumerate(range(0, len(texts), SHARD)):
                part = texts[start : start + SHARD]
                run = partial(encode, model, part, role, batch_tokens=batch_tokens, title=title)
                shards.append(_shard(place / f"{number:05d}.npy", run))
            _join(shards, whole)
        shape = np.load(whole, mmap_mode="r").shape
        facts = {"format": FORMAT, "fingerprint": key, "shape": shape, "sha256": sha256(whole)}
        write_json(manifest, facts)
        for shard in place.glob("[0-9]*.npy"):
            shard.unlink(missing_ok=True)
    return np.load(whole, mmap_mode="r")


def _shard(path: Path, run: Callable[[], Vectors]) -> Vectors:
    """A shard's vectors, memory-mapped, computed first if it is not there.

    Mapped once and kept: another process that is done with the same texts may remove the file.
    """
    try:
        return np.load(path, mmap_mode="r")
    except FileNotFoundError:
        vectors = run()
    with whole_file(path) as unfinished:
        with unfinished.open("wb") as file:
            np.save(file, vectors)
        return np.load(unfinished, mmap_mode="r")


def _join(shards: Sequence[Vectors], path: Path) -> None:
    """One file of all shards, without holding more than one in memory."""
    shape = (sum(map(len, shards)), shards[0].shape[1])
    with whole_file(path) as unfinished:
        joined = np.lib.format.open_memmap(unfinished, "w+", dtype=np.float32, shape=shape)
        start = 0
        for shard in shards:
            joined[start : start + len(shard)] = shard
            start += len(shard)
        joined.flush()


def model_fingerprint(model: SentenceTransformer) -> str:
    """Hash of all that turns a text into this model's vector, except the prompt.

    Weights, modules and their settings, tokenizer, maximum length and dtype.
    """
    parts: list[str | bytes] = []
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy().tobytes()  # bytes, since numpy has no bfloat16
        parts += [name, str(tensor.dtype), str(tuple(tensor.shape)), data]
    for module in model:
        body = getattr(module, "auto_model", None)
        if body is not None:  # heads and the like change the vectors and leave no mark on weights
            settings = {k: v for k, v in body.config.to_dict().items() if k not in UNTOLD}
            parts.append(json.dumps(settings, sort_keys=True, default=str))
        describe = getattr(module, "get_config_dict", dict)
        parts.append(type(module).__name__ + json.dumps(describe(), sort_keys=True, default=str))
    return fingerprint([*parts, tokenizer_fingerprint(model.tokenizer), str(max_length(model))])


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hash of vocabulary and rules; truncation and padding are left out, as each call sets them."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules.update(truncation=None, padding=None)
    return fingerprint([json.dumps(rules, sort_keys=True)])
