"""Vectors handed over to Milvus: a collection that is filled in bulk, and asked."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tercet.data.rows import Texts
from tercet.export.index import FACTS, Recall, Search, measure_recall
from tercet.export.milvus import FILE, LONGEST_ID, MADE_OF, Target, connected
from tercet.files import writable_folder, write_json
from tercet.mining.ann import settings_for
from tercet.mining.search import Rows
from tercet.models.quantise import LEVEL, Ranges, bits, calibrate, int8_codes
from tercet.progress import progress, say
from tercet.secret import masked

BATCH = 1_000  # rows in one request
PATIENCE = 3_600  # seconds that a server gets to finish its index
LONGEST_TEXT = 65_535  # bytes, the most that Milvus takes
FIELDS = {"float32": "FLOAT_VECTOR", "int8": "INT8_VECTOR", "binary": "BINARY_VECTOR"}
ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})
NAMES = {"flat": "FLAT", "hnsw": "HNSW", "ivf_flat": "IVF_FLAT", "ivf_pq": "IVF_PQ"}


def write_milvus(
    out: Path,
    target: Target,
    documents: Texts,
    vectors: Rows,
    queries: NDArray[np.float32],
    *,
    ranges: Ranges | None = None,
    overwrite: bool = False,
    facts: dict[str, Any],
) -> Recall:
    """Fill the collection, as far as it is not full already, ask it, and write `out/index.json`.

    vectors (D, H) and queries (Q, H) float32; `ranges` are those of int8 codes, by default what
    the documents reach. `facts` go into index.json beside the recall. Raises UserError for
    whatever the database complains of; what is in it then stays, and the next call goes on.
    """
    writable_folder(out)
    own = target.uri == str(out / FILE)  # told without the folder, which may be moved
    facts = facts | {"uri": FILE if own else masked(target.uri), "collection": target.name}
    if target.kind == "int8":  # what a query is multiplied by before it is rounded
        ranges = ranges or calibrate(vectors)
        facts["int8_scale"] = LEVEL / ranges.largest
    with connected(target) as client:
        place = Collection(client, target, documents, vectors, ranges)
        inserted = place.fill(overwrite)
    if inserted < len(documents):
        say(f"{len(documents) - inserted:,} of the documents were there already")
    # Opened anew, as its readers will: the embedded edition builds its index in the background, is
    # done when it is closed, and until then compares one by one, without saying so.
    with connected(target) as client:
        place = Collection(client, target, documents, vectors, ranges)
        recall = measure_recall(place.search(), queries, vectors)
    write_json(out / FACTS, {**facts, "recall": vars(recall)})
    return recall


class Collection:
    """A collection of ids, texts and vectors that is filled in bulk and can be gone on with."""

    def __init__(
        self,
        client: Any,
        target: Target,
        documents: Texts,
        vectors: Rows,
        ranges: Ranges | None = None,
    ) -> None:
        """`client` is connected; `ranges` are those of int8 codes."""
        self.client, self.target, self.ranges = client, target, ranges
        self.documents, self.vectors = documents, vectors

    def fill(self, overwrite: bool = False) -> int:
        """Put in what is not there yet; return how many rows that was.

        A collection of this name that was made of something else is refused. With `overwrite`
        it stays, whole, until the one that replaces it is full and takes its name.
        """
        target = self.target
        there, begun = map(self.client.has_collection, (target.name, target.spare))
        if there and not overwrite:
            target.refuse_other(self.client)
        replacing = overwrite if there else begun  # and stopped before it had the name
        name = target.spare if replacing else target.name
        if not self.client.has_collection(name):
            self._create(name)
        made = self._insert(name)
        if replacing and there:
            self.client.drop_collection(target.name)
        if replacing:
            self.client.rename_collection(target.spare, target.name)
        return made

    def search(self) -> Search:
        """Positions of the documents that the database returns."""
        self.client.load_collection(self.target.name)
        place = self.documents.index
        metric = "HAMMING" if self.target.kind == "binary" else "IP"

        def positions(asked: Rows, k: int) -> NDArray[np.int64]:
            answers = self.client.search(
                self.target.name,
                data=self.stored(asked[:]),
                limit=k,
                search_params={"metric_type": metric, "params": self._how_hard(k)},
                consistency_level="Strong",
            )
            found = np.full((len(asked), k), -1, dtype=np.int64)
            for row, hits in enumerate(answers):
                found[row, : len(hits)] = [place.get(hit["id"], -1) for hit in hits]
            return found

        return positions

    def stored(self, vectors: NDArray[np.float32]) -> list[Any]:
        """Rows in the form that the field takes."""
        if self.target.kind == "binary":
            return [row.tobytes() for row in bits(vectors)]
        if self.ranges is not None:
            return list(int8_codes(vectors, self.ranges))
        return list(np.ascontiguousarray(vectors, dtype=np.float32))

    def _create(self, name: str) -> None:
        from pymilvus import DataType

        schema = self.client.create_schema(auto_id=False, description=self.target.mark)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=LONGEST_ID)
        schema.add_field("text", DataType.VARCHAR, max_length=LONGEST_TEXT)
        field = getattr(DataType, FIELDS[self.target.kind])
        schema.add_field("vector", field, dim=self.vectors.shape[1])
        how, form = self.client.prepare_index_params(), NAMES[self.target.index]
        binary, built = self.target.kind == "binary", self._built_how()
        if self.target.embedded:  # which looks for them where the client does not put them
            built = {"params": built}
        how.add_index(
            "vector",
            index_name="vector",
            index_type=f"BIN_{form}" if binary else form,
            metric_type="HAMMING" if binary else "IP",
            params=built,
        )
        self.client.create_collection(
            name,
            schema=schema,
            index_params=how,
            properties={MADE_OF: self.target.mark},  # the embedded edition forgets descriptions
            consistency_level="Strong",  # a reader sees what was written, at once
        )

    def _insert(self, name: str) -> int:
        self.client.load_collection(name)  # what is not loaded cannot be asked for ids
        made, cut = 0, 0
        with progress("insert", len(self.documents)) as advance:
            for start in range(0, len(self.documents), BATCH):
                rows = range(start, min(start + BATCH, len(self.documents)))
                missing = self._missing(name, rows)
                if missing:
                    stored = self.stored(self.vectors[rows.start : rows.stop])
                    texts = {i: _within(self.documents.texts[i]) for i in missing}
                    cut += sum(len(texts[i]) < len(self.documents.texts[i]) for i in missing)
                    data = [
                        {
                            "id": self.documents.ids[i],
                            "text": texts[i],
                            "vector": stored[i - start],
                        }
                        for i in missing
                    ]
                    self.client.upsert(name, data)  # a request that is sent again adds nothing
                made += len(missing)
                advance(len(rows))
        if cut:
            say(f"{cut:,} texts are longer than {LONGEST_TEXT:,} bytes and were stored cut")
        self.client.flush(name)
        self._wait_for_index(name)
        return made

    def _wait_for_index(self, name: str) -> None:
        """A server builds it afterwards; rows that are not in it are compared one by one till then.

        A recall measured before would be that of exact search.
        """
        for second in range(PATIENCE):
            waiting = self.client.describe_index(name, "vector").get("pending_index_rows")
            if not waiting:
                return
            if second == 0:
                say(f"the server has {waiting:,} rows to put into its index")
            time.sleep(1)
        say("the server has not finished its index: what is measured now is not its recall")

    def _missing(self, name: str, rows: range) -> list[int]:
        """Those of the documents at `rows` that are not in the collection."""
        ids = [self.documents.ids[i] for i in rows]
        wanted = f"id in [{', '.join(map(_quoted, ids))}]"  # the client's own `get` escapes nothing
        there = self.client.query(
            name, filter=wanted, output_fields=["id"], consistency_level="Strong"
        )
        known = {row["id"] for row in there}
        return [i for i in rows if self.documents.ids[i] not in known]

    def _built_how(self) -> dict[str, int]:
        settings = settings_for(*self.vectors.shape)
        return {
            "flat": {},
            "hnsw": {"M": settings.neighbours, "efConstruction": settings.ef_construction},
            "ivf_flat": {"nlist": settings.lists},
            "ivf_pq": {"nlist": settings.lists, "m": settings.code_bytes, "nbits": 8},
        }[self.target.index]

    def _how_hard(self, k: int) -> dict[str, int]:
        settings = settings_for(*self.vectors.shape)
        probes = {"nprobe": min(settings.probes, settings.lists)}
        hnsw = {"ef": max(settings.ef_search, k)}
        return {"flat": {}, "hnsw": hnsw, "ivf_flat": probes, "ivf_pq": probes}[self.target.index]


def _quoted(id_: str) -> str:
    """A text as filters write it."""
    return f'"{id_.translate(ESCAPES)}"'


def _within(text: str) -> str:
    """The beginning of a text that fits into the field."""
    data = text.encode()
    return text if len(data) <= LONGEST_TEXT else data[:LONGEST_TEXT].decode(errors="ignore")
