"""Vectors computed once: a store of shards under a fingerprint of all that shapes them."""

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase
from transformers.utils.hub import TRANSFORMERS_DYNAMIC_MODULE_NAME

from tercet.cache import Held, locked
from tercet.files import cache_folder, fingerprint
from tercet.models.encode import encode_parts, refuse_nonfinite, vector_width
from tercet.models.load import Role, max_length, prompt_of
from tercet.models.routes import is_pair, route
from tercet.models.shards import (
    Manifest,
    Vectors,
    begin,
    finish,
    open_vectors,
    read_manifest,
    rows_of_a_shard,
    unsound,
    write_shard,
)
from tercet.processes import on_main, process_count, process_index, share_mistakes
from tercet.progress import progress, say

DTYPE = "float32"
OWN_CODE = f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."  # the package of code that comes with a model
UNTOLD = {"_name_or_path", "architectures", "dtype", "transformers_version"}  # of a model's config


def vectors(
    model: SentenceTransformer,
    texts: Sequence[str],
    role: Role,
    *,
    folder: Path | None = None,
    batch_tokens: int | None = None,
    truncate_dim: int | None = None,
    title: str = "encode",
) -> Vectors:
    """(N, H) float32 vectors of `texts`: read from their store, or computed for it first.

    `folder` holds a store for each fingerprint (default: the user's cache). Every process of a
    launch has to call this; shard s is made by process s modulo their number, its bytes the same
    however many there are. What a killed run finished is kept, a shard whose bytes have changed
    since is made again, and a second run on the same texts waits for the first.
    `batch_tokens` and `truncate_dim` are those of `encode`; the latter changes the fingerprint.
    Raises UserError for a vector that is not finite (naming its row), for a disk that does not
    take the shards (those written stay), and for a store of a newer version.
    """
    model = route(model, role)
    width = vector_width(model, truncate_dim)
    facts = _facts(model, texts, role, width)
    if not texts:
        return Vectors((), (0, width), facts.fingerprint)
    place = stores_folder(folder) / facts.fingerprint

    def make(manifest: Manifest) -> None:
        own = range(process_index(), manifest.shards, process_count())
        missing = unsound(place, manifest, own)
        if not missing:
            return
        if manifest.complete:
            say(f"{place}: {len(missing)} of {len(own)} shards are damaged and made again")
        rows = [manifest.rows_of(shard) for shard in missing]
        parts = (texts[r.start : r.stop] for r in rows)
        how = {"batch_tokens": batch_tokens, "truncate_dim": truncate_dim}
        with progress(title, sum(map(len, rows))) as advance:
            encoded = encode_parts(model, parts, role, advance, **how)
            for shard, r, found in zip(missing, rows, encoded, strict=True):
                refuse_nonfinite(found, texts[r.start : r.stop], r.start)
                write_shard(place, shard, found)

    with ExitStack() as held:
        lock = on_main(lambda: held.enter_context(locked(place)))
        manifest = on_main(lambda: begin(place, facts, alone=lock is Held.YES))
        with share_mistakes():
            make(manifest)
        manifest = on_main(lambda: finish(place, manifest))
        with share_mistakes():  # until all have mapped the shards, and keep them
            return open_vectors(place, manifest)


def are_stored(
    model: SentenceTransformer,
    texts: Sequence[str],
    role: Role,
    *,
    folder: Path | None = None,
    truncate_dim: int | None = None,
) -> bool:
    """Whether `vectors` has finished these texts before. One process alone may ask."""
    model = route(model, role)
    facts = _facts(model, texts, role, vector_width(model, truncate_dim))
    manifest = read_manifest(stores_folder(folder) / facts.fingerprint)
    return manifest is not None and manifest.complete


def stores_folder(folder: Path | None = None) -> Path:
    """Where the stores are: `folder`, or the default in the user's cache."""
    return folder or cache_folder() / "vectors"


def _facts(model: SentenceTransformer, texts: Sequence[str], role: Role, width: int) -> Manifest:
    """The manifest of a store that is still empty."""
    made_by, prompt = model_fingerprint(model), prompt_of(model, role)
    body = getattr(model[0], "auto_model", None)
    return Manifest(
        fingerprint=fingerprint([made_by, prompt, str(width), DTYPE, *texts]),
        model=str(getattr(body, "name_or_path", "")),
        model_fingerprint=made_by,
        role=role,
        prompt=prompt,
        max_length=max_length(model),
        model_dtype=str(model.dtype).removeprefix("torch."),
        dtype=DTYPE,
        dim=width,
        rows=len(texts),
        shard_rows=rows_of_a_shard(len(texts)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def model_fingerprint(model: SentenceTransformer) -> str:
    """Hash of all that turns a text into this model's vector, except the prompt.

    Weights, modules, their settings and code that came with them, tokenizer, maximum length and
    dtype. Of a pair: of both its sides.
    """
    if is_pair(model):
        roles: tuple[Role, ...] = ("query", "document")
        return fingerprint(model_fingerprint(route(model, role)) for role in roles)
    return fingerprint(_parts(model))


def _parts(model: SentenceTransformer) -> Iterator[str | bytes]:
    """What `model_fingerprint` hashes, one copy of one tensor at a time."""
    for name, tensor in sorted(model.state_dict().items()):
        yield from (name, str(tensor.dtype), str(tuple(tensor.shape)))
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().tobytes()  # bytes, since numpy has no bfloat16
    for module in model:
        body = getattr(module, "auto_model", None)
        if body is not None:  # heads and the like change the vectors and leave no mark on weights
            settings = {k: v for k, v in body.config.to_dict().items() if k not in UNTOLD}
            yield json.dumps(settings, sort_keys=True, default=str)
        describe = getattr(module, "get_config_dict", dict)
        yield type(module).__name__ + json.dumps(describe(), sort_keys=True, default=str)
    yield from _own_code(model)
    yield tokenizer_fingerprint(model.tokenizer)
    yield str(max_length(model))


def _own_code(model: SentenceTransformer) -> Iterator[str | bytes]:
    """The Python files that came with the model, where it was trusted to run them.

    All of their folder: a module imports others, and those leave no mark on it.
    """
    own = {type(m) for m in model.modules() if type(m).__module__.startswith(OWN_CODE)}
    for folder in sorted({Path(inspect.getfile(kind)).parent for kind in own}):
        for file in sorted(folder.glob("*.py")):
            yield from (file.name, file.read_bytes())


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of vocabulary and rules; truncation and padding are left out, as each call sets them.

    Of a tokenizer in Python alone, as of bytes or characters, the hash is of its files.
    """
    # A static model holds the tokenizers library's own object.
    backend: Any = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        with TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
            return fingerprint(part for file in files for part in (file.name, file.read_bytes()))
    rules = json.loads(backend.to_str())
    rules.update(truncation=None, padding=None)
    return fingerprint([json.dumps(rules, sort_keys=True)])
