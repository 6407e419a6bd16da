"""The mined set as it is written: one row per query, Parquet, with the reasons."""

import json
from collections.abc import Mapping, Sequence
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
        ("own_ids", _TEXTS),  # the negatives that rows of the query bring along
        ("own_hashes", _KEYS),
        ("own_rescores", _FLOATS),
        ("relabelled_ids", _TEXTS),  # new positives, by the cross-encoder's judgement
        ("relabelled_hashes", _KEYS),
        ("relabelled_rescores", _FLOATS),
        ("miner", pa.string()),
        ("round", pa.int32()),
    ]
)
FILLED = "random fill"
QUERIES = 16_384  # whose ids become one array: Arrow refuses 2 GiB of text in one
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
    total, ids, keys = len(asked), asked.documents.ids, asked.documents.keys
    positives, own = asked.positives.offsets, asked.own.offsets
    mined, new = _offsets(negatives, total), _offsets(relabelled, total)
    filled = (negatives.ranks == 0).astype(np.int64)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "query_id": pa.array(asked.ids, pa.string()),
        "query_hash": pa.array(asked.rows.queries.keys[asked.queries], pa.uint64()),
        "outcome": pa.array(OUTCOMES).take(pa.array(outcome)),
        "positive_ids": _texts(positives, ids, asked.positives.values),
        "positive_hashes": _lists(positives, pa.array(keys[asked.positives.values])),
        "positive_score": pa.array(settled.lowest, pa.float32()),
        "positive_rescores": _floats(positives, rescored and rescored.positives),
        "negative_ids": _texts(mined, ids, negatives.documents),
        "negative_hashes": _lists(mined, pa.array(keys[negatives.documents])),
        "negative_scores": _floats(mined, negatives.scores),
        "negative_ranks": _lists(mined, pa.array(negatives.ranks, pa.int32())),
        "negative_rules": _texts(mined, (rule, FILLED), filled),
        "negative_rescores": _floats(mined, negatives.rescores),
        "own_ids": _texts(own, ids, asked.own.values),
        "own_hashes": _lists(own, pa.array(keys[asked.own.values])),
        "own_rescores": _floats(own, rescored and rescored.own),
        "relabelled_ids": _texts(new, ids, relabelled.documents),
        "relabelled_hashes": _lists(new, pa.array(keys[relabelled.documents])),
        "relabelled_rescores": _floats(new, relabelled.rescores),
        "miner": pa.array([miner] * total, pa.string()),
        "round": pa.array([round_number] * total, pa.int32()),
    }
    schema = SCHEMA.with_metadata({METADATA: json.dumps(provenance, ensure_ascii=False)})
    return pa.table([columns[name] for name in SCHEMA.names], schema=schema)


def _offsets(chosen: Chosen, total: int) -> Indices:
    return np.concatenate([[0], np.cumsum(chosen.counts(total))])


def _texts(offsets: Indices, texts: Sequence[str], places: Indices) -> pa.ChunkedArray:
    """Lists of `texts` by their places, `QUERIES` lists to an array; no other text is copied."""
    arrays = []
    for start in range(0, len(offsets) - 1, QUERIES):
        own = offsets[start : start + QUERIES + 1]
        named = [texts[place] for place in places[own[0] : own[-1]].tolist()]
        arrays.append(_lists(own - own[0], pa.array(named, pa.string())))
    return pa.chunked_array(arrays, _TEXTS)


def _lists(offsets: Indices, values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _floats(offsets: Indices, values: NDArray[np.float32] | None) -> pa.Array:
    if values is None:
        return pa.nulls(len(offsets) - 1, _FLOATS)
    return _lists(offsets, pa.array(values, pa.float32()))
