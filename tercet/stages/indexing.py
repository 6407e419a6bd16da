"""Hand a model's vectors over to a search engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig
from tercet.data import Texts, read_corpus, read_documents
from tercet.errors import UserError
from tercet.export.collection import write_milvus
from tercet.export.index import (
    FACTS,
    INDEXES,
    KINDS,
    Kind,
    Recall,
    check_choice,
    write_faiss,
)
from tercet.export.milvus import FILE, Target
from tercet.export.sample import spread
from tercet.files import check_replaceable, disk_errors, fingerprint, writable_folder
from tercet.mining.ann import Index, import_faiss
from tercet.models import (
    Vectors,
    default_device,
    load_encoder,
    model_fingerprint,
    prompt_of,
    resolve,
    route,
    vectors,
)
from tercet.models.encode import vector_width
from tercet.models.quantise import Ranges, read_ranges
from tercet.peers import together
from tercet.processes import on_main
from tercet.secret import masked
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


@together()
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
    Under `accelerate launch` the processes share the encoding, the main one writes, and all
    return the same. Raises UserError for whatever the user can mend, before any text is encoded
    where that can be told.
    """
    form, stored = _chosen(to, index, kind, uri=uri, collection=collection)
    documents, asked = read_documents(data), _queries(data)
    encoder = load_encoder(ModelConfig(path=model, trust_remote_code=trust_remote_code), "model")
    width = vector_width(route(encoder, "document"), truncate_dim)
    check_choice(to, form, stored, width, len(documents))
    fits = stored == "int8" and (to == "milvus" or form != "ivf_flat")
    ranges = _stored_ranges(model, encoder, width) if fits else None
    made_of = _made_of(encoder, documents, [str(width), index, kind], ranges)
    name = collection or _collection_name(name_of(model))
    address = str(out / FILE) if uri is None else uri
    milvus = Target(address, name, form, stored, made_of) if to == "milvus" else None

    def check() -> None:
        if milvus is None:
            _check_faiss(out, overwrite, [model, *data])
        else:
            _check_milvus(milvus, documents, out, overwrite)

    on_main(check)
    encoder = encoder.to(default_device())
    found = vectors(
        encoder, documents.texts, "document", truncate_dim=truncate_dim, title="documents"
    )
    texts = asked or spread(documents.texts, ASKED)
    queries = np.asarray(
        vectors(encoder, texts, "query", truncate_dim=truncate_dim, title="queries")
    )
    facts = _facts(model, encoder, documents, found) | {
        "engine": to,
        "index": index,
        "vectors": kind,
        "metric": "hamming" if kind == "binary" else "inner product",
        "recall_asked_with": "queries" if asked else "documents",
    }
    if stored == "int8":
        facts["int8_ranges"] = "the model's" if ranges is not None else "the documents'"

    def write() -> Recall:
        given = (documents, found, queries)
        how: dict[str, Any] = {"ranges": ranges, "facts": facts}
        if milvus is None:
            return write_faiss(out, *given, index=form, kind=stored, **how)
        return write_milvus(out, milvus, *given, overwrite=overwrite, **how)

    place = f"collection {name} in {masked(milvus.uri)}" if milvus else str(out)
    return Indexed(len(documents), on_main(write), place)


def _chosen(to: str, index: str, kind: str, **of_milvus: str | None) -> tuple[Index, Kind]:
    """Index and kind as typed, or UserError naming what there is."""
    choices = (("to", to, ENGINES), ("index", index, INDEXES), ("vectors", kind, KINDS))
    for what, value, known in choices:
        if value not in known:
            raise UserError(f"--{what}: {value!r} is none of {', '.join(known)}")
    for what, value in of_milvus.items():
        if value is not None and to != "milvus":
            raise UserError(f"--{what}: is for --to milvus; add it")
    return cast(Index, index), cast(Kind, kind)


def _stored_ranges(model: str, encoder: SentenceTransformer, width: int) -> Ranges | None:
    """Those that `tercet calibrate` left with the model for vectors of this width."""
    folder = Path(resolve(model, "model"))
    return read_ranges(folder, model_fingerprint(encoder)).get(width)


def _made_of(
    encoder: SentenceTransformer, documents: Texts, form: Sequence[str], ranges: Ranges | None
) -> str:
    """Fingerprint of all that decides what a collection holds."""
    side = route(encoder, "document")
    made_by = [model_fingerprint(side), prompt_of(side, "document"), *form]
    scale = [] if ranges is None else [repr(ranges.largest)]
    return fingerprint([*made_by, *scale, *documents.ids, *documents.texts])


def _check_faiss(out: Path, overwrite: bool, keep: Sequence[str | Path]) -> None:
    import_faiss("--to faiss")
    if overwrite and (out / FILE).exists():
        raise UserError(
            f"{out}: holds {FILE}, which --overwrite would delete with all its collections; choose "
            "another folder"
        )
    check_replaceable(out, FACTS, overwrite=overwrite, keep=keep)


def _check_milvus(target: Target, documents: Texts, out: Path, overwrite: bool) -> None:
    """`out` may be gone on with, so it need not be new: only nothing else's."""
    with disk_errors(out, "choose another folder"):  # a name too long, a closed folder above
        if out.exists() and not out.is_dir():
            raise UserError(f"{out}: is no folder; choose another name")
        inside = sorted(path.name for path in out.iterdir()) if out.exists() else []
    strange = [name for name in inside if not name.startswith(".") and name not in (FILE, FACTS)]
    if strange:
        raise UserError(
            f"{out}: holds {strange[0]}, which is no part of a collection; choose another folder"
        )
    target.check(documents, overwrite)
    if target.embedded:
        writable_folder(Path(target.uri).parent)
    writable_folder(out)


def _facts(
    model: str, encoder: SentenceTransformer, documents: Texts, found: Vectors
) -> dict[str, Any]:
    """What index.json says of model and vectors."""
    return {
        "model": name_of(model),
        "model_fingerprint": model_fingerprint(encoder),
        "vectors_fingerprint": found.fingerprint,
        "documents": len(documents),
        "dimensions": found.shape[1],
        "prompts": encoder.prompts,
        "versions": installed_versions(),
    }


def _queries(data: Sequence[Path]) -> list[str]:
    """The queries that lie beside the documents, at most a thousand."""
    names = ("queries.jsonl", "queries.jsonl.gz")
    files = [path / name for path in data for name in names if (path / name).exists()]
    return spread(read_corpus(files), ASKED) if files else []


def _collection_name(name: str) -> str:
    """Letters, digits and underscores are what Milvus takes, a letter first."""
    clean = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
    return clean if clean[:1].isalpha() else f"m_{clean}"
