"""The mining stage: vectors in, one Parquet file of negatives and the reasons for them out."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tercet.cache import OUTPUT
from tercet.configs.schema import MiningConfig
from tercet.files import disk_errors, sha256, whole_file, write_json
from tercet.mining.candidates import BM25, MODEL, Space
from tercet.mining.facts import Asked
from tercet.mining.rescore import FalseNegatives, judged_by_cross_encoder, judged_by_model
from tercet.mining.select import rule_text
from tercet.mining.settle import Settled, settle
from tercet.mining.summary import MinedCounts, count, histograms, percentiles, samples
from tercet.mining.table import mined_table, outcomes
from tercet.models.cross import CrossScorer
from tercet.processes import on_main

SUMMARY = "mining.json"  # beside the mined set


def mine(
    asked: Asked,
    spaces: Mapping[str, Space],
    config: MiningConfig,
    out: Path,
    *,
    miner: str,
    scorer: CrossScorer | None = None,
    round_number: int = 0,
    cache: Path | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> MinedCounts:
    """Write `out` (Parquet, `table.SCHEMA`, one row per asked query) and `mining.json` beside it.

    spaces: vectors for each source of `config` that is a model, `MODEL` always among them; scores
    are its inner products. `miner` is the fingerprint of that model. `scorer` is the cross-encoder
    of `config.rescore`, if any. Candidate lists and pair scores are kept under `cache` (default:
    the user's), so that no search and no pair is paid for twice. `made_by`, what else the set came
    from (models, data, versions), is noted in both files as it is. The same input gives the same
    bytes, whatever the number of processes. A meeting of all processes.
    Raises UserError for vectors that are not finite and for a disk that does not take the files.
    """
    settled = settle(asked, spaces, config, scorer, cache)
    outcome = outcomes(settled.negatives, len(asked), config.negatives, config.too_few)
    counts = count(settled, outcome, config.negatives)

    provenance = {
        "sources": {name: space.fingerprint for name, space in spaces.items()},
        "cross_encoder": scorer and {"name": scorer.name, "fingerprint": scorer.fingerprint},
        **(made_by or {}),
    }
    settings = config.model_dump(mode="json")

    def write() -> None:
        noted = provenance | {"settings": settings}
        table = mined_table(settled, outcome, rule_text(config), miner, round_number, noted)
        with disk_errors(out, OUTPUT):
            with whole_file(out) as partial:
                pq.write_table(table, partial, write_page_checksum=True)
            found = {"file": out.name, "sha256": sha256(out), "miner": miner, "round": round_number}
            found |= {"counts": asdict(counts), "provenance": provenance, "settings": settings}
            write_json(out.with_name(SUMMARY), found | _summary(settled, spaces, config))

    on_main(write)
    return counts


def _summary(settled: Settled, spaces: Mapping[str, Space], config: MiningConfig) -> dict[str, Any]:
    asked, scorer = settled.asked, settled.rescored and settled.rescored.scorer
    false = _false_negatives(settled, spaces, config)
    return {
        "documents": len(asked.documents),
        "held_out": {
            "left_out": asked.rows.left_out,
            "marked": len(asked.read) - len(asked.documents),
        },
        "recall": settled.found.recall,
        "calibration": scorer and scorer.calibration,
        "false_negatives": false and asdict(false),
        "score_percentiles": {
            "lowest_positive": percentiles(settled.lowest),
            "negatives": percentiles(settled.negatives.scores),
        },
        "histograms": histograms(settled),
        "samples": samples(settled, config.seed),
    }


def _false_negatives(
    settled: Settled, spaces: Mapping[str, Space], config: MiningConfig
) -> FalseNegatives | None:
    """By the cross-encoder, else by a second model among the sources, else not at all."""
    if settled.rescored is not None:
        return judged_by_cross_encoder(settled.rescored, settled.asked, settled.labels)
    for source in config.source_names:
        if source not in (MODEL, BM25):
            space = spaces[source]
            return judged_by_model(source, space, settled.asked, settled.found, settled.labels)
    return None
