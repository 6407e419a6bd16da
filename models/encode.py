"""Texts -> vectors, in batches of equal work instead of equal counts."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from torch import Tensor

from tercet.errors import UserError
from tercet.models.load import Role, max_length, prompt_of
from tercet.progress import progress

Features = dict[str, Tensor | int]
TokenIds = NDArray[np.int32]
WINDOW = 8_192  # texts tokenised and length-sorted together: bounds memory on any corpus
BATCH_TOKENS = 4_096  # padded tokens in one forward pass: fits a CPU's caches
BATCH_COST = 1 / 32  # of the budget: what a batch costs beside its tokens


def encode(
    model: SentenceTransformer,
    texts: Sequence[str],
    role: Role,
    *,
    batch_tokens: int = BATCH_TOKENS,
    title: str = "encode",
) -> NDArray[np.float32]:
    """(N, H) sentence embeddings, in the order of `texts`; equal texts are computed once.

    The prompt of `role` is put before each text; what exceeds the model's maximum length is cut.
    The vectors are those of `SentenceTransformer.encode` up to rounding.
    Raises UserError naming the text if a vector is not finite.
    """
    place: dict[str, int] = {}
    order = np.array([place.setdefault(text, len(place)) for text in texts], dtype=np.int64)
    distinct = list(place)
    vectors = np.empty((len(distinct), model.get_embedding_dimension() or 0), dtype=np.float32)
    was_training = model.training
    model.eval()
    with torch.inference_mode(), progress(title, len(distinct)) as advance:
        for start in range(0, len(distinct), WINDOW):
            tokens = tokenise(model, distinct[start : start + WINDOW], role)
            for batch in token_batches(np.array([len(t) for t in tokens]), batch_tokens):
                features = pad(model, [tokens[i] for i in batch], role)
                vectors[start + batch] = model(features)["sentence_embedding"].float().cpu()
                advance(len(batch))
    model.train(was_training)
    refuse_nonfinite(vectors, lambda i: repr(distinct[i][:80]))
    return vectors[order]


def tokenise(model: SentenceTransformer, texts: Sequence[str], role: Role) -> list[TokenIds]:
    """Token ids of each text with its prompt and special tokens, cut to the maximum length."""
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


def pad(model: SentenceTransformer, tokens: Sequence[TokenIds], role: Role) -> Features:
    """The input of one forward pass, (B, longest) int64, on the model's device.

    For a static model all tokens end to end, (tokens,), and where each text begins, (B,).
    """
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
    if pools_without_prompt(model):
        features["prompt_length"] = _prompt_tokens(model, role)
    return features


def pools_without_prompt(model: SentenceTransformer) -> bool:
    """Whether the prompt's tokens are left out of the pooling."""
    return any(isinstance(m, Pooling) and not m.include_prompt for m in model)


def refuse_nonfinite(vectors: NDArray[np.floating], name: Callable[[int], str]) -> None:
    """Raise UserError naming the first row that holds NaN or infinity."""
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        bad = int(np.flatnonzero(~finite)[0])
        raise UserError(
            f"the model gave a vector that is not finite for {int((~finite).sum())} texts, the "
            f"first {name(bad)}; its weights are damaged"
        )


def _prompt_tokens(model: SentenceTransformer, role: Role) -> int:
    """Tokens of the prompt, the opening special token included, the closing one not."""
    prompt = prompt_of(model, role)
    if not prompt:
        return 0
    with_end = model.tokenizer(prompt)["input_ids"]
    closing = len(with_end) and with_end[-1] in model.tokenizer.all_special_ids
    return len(with_end) - int(closing)
