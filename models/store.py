"""Vectors computed once: memory-mapped shards under a fingerprint of all that shapes them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerFast

from tercet.files import cache_folder, fingerprint, whole_file, write_json
from tercet.models.encode import BATCH_TOKENS, encode
from tercet.models.load import Role, max_length, prompt_of

FORMAT = 1
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
    """(N, H) vectors of `texts`, read from the store if these weights have seen them before.

    `folder` is the store (default: the user's cache). Shards are written whole, so a run that
    was killed goes on at the first missing one.
    """
    key = fingerprint([model_fingerprint(model), prompt_of(model, role), *texts])
    place = (folder or cache_folder() / "vectors") / key
    shards = []
    for number, start in enumerate(range(0, len(texts), SHARD)):
        path = place / f"{number:05d}.npy"
        if not path.exists():
            part = encode(
                model, texts[start : start + SHARD], role, batch_tokens=batch_tokens, title=title
            )
            with whole_file(path) as partial, partial.open("wb") as file:
                np.save(file, part)
        shards.append(np.load(path, mmap_mode="r"))
    if not (place / "manifest.json").exists():
        rows = [len(shard) for shard in shards]
        write_json(place / "manifest.json", {"format": FORMAT, "fingerprint": key, "rows": rows})
    return shards[0] if len(shards) == 1 else np.concatenate(shards)


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
