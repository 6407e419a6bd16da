"""Negatives out of vectors, by us and by the peer, on the same vectors and with the same rules."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers.util import cos_sim, mine_hard_negatives, pairwise_cos_sim

from tercet.configs.schema import MiningConfig
from tercet.data.rows import Ragged, Texts, TrainingSet
from tercet.mining import MODEL, Space, asked_queries, mine, searchable
from tercet.mining.candidates import Picked

OURS, PEER = "ours", "mine_hard_negatives"
NEGATIVES = 3  # the peer's default
DEPTH = 10 * NEGATIVES + 1  # candidates that the peer then looks at
Pairs = set[tuple[str, str]]  # query, negative


class Given:
    """Stands where the peer expects a model and hands on vectors, so that mining alone is run."""

    device = torch.device("cpu")
    similarity = staticmethod(cos_sim)
    similarity_pairwise = staticmethod(pairwise_cos_sim)

    def __init__(self, queries: NDArray[np.float32], documents: NDArray[np.float32]) -> None:
        self.queries, self.documents = queries, documents

    def encode_query(self, texts: Sequence[str], **_: Any) -> NDArray[np.float32]:
        return self._all(texts, self.queries)

    def encode_document(self, texts: Sequence[str], **_: Any) -> NDArray[np.float32]:
        return self._all(texts, self.documents)

    def get_embedding_dimension(self) -> int:
        return self.documents.shape[1]

    def _all(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        assert len(texts) == len(vectors)  # no text repeats, so the peer asks for all, in order
        return vectors


def ours(work: Path, cache: Path | None = None, margin: float = 0.95) -> Pairs:
    """Search, choose, write the mined set and its record; read what was written.

    Documents are searched in the order of their ids, as `tercet mine` does it. The search is made
    each time, unless `cache` holds its lists from a time before.
    """
    queries, documents = (np.load(work / name, mmap_mode="r") for name in ("q.npy", "d.npy"))
    row = np.arange(len(queries))
    rows = TrainingSet(
        Texts([f"q{i}" for i in row], [f"question {i}" for i in row]),
        Texts([f"d{i}" for i in row], [f"answer {i}" for i in row]),
        row,
        Ragged.of([[int(i)] for i in row]),
        Ragged.of([[] for _ in row]),
        np.array([0, len(row)]),
    )
    config = MiningConfig(negatives=NEGATIVES, depth=DEPTH, relative_margin=margin)
    asked = asked_queries(rows, taken=searchable(rows))
    spaces = {MODEL: Space(queries, Picked(documents, asked.taken), "given")}
    with TemporaryDirectory(dir=work) as fresh:
        out, kept = work / "mined.parquet", cache or Path(fresh)
        mine(asked, spaces, config, out, miner="given", cache=kept)
    mined = pq.read_table(work / "mined.parquet", columns=["query_id", "negative_ids"]).to_pydict()
    lists = zip(mined["query_id"], mined["negative_ids"], strict=True)
    return {(query, negative) for query, negatives in lists for negative in negatives}


def theirs(work: Path, use_faiss: bool) -> Pairs:
    """`mine_hard_negatives`, whose margin counts from the other end."""
    given = Given(np.load(work / "q.npy"), np.load(work / "d.npy"))  # as `encode` returns them
    columns = {"query": len(given.queries), "positive": len(given.documents)}
    pairs = {name: [f"{name[0]}{i}" for i in range(count)] for name, count in columns.items()}
    found: Any = mine_hard_negatives(
        Dataset.from_dict(pairs),
        given,  # type: ignore[arg-type]
        relative_margin=0.05,
        num_negatives=NEGATIVES,
        use_faiss=use_faiss,
        verbose=False,
    )
    return {(row["query"], f"d{row['negative'][1:]}") for row in found}


MINERS = {
    OURS: ours,
    PEER: lambda work: theirs(work, use_faiss=False),
    "mine_hard_negatives, faiss": lambda work: theirs(work, use_faiss=True),
}
