"""Pairs of texts -> scores by a cross-encoder; each pair is scored once, then kept."""

import io
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
import xxhash
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder

from tercet.cache import CACHE, locked, note_use
from tercet.errors import UserError
from tercet.files import cache_folder, disk_errors, fingerprint, whole_file
from tercet.models.encode import ACCELERATOR_TOKENS, CPU_TOKENS, token_batches
from tercet.models.load import UNREADABLE, default_device, own_weights, resolve
from tercet.models.store import model_fingerprint
from tercet.models.unpickle import only_safetensors, refuse_escapes
from tercet.processes import process_count, process_index, share_mistakes
from tercet.progress import Advance, progress

Pairs = Sequence[tuple[str, str]]
Scores = NDArray[np.float32]
FORMAT = 1
SHARD = 4_096  # pairs per file: what a killed run can lose


@dataclass(frozen=True)
class CrossScorer:
    """A cross-encoder, and what its output means."""

    model: CrossEncoder
    name: str
    calibration: str  # in words: how a score becomes a probability
    logits: bool  # whether scores are logits; else they are probabilities already
    fingerprint: str  # of everything that shapes a score, except the texts

    def probabilities(self, scores: Scores) -> NDArray[np.floating]:
        """Scores as probabilities that the document answers the query.

        In float64, which tells logits apart up to 36; in float32 all above 17 would be 1.
        """
        return 1 / (1 + np.exp(-scores.astype(np.float64))) if self.logits else scores


def load_scorer(
    path: str,
    *,
    max_length: int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    calibration: Literal["auto", "none"] = "auto",
    trust_remote_code: bool = False,
    where: str = "mining.rescore.model",
) -> CrossScorer:
    """Load any sentence-transformers `CrossEncoder` with one label, or two: no and yes.

    Its scores are logits, whatever activation it was saved with: of its one label, or the second
    label's minus the first's, whose sigmoid is the softmax. With `calibration="none"` they are its
    own output, which must lie in [0, 1]. Raises UserError beginning with `where`.
    """
    transformers.utils.logging.disable_progress_bar()
    found = resolve(path, where)
    try:
        with only_safetensors():
            if (modules := Path(found, "modules.json")).is_file():
                refuse_escapes(modules)
            model = CrossEncoder(
                found,
                device=str(default_device()),
                max_length=max_length,
                trust_remote_code=trust_remote_code,
                model_kwargs={"dtype": getattr(torch, dtype), "use_safetensors": True},
            )
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{where}: {path} cannot be loaded: {reason}") from None
    _refuse_untrained(model, f"{where}: {path}")
    own_weights(model)
    words = _calibration(model, calibration, f"{where}: {path}")
    output = str(model.activation_fn) if calibration == "none" else "logits"
    settings = [output, str(model.prompts), str(model.default_prompt_name)]
    key = fingerprint([str(FORMAT), model_fingerprint(model), *settings])  # type: ignore[arg-type]
    return CrossScorer(model, path, words, calibration == "auto", key)


def cross_scores(
    scorer: CrossScorer,
    pairs: Pairs,
    *,
    folder: Path | None = None,
    batch_tokens: int | None = None,
    title: str = "cross-encoder",
) -> Scores:
    """(N,) scores of (query, document) pairs; those scored before are read from `folder`.

    `folder` (default: the user's cache) holds files of at most `SHARD` pairs, each written whole,
    so a run that was killed goes on where it was, and other pairs of an earlier run are reused.
    Missing pairs are shared out over the processes, whose number does not change any score; they
    are batched by token count, across queries: at most `batch_tokens` padded ones in a forward
    pass (default: by device). A meeting of all processes.
    """
    place = (folder or cache_folder() / "pairs") / scorer.fingerprint
    with ExitStack() as held:
        with share_mistakes():  # shared: runs that score other pairs need not wait
            held.enter_context(locked(place, shared=True))
        note_use(place)
        return _all_scores(scorer, pairs, place, batch_tokens, title)


def _all_scores(
    scorer: CrossScorer, pairs: Pairs, place: Path, batch_tokens: int | None, title: str
) -> Scores:
    on_cpu = scorer.model.device.type == "cpu"
    budget = batch_tokens or (CPU_TOKENS if on_cpu else ACCELERATOR_TOKENS)
    keys = _keys(pairs)
    with share_mistakes():
        known = _Known(place)
    missing = known.missing(keys)
    shards = [missing[start : start + SHARD] for start in range(0, len(missing), SHARD)]
    own = shards[process_index() :: process_count()]
    with share_mistakes(), progress(title, sum(map(len, own))) as advance:
        for shard in own:
            _score(scorer, pairs, keys, shard, place, budget, advance)
    if len(missing):
        known = _Known(place)
        # none, unless another run has written to the folder and processes saw different files
        rest = known.missing(keys)
        if len(rest):
            _score(scorer, pairs, keys, rest, place, budget, lambda done=1, note="": None)
            known = _Known(place)
    return known.scores(keys)


class _Known:
    """All scores in a folder, by the 128-bit hash of their pair."""

    def __init__(self, folder: Path) -> None:
        parts = list(_readable(sorted(folder.glob("*.npz"))))
        keys = np.concatenate([np.zeros((0, 2), dtype=np.uint64), *(k for k, _ in parts)])
        values = np.concatenate([np.zeros(0, dtype=np.float32), *(s for _, s in parts)])
        order = np.argsort(keys[:, 0], kind="stable")
        self._keys, self._values = keys[order], values[order]

    def missing(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Numbers of the pairs without a score, each distinct pair once, in their order."""
        absent = np.flatnonzero(self._places(keys) < 0)
        first = np.unique(keys[absent, 0], return_index=True)[1]
        return absent[np.sort(first)]

    def scores(self, keys: NDArray[np.uint64]) -> Scores:
        """(N,) scores; KeyError if one is missing."""
        places = self._places(keys)
        if (places < 0).any():
            raise KeyError("a pair was not scored")
        return self._values[places]

    def _places(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        if not len(self._keys):
            return np.full(len(keys), -1, dtype=np.int64)
        places = np.searchsorted(self._keys[:, 0], keys[:, 0])
        places = np.minimum(places, len(self._keys) - 1)
        return np.where((self._keys[places] == keys).all(axis=1), places, -1)


def _readable(paths: Iterable[Path]) -> Iterable[tuple[NDArray[np.uint64], Scores]]:
    """What whole files hold; one that holds anything else (the zip's checksums tell) is removed.

    One that cannot be read is not: that is the disk's trouble, and scores cost hours.
    """
    for path in paths:
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # another run found it damaged first
            continue
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
        try:
            with np.load(io.BytesIO(data)) as file:
                yield file["keys"], file["scores"]
        except Exception:  # whatever zipfile and numpy make of changed bytes
            path.unlink(missing_ok=True)


def _keys(pairs: Pairs) -> NDArray[np.uint64]:
    """(N, 2) hashes."""
    digests = bytearray()
    for query, document in pairs:
        digest = xxhash.xxh3_128(len(query).to_bytes(8, "little"))
        digest.update(query.encode())
        digest.update(document.encode())
        digests += digest.digest()
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2).astype(np.uint64, copy=False)


def _score(
    scorer: CrossScorer,
    pairs: Pairs,
    keys: NDArray[np.uint64],
    shard: NDArray[np.int64],
    folder: Path,
    budget: int,
    advance: Advance,
) -> None:
    """Score the pairs of one shard and write them."""
    texts = [pairs[i] for i in shard]
    scores = np.empty(len(shard), dtype=np.float32)
    for batch in token_batches(_lengths(scorer.model, texts), budget):
        scores[batch] = _predict(scorer, [texts[i] for i in batch])
        advance(len(batch))
    wrong = ~np.isfinite(scores) | ((scores < 0) | (scores > 1) if not scorer.logits else False)
    if wrong.any():
        bad = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"the cross-encoder {scorer.name} gives {scores[bad]} to query {texts[bad][0][:80]!r} "
            + ("; its weights are damaged" if scorer.logits else "; use calibration: auto")
        )
    path = folder / f"{fingerprint([keys[shard].tobytes()])}.npz"
    with disk_errors(folder, CACHE), whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, keys=keys[shard], scores=scores)


def _predict(scorer: CrossScorer, texts: Pairs) -> Scores:
    """Scores of one batch."""
    activation = torch.nn.Identity() if scorer.logits else None
    found: Any = scorer.model.predict(
        list(texts), batch_size=len(texts), activation_fn=activation, show_progress_bar=False
    )
    return found[:, 1] - found[:, 0] if found.ndim == 2 else found


def _lengths(model: CrossEncoder, texts: Pairs) -> NDArray[np.int64]:
    """Tokens of each pair, cut at the model's maximum."""
    ids = model.tokenizer(
        [query for query, _ in texts],
        [document for _, document in texts],
        truncation=True,
        max_length=_max_length(model),
        return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"]
    return np.array([len(row) for row in ids], dtype=np.int64)


def _max_length(model: CrossEncoder) -> int:
    return int(min(model.max_seq_length or model.tokenizer.model_max_length, 1_000_000))


def _refuse_untrained(model: CrossEncoder, where: str) -> None:
    """An embedding model would be given a new head, whose scores mean nothing."""
    kinds = model.config.architectures if model.config is not None else None
    if len(model) == 1 and kinds and not any("ForSequenceClassification" in k for k in kinds):
        raise UserError(
            f"{where} is no cross-encoder: a {kinds[0]} has no head that scores pairs; name one "
            "that has, such as cross-encoder/ms-marco-MiniLM-L6-v2"
        )


def _calibration(model: CrossEncoder, wanted: str, where: str) -> str:
    """How a score becomes a probability. UserError for a model with none to give."""
    labels, activation = model.num_labels, type(model.activation_fn).__name__
    if labels > 2:
        raise UserError(
            f"{where} has {labels} labels, none of which says relevant; use a model with one"
        )
    if wanted == "none":
        if labels == 2:
            raise UserError(f"{where} has two labels; use calibration: auto")
        return f"its own output (activation {activation}), taken as a probability"
    if labels == 2:
        return "softmax over its two labels, the second one's share"
    if activation == "Sigmoid":
        return "the sigmoid it was trained with, of its logit"
    return f"sigmoid of its logit (its own activation is {activation})"
