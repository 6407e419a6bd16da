"""Students without a transformer: a text's vector is the mean of its tokens' vectors."""

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer
from torch import nn

from tercet.models.encode import CPU_TOKENS, pad
from tercet.models.heads import principal_directions
from tercet.models.surgery import Vocabulary
from tercet.models.vocabulary import Counts
from tercet.progress import progress


def static_student(
    teacher: SentenceTransformer,
    vectors: NDArray[np.float32],
    counts: Counts,
    dims: int | None,
    sif: float,
    centre: bool = True,
) -> SentenceTransformer:
    """A table with a vector for each token of the teacher's vocabulary, as `StaticEmbedding`.

    Each token's vector is the teacher's of that token alone (Model2Vec), `vectors` (V, H) as
    `token_vectors` gives them; if `centre` less the mean of all; narrowed by a PCA to `dims` (None:
    as wide as the teacher, so that training can align it with the teacher's index); times
    sif / (sif + p), p the token's share of counts (V,), so that frequent tokens say little (Arora
    et al. 2017, SIF). Special tokens are zero. The result gives unit vectors where the teacher
    does, of texts of any length and without prompts, which would move all of them alike.
    Raises UserError if `dims` is more than the teacher's or the vocabulary can span.
    """
    table = vectors - vectors.mean(axis=0) if centre else vectors
    if dims is not None and dims != table.shape[1]:
        table = table @ principal_directions(table, dims).T
    share = counts / max(1, counts.sum())
    table = table * (sif / (sif + share) if sif else np.ones_like(share))[:, None]
    table[teacher.tokenizer.all_special_ids] = 0.0
    tokenizer = Tokenizer.from_str(teacher.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    modules: list[nn.Module] = [
        StaticEmbedding(tokenizer, embedding_weights=table.astype(np.float32))
    ]
    modules += [module for module in teacher if isinstance(module, Normalize)]
    return SentenceTransformer(
        modules=modules, similarity_fn_name=teacher.similarity_fn_name, device=str(teacher.device)
    ).eval()


def token_vectors(teacher: SentenceTransformer) -> NDArray[np.float32]:
    """(V, H) the teacher's vector of every token by itself, between its special tokens."""
    vocabulary = Vocabulary(teacher.tokenizer)
    before, after = _around(teacher)
    texts = [np.array([*before, i, *after], dtype=np.int32) for i in range(vocabulary.size)]
    rows = max(1, CPU_TOKENS // len(texts[0]))
    parts = []
    with torch.inference_mode(), progress("token vectors", len(texts)) as advance:
        for start in range(0, len(texts), rows):
            part = texts[start : start + rows]
            vectors = teacher(pad(teacher, part, None))["sentence_embedding"]
            parts.append(vectors.float().cpu().numpy())
            advance(len(part))
    return np.concatenate(parts)


def _around(teacher: SentenceTransformer) -> tuple[list[int], list[int]]:
    """Ids of the special tokens before and after a text."""
    inner = teacher.tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = teacher.tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    return [], []
