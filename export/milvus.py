"""Vectors handed over to Milvus: a file of its embedded edition, or a server anywhere."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tercet.data.rows import Texts
from tercet.errors import UserError
from tercet.export.index import Kind, Search, bits
from tercet.mining.ann import Index, settings_for
from tercet.mining.search import Rows
from tercet.progress import progress, say

BATCH = 1_000  # rows in one request
LONGEST_ID, LONGEST_TEXT = 512, 65_535  # bytes; the latter is the most that Milvus takes
MADE_OF = "tercet.made_of"
FIELDS = {"float32": "FLOAT_VECTOR", "int8": "INT8_VECTOR", "binary": "BINARY_VECTOR"}
NAMES = {"flat": "FLAT", "hnsw": "HNSW", "ivf_flat": "IVF_FLAT", "ivf_pq": "IVF_PQ"}


class Collection:
    """A collection of ids, texts and vectors that is filled in bulk and can be gone on with."""

    def __init__(
        self, uri: str, name: str, documents: Texts, vectors: Rows, index: Index, kind: Kind
    ) -> None:
        """Connect to `uri`: a path ending in .db, or a server's address."""
        self.client, self.name, self.index, self.kind = _connect(uri), name, index, kind
        self.documents, self.vectors = documents, vectors
        self.scale = _int8_scale(vectors) if kind == "int8" else 1.0

    def fill(self, fingerprint: str, overwrite: bool = False) -> int:
        """Insert what is not there yet; return how many rows that was.

        `fingerprint` names model, texts and form of the vectors; a collection of this name that
        was made of something else is refused, or dropped with `overwrite`.
        """
        with _milvus(self.name):
            made_of = f"{MADE_OF} {fingerprint}"
            if self.client.has_collection(self.name):
                found = self.client.describe_collection(self.name)
                told = found.get("description"), found.get("properties", {}).get(MADE_OF)
                if overwrite:
                    self.client.drop_collection(self.name)
                elif made_of not in told:
                    raise UserError(
                        f"collection {self.name!r} exists and was made of something else; choose "
                        "another --collection or say --overwrite"
                    )
            if not self.client.has_collection(self.name):
                self._create(made_of)
            return self._insert()

    def search(self) -> Search:
        """Positions of the documents that the database returns."""
        with _milvus(self.name):
            self.client.load_collection(self.name)
        place = self.documents.index
        metric = "HAMMING" if self.kind == "binary" else "IP"

        def positions(asked: NDArray[np.float32], k: int) -> NDArray[np.int64]:
            settings = {"metric_type": metric, "params": self._how_hard(k)}
            with _milvus(self.name):
                answers = self.client.search(
                    self.name, data=self.stored(asked), limit=k, search_params=settings
                )
            found = np.full((len(asked), k), -1, dtype=np.int64)
            for row, hits in enumerate(answers):
                found[row, : len(hits)] = [place[hit["id"]] for hit in hits]
            return found

        return positions

    def close(self) -> None:
        """End the connection; the embedded edition then lets go of its file."""
        self.client.close()

    def _create(self, made_of: str) -> None:
        from pymilvus import DataType

        schema = self.client.create_schema(auto_id=False, description=made_of)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=LONGEST_ID)
        schema.add_field("text", DataType.VARCHAR, max_length=LONGEST_TEXT)
        field = getattr(DataType, FIELDS[self.kind])
        schema.add_field("vector", field, dim=self.vectors.shape[1])
        how = self.client.prepare_index_params()
        binary = self.kind == "binary"
        how.add_index(
            "vector",
            index_type=f"BIN_{NAMES[self.index]}" if binary else NAMES[self.index],
            metric_type="HAMMING" if binary else "IP",
            params=self._built_how(),
        )
        self.client.create_collection(
            self.name,
            schema=schema,
            index_params=how,
            properties={MADE_OF: made_of},  # the embedded edition forgets descriptions
        )

    def _insert(self) -> int:
        made, cut = 0, 0
        with progress("insert", len(self.documents)) as advance:
            for start in range(0, len(self.documents), BATCH):
                rows = range(start, min(start + BATCH, len(self.documents)))
                there = self.client.get(
                    self.name, ids=[self.documents.ids[i] for i in rows], output_fields=["id"]
                )
                known = {row["id"] for row in there}
                missing = [i for i in rows if self.documents.ids[i] not in known]
                if missing:
                    stored = self.stored(self.vectors[rows.start : rows.stop])
                    texts = {i: _within(self.documents.texts[i]) for i in missing}
                    cut += sum(len(texts[i]) < len(self.documents.texts[i]) for i in missing)
                    self.client.insert(
                        self.name,
                        [
                            {
                                "id": self.documents.ids[i],
                                "text": texts[i],
                                "vector": stored[i - start],
                            }
                            for i in missing
                        ],
                    )
                made += len(missing)
                advance(len(rows))
        if cut:
            say(f"{cut:,} texts are longer than {LONGEST_TEXT:,} bytes and were stored cut")
        self.client.flush(self.name)
        return made

    def stored(self, vectors: NDArray[np.float32]) -> list[Any]:
        """Rows in the form that the field takes."""
        if self.kind == "binary":
            return [row.tobytes() for row in bits(vectors)]
        if self.kind == "int8":
            return list(np.rint(vectors * self.scale).clip(-127, 127).astype(np.int8))
        return list(np.ascontiguousarray(vectors, dtype=np.float32))

    def _built_how(self) -> dict[str, int]:
        settings = settings_for(*self.vectors.shape)
        return {
            "flat": {},
            "hnsw": {"M": settings.neighbours, "efConstruction": settings.ef_construction},
            "ivf_flat": {"nlist": settings.lists},
            "ivf_pq": {"nlist": settings.lists, "m": settings.code_bytes, "nbits": 8},
        }[self.index]

    def _how_hard(self, k: int) -> dict[str, int]:
        settings = settings_for(*self.vectors.shape)
        probes = {"nprobe": min(settings.probes, settings.lists)}
        hnsw = {"ef": max(settings.ef_search, k)}
        return {"flat": {}, "hnsw": hnsw, "ivf_flat": probes, "ivf_pq": probes}[self.index]


def check_ids(documents: Texts) -> None:
    """Raise UserError naming the first id that is too long for the database."""
    for id_ in documents.ids:
        if len(id_.encode()) > LONGEST_ID:
            raise UserError(
                f"id {id_[:60]!r}... is longer than {LONGEST_ID} bytes, the most for Milvus"
            )


def _connect(uri: str) -> Any:
    try:
        from pymilvus import MilvusClient
    except ImportError:
        raise UserError("--to milvus needs pymilvus: pip install 'tercet[vectordb]'") from None
    with _milvus(uri):
        return MilvusClient(uri)


@contextmanager
def _milvus(what: str) -> Iterator[None]:
    """One line for whatever the database complains of, which also logs it with a traceback."""
    from pymilvus import MilvusException

    loggers = [logging.getLogger(name) for name in ("pymilvus", "grpc._server")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    except MilvusException as error:
        raise UserError(f"milvus, {what}: {error.message}") from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _int8_scale(vectors: Rows) -> float:
    """What takes the largest component of any vector to 127."""
    largest = max(
        float(np.abs(vectors[start : start + BATCH]).max())
        for start in range(0, len(vectors), BATCH)
    )
    return 127 / max(largest, 1e-12)


def _within(text: str) -> str:
    """The beginning of a text that fits into the field."""
    data = text.encode()
    return text if len(data) <= LONGEST_TEXT else data[:LONGEST_TEXT].decode(errors="ignore")
