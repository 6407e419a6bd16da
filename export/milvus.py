"""Where a Milvus collection is: a file of its embedded edition, or a server anywhere."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tercet.data.rows import Texts
from tercet.errors import UserError
from tercet.export.index import INDEXES, Kind
from tercet.files import disk_trouble
from tercet.mining.ann import Index

FILE = "milvus.db"
TOKEN = "MILVUS_TOKEN"  # variable of the environment; a URI may hold user:password instead
SCHEMES = ("http", "https", "tcp", "unix")
LONGEST_ID = 512  # bytes
LONGEST_NAME = 255 - 17  # of a collection, so that its replacement's name fits as well
MADE_OF = "tercet.made_of"
EMBEDDED = ("flat", "hnsw", "ivf_flat")  # indexes of the embedded edition, over float32 alone
SERVER: Mapping[Kind, tuple[Index, ...]] = {  # those that Milvus 2.6 documents for each vector type
    "float32": INDEXES,
    "int8": ("hnsw",),
    "binary": ("flat", "ivf_flat"),
}


@dataclass(frozen=True)
class Target:
    """A collection: where it is, what is in it."""

    uri: str  # a path ending in .db, or a server's address
    name: str
    index: Index
    kind: Kind
    made_of: str  # fingerprint of model, texts, ids and form

    @property
    def embedded(self) -> bool:
        """Whether it is a file of the embedded edition."""
        return self.uri.endswith(".db")

    @property
    def spare(self) -> str:
        """The collection that grows while one that it will replace still answers."""
        return f"{self.name}_{self.made_of[:16]}"

    def check(self, documents: Texts, overwrite: bool) -> None:
        """Raise UserError for what can be told before any text is encoded."""
        if not re.fullmatch(rf"[A-Za-z_][A-Za-z0-9_]{{0,{LONGEST_NAME - 1}}}", self.name):
            raise UserError(
                f"--collection {self.name!r}: letters, digits and underscores, no digit first, "
                f"at most {LONGEST_NAME}"
            )
        if self.embedded and (self.kind != "float32" or self.index not in EMBEDDED):
            raise UserError(
                f"--index {self.index} --vectors {self.kind}: the embedded Milvus holds float32 "
                f"vectors as {', '.join(EMBEDDED)}; name a server with --uri, or take --to faiss"
            )
        if self.index not in SERVER[self.kind]:
            raise UserError(
                f"--index {self.index} --vectors {self.kind}: a Milvus server holds {self.kind} "
                f"vectors as {', '.join(SERVER[self.kind])}; choose one of these, or --to faiss"
            )
        check_ids(documents)
        if self.embedded and Path(self.uri).is_file():
            raise UserError(
                f"{self.uri}: is a file, and Milvus Lite 3 keeps a database in a folder; choose "
                "another"
            )
        if not self.embedded:
            check_address(self.uri)
        import_milvus(self.embedded)
        if self.embedded and not Path(self.uri).exists():
            return
        with connected(self) as client:  # also to overwrite: does it answer, and let us in?
            if client.has_collection(self.name) and not overwrite:
                self.refuse_other(client)

    def refuse_other(self, client: Any) -> None:
        """Raise UserError if the collection, which must be there, was made of something else."""
        found = client.describe_collection(self.name)
        if self.mark not in (found.get("description"), found.get("properties", {}).get(MADE_OF)):
            raise UserError(
                f"collection {self.name!r} exists and was made of something else; choose "
                "another --collection or say --overwrite"
            )

    @property
    def mark(self) -> str:
        """By which a collection is known again."""
        return f"{MADE_OF} {self.made_of}"


def check_address(uri: str) -> None:
    """Raise UserError unless `uri` may be that of a server; whether one is there shows later."""
    try:
        parts = urlsplit(uri)
        place = parts.path if parts.scheme == "unix" else parts.hostname
        whole = parts.scheme in SCHEMES and bool(place) and parts.port != 0
    except ValueError:  # a port that is no number, or too large a one
        whole = False
    if not whole:
        raise UserError(
            f"--uri {uri!r}: is neither a file ending in .db nor the address of a server, such as "
            "http://localhost:19530"
        )


def check_ids(documents: Texts) -> None:
    """Raise UserError naming the first id that is too long for the database."""
    for id_ in documents.ids:
        if len(id_.encode()) > LONGEST_ID:
            raise UserError(
                f"id {id_[:60]!r}... is longer than {LONGEST_ID} bytes, the most for Milvus"
            )


def import_milvus(embedded: bool) -> None:
    """Raise UserError, saying how to install them, if the packages are missing."""
    try:
        import pymilvus  # noqa: F401

        if embedded:
            import milvus_lite  # noqa: F401
    except ImportError as error:
        raise UserError(f"--to milvus needs {error.name}: pip install 'tercet[vectordb]'") from None


@contextmanager
def connected(target: Target) -> Iterator[Any]:
    """A client; one line for whatever the database complains of in the block.

    The embedded edition, which runs inside this process, lets go of its file afterwards.
    """
    from pymilvus import MilvusClient, MilvusException

    with _silent("pymilvus", "grpc._server", "milvus_lite"):
        try:
            client = MilvusClient(target.uri, token=os.environ.get(TOKEN, ""))
            try:
                yield client
            finally:
                client.close()
        except MilvusException as error:
            raise UserError(_complaint(target, error.message)) from None
        finally:
            if target.embedded:
                from milvus_lite.server_manager import server_manager_instance

                server_manager_instance.release_server(target.uri)


@contextmanager
def _silent(*names: str) -> Iterator[None]:
    """They log with a traceback what they also raise."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _complaint(target: Target, message: str) -> str:
    where = f"milvus, collection {target.name!r} in {target.uri}: "
    reason = disk_trouble(Exception(message))
    if reason:
        return where + f"cannot be written ({reason}); make room, and the same command goes on"
    if target.embedded and message == "Open local milvus failed":
        return where + "it cannot be opened; is another process using it?"
    if message.startswith("Fail connecting"):
        return where + f"{message}; is it running, and is --uri right?"
    return where + message
