"""The mining stage: vectors in, one Parquet file of negatives and the reasons for them out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tercet.configs.schema import MiningConfig
from tercet.data.rows import TrainingSet
from tercet.errors import UserError
from tercet.files import sha256, whole_file, write_json
from tercet.mining.search import top_k
from tercet.mining.select import RULES, Selection, rule_text, select
from tercet.models import Vectors
from tercet.progress import progress

Lookup = Vectors | NDArray[np.float32]
PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("positive_ids", pa.list_(pa.string())),  # every known positive, under any id
        ("negative_ids", pa.list_(pa.string())),  # best rank first
        ("negative_scores", pa.list_(pa.float32())),
        ("negative_ranks", pa.list_(pa.int32())),  # in the raw search, from 1
        ("negative_rules", pa.list_(pa.string())),
        ("positive_score", pa.float32()),  # of the positive least like the query
        ("miner", pa.string()),
        ("round", pa.int32()),
    ]
)


@dataclass(frozen=True)
class MinedCounts:
    """What came of it, over all queries asked by a row."""

    queries: int
    kept: int  # negatives
    dropped: dict[str, int]  # rule -> candidates, in the order the rules are applied
    short: int  # queries that got fewer negatives than asked for, those without any included
    without: int  # queries that got none


def mine(
    rows: TrainingSet,
    query_vectors: Lookup,
    document_vectors: Lookup,
    config: MiningConfig,
    out: Path,
    *,
    miner: str,
    round_number: int = 0,
) -> MinedCounts:
    """Write `out` (Parquet, `SCHEMA`, one row per query id) and `mining.json` beside it.

    query_vectors (Q, H) and document_vectors (D, H) follow `rows.queries` and `rows.documents`;
    scores are inner products. `miner` is the fingerprint of the model that made them. Only queries
    that a row asks are mined. The same input gives the same bytes.
    Raises UserError for settings that leave no candidate, and for vectors that are not finite.
    """
    _check(rows, query_vectors, document_vectors, config)
    asked = np.unique(rows.row_query)
    queries = query_vectors if len(asked) == len(rows.queries) else query_vectors[asked]
    known = rows.known_positives
    found = top_k(queries, document_vectors, config.depth)
    lowest = [_lowest(query_vectors[q], document_vectors, known[q]) for q in asked]
    chosen = _choose(rows, asked, found, lowest, config)
    table = _table(rows, asked, lowest, chosen, rule_text(config), miner, round_number)
    with whole_file(out) as partial:
        pq.write_table(table, partial)
    counts = _counts(chosen, config.negatives)
    provenance = {"miner": miner, "round": round_number, "settings": config.model_dump(mode="json")}
    write_json(
        out.with_name("mining.json"),
        {
            "file": out.name,
            "sha256": sha256(out),
            **provenance,
            "counts": vars(counts),
            "score_percentiles": _score_percentiles(lowest, chosen),
        },
    )
    return counts


def _check(
    rows: TrainingSet,
    query_vectors: Lookup,
    document_vectors: Lookup,
    config: MiningConfig,
) -> None:
    if config.skip >= config.depth:
        raise UserError(
            f"mining.skip {config.skip} leaves nothing of mining.depth {config.depth}; lower it"
        )
    have = (len(query_vectors), len(document_vectors))
    need = (len(rows.queries), len(rows.documents))
    if have != need:
        raise ValueError(f"{have} vectors for {need} queries and documents")


def _choose(
    rows: TrainingSet,
    asked: NDArray[np.int64],
    found: tuple[NDArray[np.float32], NDArray[np.int64]],
    lowest: Sequence[float],
    config: MiningConfig,
) -> list[Selection]:
    known, same, ids = rows.known_positives, rows.documents.same, rows.queries.ids
    chosen: list[Selection] = []
    with progress("choose negatives", len(asked)) as advance:
        for query, low, scores, positions in zip(asked, lowest, *found, strict=True):
            chosen.append(select(positions, scores, known[query], same, low, config, ids[query]))
            advance()
    return chosen


def _lowest(query: NDArray[np.float32], documents: Lookup, known: NDArray[np.int64]) -> float:
    """Score of the known positive least like the query."""
    return float((documents[known] @ query).min())


def _table(
    rows: TrainingSet,
    asked: NDArray[np.int64],
    lowest: Sequence[float],
    chosen: Sequence[Selection],
    rule: str,
    miner: str,
    round_number: int,
) -> pa.Table:
    ids, known = rows.documents.ids, rows.known_positives
    columns: dict[str, Any] = {
        "query_id": [rows.queries.ids[q] for q in asked],
        "positive_ids": [[ids[d] for d in known[q]] for q in asked],
        "negative_ids": [[ids[d] for d in s.positions] for s in chosen],
        "negative_scores": [s.scores for s in chosen],
        "negative_ranks": [s.ranks for s in chosen],
        "negative_rules": [[rule] * len(s.positions) for s in chosen],
        "positive_score": lowest,
        "miner": [miner] * len(asked),
        "round": [round_number] * len(asked),
    }
    return pa.table(columns, schema=SCHEMA)


def _counts(chosen: Sequence[Selection], wanted: int) -> MinedCounts:
    dropped = sum((Counter(s.dropped) for s in chosen), Counter())
    kept = [len(s.positions) for s in chosen]
    return MinedCounts(
        queries=len(chosen),
        kept=sum(kept),
        dropped={rule: dropped[rule] for rule in RULES},
        short=sum(n < wanted for n in kept),
        without=sum(n == 0 for n in kept),
    )


def _score_percentiles(
    lowest: Sequence[float], chosen: Sequence[Selection]
) -> dict[str, dict[str, float]]:
    kept = [s.scores for s in chosen]
    return {
        "lowest_positive": _percentiles(np.asarray(lowest)),
        "negatives": _percentiles(np.concatenate(kept) if kept else np.zeros(0)),
    }


def _percentiles(values: NDArray[np.floating]) -> dict[str, float]:
    if len(values) == 0:
        return {}
    found = np.percentile(values.astype(np.float64), PERCENTILES)
    return {str(p): round(float(v), 6) for p, v in zip(PERCENTILES, found, strict=True)}
