"""A small store of vectors in three shards, to be written by hand."""

from pathlib import Path

import numpy as np

from tercet.models.shards import Manifest, write_shard

FACTS = Manifest(
    fingerprint="5f0e",
    model="runs/a/model",
    model_fingerprint="31c4",
    role="query",
    prompt="query: ",
    max_length=64,
    model_dtype="float32",
    dtype="float32",
    dim=3,
    rows=5,
    shard_rows=2,
    created="2026-01-01T00:00:00+00:00",
)
ROWS = np.arange(15, dtype=np.float32).reshape(5, 3)


def write_all(place: Path, manifest: Manifest) -> None:
    """Every shard of `ROWS`; the store was begun and is not finished."""
    for shard in range(manifest.shards):
        rows = manifest.rows_of(shard)
        write_shard(place, shard, ROWS[rows.start : rows.stop])
