"""Linear maps after the encoder: narrower by PCA, or as wide as a teacher."""

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, StaticEmbedding
from torch import Tensor, nn

from tercet.errors import UserError


def add_dense(model: SentenceTransformer, weight: Tensor) -> Dense:
    """Map sentence vectors by `weight` (out, in), without bias, before they are normalised.

    The layer is a module of the model, of its device and dtype: trained, saved and loaded with it.
    A model that gives unit vectors still does.
    """
    out, width = weight.shape
    dense = Dense(width, out, bias=False, activation_function=nn.Identity())
    with torch.no_grad():
        dense.linear.weight.copy_(weight)
    last = list(model._modules)[-1]
    ends_in_unit = isinstance(model._modules[last], Normalize)
    if ends_in_unit:
        del model._modules[last]
    model.append(dense.to(model.device, model.dtype))
    if ends_in_unit:
        model.append(Normalize())
    return dense


def truncate(model: SentenceTransformer, dims: int) -> None:
    """Keep the first `dims` dimensions of the model's vectors, unit vectors again if they were.

    What `encode(..., truncate_dim=dims)` gives becomes the model's own: a static model's table is
    cut, any other model gets a linear layer that selects. What the model's settings said of a
    truncation no longer holds. Raises UserError unless dims is at least 1 and at most the width
    that its modules give.
    """
    with model.truncate_embeddings(None):
        width = model.get_embedding_dimension() or 0
    if not 1 <= dims <= width:
        raise UserError(f"truncate: {dims} is not between 1 and the model's {width} dimensions")
    model.truncate_dim = None
    if dims == width:
        return
    first, *rest = model
    if isinstance(first, StaticEmbedding) and all(isinstance(part, Normalize) for part in rest):
        table = first.embedding.weight.detach()[:, :dims].clone()
        model[0] = StaticEmbedding(first.tokenizer, embedding_weights=table)
    else:
        add_dense(model, torch.eye(dims, width, dtype=model.dtype))


def settle_width(model: SentenceTransformer) -> None:
    """Give a model the width that its settings cut its vectors to, if they do.

    For what goes on to work with its modules, which know nothing of that: training, cutting,
    pairing. Raises UserError as `truncate` does.
    """
    if model.truncate_dim is not None:
        truncate(model, model.truncate_dim)


def narrow(model: SentenceTransformer, vectors: NDArray[np.float32], dims: int) -> None:
    """Keep the `dims` directions in which `vectors` (N, H), made by `model`, hold most.

    No mean is taken off, since the layer has no bias: these directions keep the inner products
    of the texts as well as any so many can (Eckart and Young 1936). Ordered, so that a prefix of
    them is again the best. Nothing changes if `dims` is the model's width.
    Raises UserError if `dims` exceeds the width or what so few texts can span.
    """
    if dims != vectors.shape[1]:
        add_dense(model, torch.from_numpy(principal_directions(vectors, dims)))


def principal_directions(vectors: NDArray[np.floating], dims: int) -> NDArray[np.float32]:
    """(dims, H) orthonormal directions of the largest second moments of `vectors` (N, H).

    Each points to where its component of largest size is positive, so that the result does not
    depend on the machine's linear algebra. Raises UserError if the vectors span fewer.
    """
    if dims > vectors.shape[1]:
        raise UserError(f"student.dims: {dims} is more than the model's width {vectors.shape[1]}")
    exact = np.asarray(vectors, dtype=np.float64)
    moments, directions = np.linalg.eigh(exact.T @ exact)
    found = int((moments > moments[-1] * 1e-13).sum()) if moments[-1] > 0 else 0
    if found < dims:
        raise UserError(
            f"student.dims: a PCA to {dims} dimensions needs more texts: the {len(vectors)} there "
            f"are span {found}; give a larger corpus or fewer dims"
        )
    rows = directions.T[::-1][:dims]
    largest = rows[np.arange(dims), np.abs(rows).argmax(axis=1)]
    return (rows * np.sign(largest)[:, None]).astype(np.float32)
