"""The mined set as it is written: one row per query, Parquet, with the reasons."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tercet.data.rows import Indices
from tercet.mining.settle import Chosen, Settled

_TEXTS, _FLOATS, _KEYS = pa.list_(pa.string()), pa.list_(pa.float32()), pa.list_(pa.uint64())
METADATA = "tercet"  # key of the provenance, as JSON, in the file's metadata
SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("query_hash", pa.uint64()),  # `text_key` of its text; so are the other hashes
        ("outcome", pa.string()),  # full, short, filled, dropped: see `outcomes`
        ("positive_ids", _TEXTS),  # every known positive, under any id
        ("positive_hashes", _KEYS),
        ("positive_score", pa.float32()),  # of the positive least like the query
        ("positive_rescores", _FLOATS),  # the cross-encoder's; null where none was asked
        ("negative_ids", _TEXTS),  # best rank first, those that fill the list last
        ("negative_hashes", _KEYS),
        ("negative_scores", _FLOATS),
        ("negative_ranks", pa.list_(pa.int32())),  # among all candidates, from 1; 0: filled in
        ("negative_rules", _TEXTS),
        ("negative_rescores", _FLOATS),
        ("relabelled_ids", _TEXTS),  # new positives, by the cross-encoder's judgement
        ("relabelled_hashes", _KEYS),
        ("relabelled_rescores", _FLOATS),
        ("miner", pa.string()),
        ("round", pa.int32()),
    ]
)
FILLED = "random fill"
OUTCOMES = ("full", "short", "filled", "dropped")


def outcomes(negatives: Chosen, total: int, wanted: int, too_few: str) -> Indices:
    """(total,) index into `OUTCOMES` for each query.

    full: as many negatives as were wanted; short: fewer; filled: some of them, enough or not, were
    drawn from outside the candidates; dropped: too few were fit, and it is not to be trained on.
    """
    short = negatives.counts(total) < wanted
    found = np.where(short, OUTCOMES.index("dropped" if too_few == "drop" else "short"), 0)
    found[negatives.queries[negatives.ranks == 0]] = OUTCOMES.index("filled")
    return found


def mined_table(
    settled: Settled,
    outcome: Indices,
    rule: str,
    miner: str,
    round_number: int,
    provenance: Mapping[str, Any],
) -> pa.Table:
    """A table of `SCHEMA`; outcome (Q,) from `outcomes`, `rule` is what negatives went through.

    `provenance` becomes the file's metadata, under `METADATA`.
    """
    asked, negatives = settled.asked, settled.negatives
    relabelled, rescored = settled.with_verdict("relabelled"), settled.rescored
    total, ids = len(asked), pa.array(asked.documents.ids, pa.string())
    keys = asked.documents.keys
    positives = asked.positives.offsets
    own, new = _offsets(negatives, total), _offsets(relabelled, total)
    rules = pa.array([rule, FILLED]).take(pa.array((negatives.ranks == 0).astype(np.int8)))
    columns: dict[str, pa.Array] = {
        "query_id": pa.array(asked.ids, pa.string()),
        "query_hash": pa.array(asked.rows.queries.keys[asked.queries], pa.uint64()),
        "outcome": pa.array(OUTCOMES).take(pa.array(outcome)),
        "positive_ids": _lists(positives, ids.take(pa.array(asked.positives.values))),
        "positive_hashes": _lists(positives, pa.array(keys[asked.positives.values])),
        "positive_score": pa.array(settled.lowest, pa.float32()),
        "positive_rescores": _floats(positives, rescored and rescored.positives),
        "negative_ids": _lists(own, ids.take(pa.array(negatives.documents))),
        "negative_hashes": _lists(own, pa.array(keys[negatives.documents])),
        "negative_scores": _floats(own, negatives.scores),
        "negative_ranks": _lists(own, pa.array(negatives.ranks, pa.int32())),
        "negative_rules": _lists(own, rules),
        "negative_rescores": _floats(own, negatives.rescores),
        "relabelled_ids": _lists(new, ids.take(pa.array(relabelled.documents))),
        "relabelled_hashes": _lists(new, pa.array(keys[relabelled.documents])),
        "relabelled_rescores": _floats(new, relabelled.rescores),
        "miner": pa.array([miner] * total, pa.string()),
        "round": pa.array([round_number] * total, pa.int32()),
    }
    schema = SCHEMA.with_metadata({METADATA: json.dumps(provenance, ensure_ascii=False)})
    return pa.table([columns[name] for name in SCHEMA.names], schema=schema)


def _offsets(chosen: Chosen, total: int) -> Indices:
    return np.concatenate([[0], np.cumsum(chosen.counts(total))])


def _lists(offsets: Indices, values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _floats(offsets: Indices, values: NDArray[np.float32] | None) -> pa.Array:
    if values is None:
        return pa.nulls(len(offsets) - 1, _FLOATS)
    return _lists(offsets, pa.array(values, pa.float32()))
