"""Hand a model's vectors over to a search engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tercet.configs import ModelConfig
from tercet.data import read_documents
from tercet.errors import UserError
from tercet.export.index import (
    INDEXES,
    KINDS,
    Kind,
    Recall,
    check_choice,
    measure_recall,
    write_faiss,
)
from tercet.export.milvus import Collection, check_ids
from tercet.export.sample import spread
from tercet.files import fingerprint, writable_folder, write_json
from tercet.mining.ann import Index
from tercet.models import default_device, load_encoder, model_fingerprint, vectors
from tercet.progress import say
from tercet.stages.names import name_of
from tercet.versions import installed_versions

ENGINES = ("faiss", "milvus")
ASKED = 1_000  # queries on which recall is measured


@dataclass(frozen=True)
class Indexed:
    """What was handed over."""

    documents: int
    recall: Recall
    place: str  # a folder, or a collection and where it is


def index(
    model: str,
    data: Sequence[Path],
    out: Path,
    *,
    to: str,
    index: str = "flat",
    kind: str = "float32",
    truncate_dim: int | None = None,
    uri: str | None = None,
    collection: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Indexed:
    """Encode the documents of `data` (through the store) and write them into a search engine.

    data: BEIR folders, or files of texts as `read_documents` reads them. faiss: `out` gets
    index.faiss, documents.jsonl and index.json. milvus: `out/milvus.db`, or the server at `uri`,
    gets `collection` (default: the model's name), and `out` index.json; a stopped run goes on
    where it was. The engine is then asked, and its recall@10 against exact search is measured: on
    the folders' own queries, or where there are none on documents as queries.
    Raises UserError for whatever the user can mend.
    """
    form, stored = _chosen(to, index, kind)
    if to == "faiss" and out.exists() and not overwrite:
        raise UserError(f"{out}: exists; choose another folder or say --overwrite")
    documents, asked = read_documents(data), _queries(data)
    encoder = load_encoder(
        ModelConfig(path=model, trust_remote_code=trust_remote_code), "model"
    ).to(default_device())
    writable_folder(out.parent)
    found = vectors(
        encoder, documents.texts, "document", truncate_dim=truncate_dim, title="documents"
    )
    check_choice(form, stored, found.shape[1], len(documents))
    texts = asked or spread(documents.texts, ASKED)
    queries = np.asarray(
        vectors(encoder, texts, "query", truncate_dim=truncate_dim, title="queries")
    )
    facts = {
        "model": name_of(model),
        "model_fingerprint": model_fingerprint(encoder),
        "vectors_fingerprint": found.fingerprint,
        "dimensions": found.shape[1],
        "metric": "hamming" if kind == "binary" else "inner product",
        "prompts": encoder.prompts,
        "recall_asked_with": "queries" if asked else "documents",
        "versions": installed_versions(),
    }
    if to == "faiss":
        recall = write_faiss(out, documents, found, queries, index=form, kind=stored, facts=facts)
        return Indexed(len(documents), recall, str(out))
    name = collection or _collection_name(name_of(model))
    address = uri or str(writable_folder(out) / "milvus.db")
    check_ids(documents)
    made_of = fingerprint([found.fingerprint, index, kind, *documents.ids])
    place = Collection(address, name, documents, found, form, stored)
    recall = _to_milvus(place, queries, made_of, overwrite)
    made = {"index": index, "vectors": kind, "documents": len(documents), "engine": "milvus"}
    facts |= {"uri": "milvus.db" if uri is None else uri, "collection": name}
    write_json(writable_folder(out) / "index.json", {**facts, **made, "recall": vars(recall)})
    return Indexed(len(documents), recall, f"collection {name} in {address}")


def _chosen(to: str, index: str, kind: str) -> tuple[Index, Kind]:
    """Index and kind as typed, or UserError naming what there is."""
    choices = (("to", to, ENGINES), ("index", index, INDEXES), ("vectors", kind, KINDS))
    for what, value, known in choices:
        if value not in known:
            raise UserError(f"--{what}: {value!r} is none of {', '.join(known)}")
    return cast(Index, index), cast(Kind, kind)


def _to_milvus(
    place: Collection, queries: NDArray[np.float32], made_of: str, overwrite: bool
) -> Recall:
    """Fill the collection, as far as it is not full already, and ask it."""
    try:
        inserted = place.fill(made_of, overwrite)
        if inserted < len(place.documents):
            say(f"{len(place.documents) - inserted:,} of the documents were there already")
        return measure_recall(place.search(), queries, place.vectors)
    finally:
        place.close()


def _queries(data: Sequence[Path]) -> list[str]:
    """The queries that lie beside the documents, at most a thousand."""
    names = ("queries.jsonl", "queries.jsonl.gz")
    files = [path / name for path in data for name in names if (path / name).exists()]
    return spread(read_documents(files).texts, ASKED) if files else []


def _collection_name(name: str) -> str:
    """Letters, digits and underscores are what Milvus takes, a letter first."""
    clean = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
    return clean if clean[:1].isalpha() else f"m_{clean}"
