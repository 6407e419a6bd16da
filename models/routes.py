"""Asymmetric pairs: one checkpoint with an encoder for queries and another for documents."""

from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Normalize

from tercet.errors import UserError
from tercet.models.heads import settle_width
from tercet.models.load import Role, gives_unit_vectors, prompt_of


def pair_models(
    queries: SentenceTransformer, documents: SentenceTransformer, names: tuple[str, str]
) -> SentenceTransformer:
    """`queries` for queries and `documents` for documents, as a sentence-transformers `Router`.

    A small query encoder for the index of a large model: the student must have been aligned with
    it. Each side keeps its prompt, tokenizer and maximum length. `names` stand for the two in
    complaints. Raises UserError if their vectors cannot be compared.
    """
    sides = queries, documents
    for model, name in zip(sides, names, strict=True):
        refuse_pair(model, f"pair: {name}")
        settle_width(model)
    widths = [model.get_embedding_dimension() for model in sides]
    if widths[0] != widths[1]:
        raise UserError(
            f"pair: {names[0]} gives {widths[0]} dimensions and {names[1]} {widths[1]}; train the "
            "query model with distil.projection=true, or cut both to one width"
        )
    unit = [gives_unit_vectors(model) for model in sides]
    if unit[0] != unit[1]:
        odd = names[unit.index(False)]
        raise UserError(f"pair: {odd} is compared by dot, the other by cosine; choose another")
    parts: Any = [
        [m for m in model if not (unit[0] and isinstance(m, Normalize))] for model in sides
    ]
    router = Router.for_query_document(query_modules=parts[0], document_modules=parts[1])
    return SentenceTransformer(
        modules=[router, Normalize()] if unit[0] else [router],
        prompts={
            "query": prompt_of(queries, "query"),
            "document": prompt_of(documents, "document"),
        },
        similarity_fn_name=documents.similarity_fn_name,
        device=str(documents.device),
    ).eval()


def route(model: SentenceTransformer, role: Role) -> SentenceTransformer:
    """The encoder of one role: `model` itself, or of a pair the side that answers for it.

    A side has the fingerprint of the model it was taken from, so a pair finds the vectors that
    the document model has stored, and stores its queries apart. Weights are shared, not copied.
    Raises UserError if a pair has no such side.
    """
    router = model[0]
    if not isinstance(router, Router):
        return model
    if role not in router.sub_modules:
        there = ", ".join(router.sub_modules)
        raise UserError(f"model: its router has no route for a {role}; its routes are {there}")
    side = SentenceTransformer(
        modules=[*router.sub_modules[role], *list(model)[1:]],  # type: ignore[arg-type]
        prompts={name: prompt or "" for name, prompt in model.prompts.items()},
        similarity_fn_name=model.similarity_fn_name,
        truncate_dim=model.truncate_dim,
        device=str(model.device),
    )
    return side.train(model.training)


def is_pair(model: SentenceTransformer) -> bool:
    """Whether queries and documents have encoders of their own."""
    return isinstance(model[0], Router)


def refuse_pair(model: SentenceTransformer, where: str) -> None:
    """Raise UserError, beginning with `where`, if queries and documents have encoders of their own.

    For what takes one encoder: training, cutting, pairing.
    """
    if is_pair(model):
        raise UserError(f"{where} is a pair of encoders; name one of the two it was made of")
