"""Texts -> vectors, in batches of equal work instead of equal counts."""

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Pooling,
    StaticEmbedding,
)
from torch import Tensor

from tercet.errors import UserError
from tercet.memory import free_memory, is_out_of_memory
from tercet.models.load import Role, max_length, prompt_of
from tercet.models.routes import gives_unit_vectors, route
from tercet.progress import Advance, progress
from tercet.threads import compute_threads

Features = dict[str, Tensor | int]
Forward = Callable[[Features], dict[str, Tensor]]
TokenIds = NDArray[np.int32]
Given = TypeVar("Given")
Made = TypeVar("Made")
WINDOW = 8_192  # texts handed to a tokenizer at once, which keeps much more of each than its ids
CPU_TOKENS = 2_048  # padded tokens in one forward pass of one thread: fits a core's caches
ACCELERATOR_TOKENS = 32_768  # the same where a large product is needed to fill the device
BATCH_COST = 1 / 32  # of the budget: what a batch costs beside its tokens


class _Part(NamedTuple):
    """Some texts on their way through the model."""

    order: NDArray[np.int64]  # of every text: its place among the distinct ones
    vectors: NDArray[np.float32]  # (distinct, H), filled batch by batch


class _Batch(NamedTuple):
    part: _Part
    places: NDArray[np.int64]  # among the distinct texts
    tokens: list[TokenIds]
    last: bool  # of its part


def encode(
    model: SentenceTransformer,
    texts: Sequence[str],
    role: Role,
    *,
    batch_tokens: int | None = None,
    truncate_dim: int | None = None,
    title: str = "encode",
) -> NDArray[np.float32]:
    """(N, H) sentence embeddings, in the order of `texts`; equal texts are computed once.

    The prompt of `role` is put before each text; what exceeds the model's maximum length is cut.
    The vectors are those of `SentenceTransformer.encode` up to rounding. `truncate_dim` (default:
    the model's own) keeps the first dimensions; where the model gives unit vectors they are then
    made unit vectors again. `batch_tokens` bounds the padded tokens of a forward pass (default: by
    device). Raises UserError naming the first row whose vector is not finite.
    """
    distinct, order = _distinct(texts)
    parts = (distinct[start : start + WINDOW] for start in range(0, len(distinct), WINDOW))
    found = [np.empty((0, vector_width(model, truncate_dim)), dtype=np.float32)]
    with progress(title, len(distinct)) as advance:
        found += encode_parts(
            model, parts, role, advance, batch_tokens=batch_tokens, truncate_dim=truncate_dim
        )
    vectors = np.concatenate(found)[order]
    refuse_nonfinite(vectors, texts)
    return vectors


def encode_parts(
    model: SentenceTransformer,
    parts: Iterable[Sequence[str]],
    role: Role,
    advance: Advance,
    *,
    batch_tokens: int | None = None,
    truncate_dim: int | None = None,
) -> Iterator[NDArray[np.float32]]:
    """The vectors (n, H) of one part after the other, as `encode` gives them but unchecked.

    Batches are cut within a part, so its bytes depend on it alone: neither on the other parts nor,
    on a CPU, on the number of threads. The next part is tokenised while this one is computed.
    """
    model = route(model, role)
    budget = batch_tokens or (CPU_TOKENS if model.device.type == "cpu" else ACCELERATOR_TOKENS)
    width = vector_width(model, truncate_dim)

    def read(texts: Sequence[str]) -> list[_Batch]:
        distinct, order = _distinct(texts)
        part = _Part(order, np.empty((len(distinct), width), dtype=np.float32))
        tokens = tokenise(model, distinct, role)
        if isinstance(model[0], StaticEmbedding):  # nothing is padded: one batch does
            cut = [np.arange(len(tokens))]
        else:
            # longest first: what has no room in memory fails at once, and the last to end are short
            cut = token_batches(np.array([len(ids) for ids in tokens]), budget)[::-1]
        return [_Batch(part, b, [tokens[i] for i in b], last=b is cut[-1]) for b in cut]

    def embed(tokens: list[TokenIds]) -> Tensor:
        with without_graph():
            features = _padded(model, tokens) | prompt
            return _cut(forward(features)["sentence_embedding"], model, width)

    def compute(batch: _Batch) -> tuple[_Batch, Tensor]:
        return batch, in_room(embed, batch.tokens, model.device)

    prompt = _prompt_length(model, role)  # asked for here, as no two threads may use a tokenizer
    was_training = model.training
    # a table that a model keeps between calls must serve a later backward pass, too
    without_graph = torch.no_grad if was_training else torch.inference_mode
    model.eval()
    try:
        with ThreadPoolExecutor(1) as reader, compute_threads(model.device) as (pool, threads):
            forward = _forward_of_each_thread(model, threads)
            batches = (batch for part in _ahead(reader, read, parts, 1) for batch in part)
            for batch, found in _ahead(pool, compute, batches, 2 * threads):
                batch.part.vectors[batch.places] = found.cpu().numpy()
                advance(len(batch.places))
                if batch.last:
                    order, part = batch.part
                    advance(len(order) - len(part))  # texts that came twice
                    yield part[order]
    finally:
        model.train(was_training)


def single_encoder(model: SentenceTransformer, role: Role) -> Callable[[str], NDArray[np.float32]]:
    """A function from one text to its vector (1, H): a plain forward pass, as a search box waits.

    The vector is that of `encode` up to rounding. On a CPU all of torch's threads share the one
    pass, where `encode` gives each thread batches of its own. The model is in evaluation mode, as
    `load_encoder` gives it; of a pair the side is taken once, here. The function raises UserError
    for a vector that is not finite.
    """
    model = route(model, role)
    width = vector_width(model)

    def encode_one(text: str) -> NDArray[np.float32]:
        with torch.inference_mode():
            features = pad(model, tokenise(model, [text], role), role)
            found = _cut(model(features)["sentence_embedding"], model, width).cpu().numpy()
        refuse_nonfinite(found, [text])
        return found

    return encode_one


def vector_width(model: SentenceTransformer, truncate_dim: int | None = None) -> int:
    """H: dimensions of the model's vectors, cut to `truncate_dim` or as the model itself says.

    Raises UserError if that is more than there are.
    """
    full = model.get_embedding_dimension() or 0
    if truncate_dim is not None and not 1 <= truncate_dim <= full:
        raise UserError(f"truncate_dim: {truncate_dim} is not between 1 and the model's {full}")
    return truncate_dim or full


def _cut(vectors: Tensor, model: SentenceTransformer, width: int) -> Tensor:
    """(B, width) float32, unit vectors again if they were."""
    if vectors.shape[1] == width:
        return vectors.float()
    cut = vectors[:, :width].float()
    return F.normalize(cut, dim=1) if gives_unit_vectors(model) else cut


def _distinct(texts: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct texts in order of appearance, and the place of each text among them."""
    place: dict[str, int] = {}
    order = np.array([place.setdefault(text, len(place)) for text in texts], dtype=np.int64)
    return list(place), order


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Given], Made], items: Iterable[Given], count: int
) -> Iterator[Made]:
    """What `work` makes of each item, in order; `count` more are under way in the pool."""
    waiting: deque[Future[Made]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def in_room(
    embed: Callable[[list[TokenIds]], Tensor], tokens: list[TokenIds], device: torch.device
) -> Tensor:
    """(B, H) vectors, by halves of the batch, and halves of those, where memory does not suffice.

    Raises UserError if one text alone is too much.
    """
    try:
        return embed(tokens)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    free_memory(device)  # here, where no frame of the failed attempt holds anything any more
    if len(tokens) == 1:
        raise UserError(
            f"a text of {len(tokens[0]):,} tokens does not fit into memory; lower model.max_length"
        )
    middle = len(tokens) // 2
    return torch.cat([in_room(embed, part, device) for part in (tokens[:middle], tokens[middle:])])


def _forward_of_each_thread(model: SentenceTransformer, threads: int) -> Forward:
    """The model, to be run in any of the threads at once.

    Each has modules of its own over the same weights, as some models keep tables between calls
    (rotary, ALiBi). A static model keeps nothing, and would spend its time on copies.
    """
    if threads == 1 or isinstance(model[0], StaticEmbedding):
        return model
    own = threading.local()
    shared = [*model.parameters(), *model.buffers(), model.tokenizer]

    def forward(features: Features) -> dict[str, Tensor]:
        if not hasattr(own, "model"):
            own.model = copy.deepcopy(model, {id(part): part for part in shared})
        return own.model(features)

    return forward


def tokenise(model: SentenceTransformer, texts: Sequence[str], role: Role) -> list[TokenIds]:
    """Token ids of each text with its prompt and special tokens, cut to the maximum length."""
    windows = (texts[start : start + WINDOW] for start in range(0, len(texts), WINDOW))
    return [ids for window in windows for ids in _token_ids(model, window, role)]


def _token_ids(model: SentenceTransformer, texts: Sequence[str], role: Role) -> list[TokenIds]:
    prompt = prompt_of(model, role)
    prompted = [prompt + text for text in texts]
    if isinstance(model[0], StaticEmbedding):  # no special tokens, no maximum
        encodings = model.tokenizer.encode_batch_fast(prompted, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
    encoded = model.tokenizer(
        prompted,
        truncation=True,
        max_length=max_length(model),
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]]


def token_batches(lengths: NDArray[np.integer], budget: int) -> list[NDArray[np.int64]]:
    """Positions 0..N-1 in batches, shortest first, of at most `budget` padded tokens each.

    A batch costs its count times its longest text, and a 32nd of the budget for being one batch
    more; the batches are those of least total cost. A text over the budget is one by itself.

    >>> [b.tolist() for b in token_batches(np.array([5, 4, 4, 9]), budget=12)]
    [[1, 2], [0], [3]]
    """
    order = np.argsort(lengths, kind="stable")
    ordered = np.asarray(lengths, dtype=np.int64)[order]
    least = np.zeros(len(order) + 1)  # cost of the first n texts
    start = np.zeros(len(order) + 1, dtype=np.int64)  # where the last batch of those begins
    for end, longest in enumerate(ordered.tolist(), start=1):
        first = end - max(1, min(end, budget // max(1, longest)))
        costs = least[first:end] + np.arange(end - first, 0, -1) * longest
        best = int(costs.argmin())
        least[end], start[end] = costs[best] + budget * BATCH_COST, first + best
    batches, end = [], len(order)
    while end:
        batches.append(order[start[end] : end])
        end = start[end]
    return batches[::-1]


def pad(model: SentenceTransformer, tokens: Sequence[TokenIds], role: Role | None) -> Features:
    """The input of one forward pass, (B, longest) int64, on the model's device.

    For a static model all tokens end to end, (tokens,), and where each text begins, (B,). `role`
    is the one whose prompt the tokens begin with; None: they begin with none.
    """
    return _padded(model, tokens) | _prompt_length(model, role)


def pools_without_prompt(model: SentenceTransformer) -> bool:
    """Whether the prompt's tokens are left out of the pooling."""
    return any(isinstance(m, Pooling) and not m.include_prompt for m in model)


def refuse_nonfinite(
    vectors: NDArray[np.floating], texts: Sequence[str], first_row: int = 0
) -> None:
    """Raise UserError naming the first row that holds NaN or infinity; rows[0] is `first_row`."""
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        bad = int(np.flatnonzero(~finite)[0])
        raise UserError(
            f"the model gave a vector that is not finite for {int((~finite).sum())} texts, the "
            f"first in row {first_row + bad}: {texts[bad][:80]!r}; its weights are damaged"
        )


def _padded(model: SentenceTransformer, tokens: Sequence[TokenIds]) -> Features:
    if isinstance(model[0], StaticEmbedding):
        flat = torch.from_numpy(np.concatenate(tokens).astype(np.int64))
        ends = torch.from_numpy(np.cumsum([len(ids) for ids in tokens]))
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        return {"input_ids": flat.to(model.device), "offsets": starts.to(model.device)}
    tokenizer = model.tokenizer
    width = max(len(ids) for ids in tokens)
    ids = np.full((len(tokens), width), tokenizer.pad_token_id or 0, dtype=np.int64)
    mask = np.zeros((len(tokens), width), dtype=np.int64)
    for row, values in enumerate(tokens):
        ids[row, : len(values)] = values
        mask[row, : len(values)] = 1
    input_ids = torch.from_numpy(ids).to(model.device, non_blocking=True)
    attention_mask = torch.from_numpy(mask).to(model.device, non_blocking=True)
    features: Features = {"input_ids": input_ids, "attention_mask": attention_mask}
    if "token_type_ids" in tokenizer.model_input_names:
        features["token_type_ids"] = torch.zeros_like(input_ids)
    return features


def _prompt_length(model: SentenceTransformer, role: Role | None) -> Features:
    """What the pooling has to know of the prompt, if anything.

    Its tokens, the opening special token included, the closing one not.
    """
    if not pools_without_prompt(model):
        return {}
    prompt = prompt_of(model, role) if role else ""
    if not prompt:
        return {"prompt_length": 0}
    with_end = model.tokenizer(prompt)["input_ids"]
    closing = len(with_end) and with_end[-1] in model.tokenizer.all_special_ids
    return {"prompt_length": len(with_end) - int(closing)}
