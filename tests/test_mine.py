"""The mining stage: what its files hold, and that nothing known is ever a negative."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tercet.configs.schema import MiningConfig
from tercet.data.mined import with_mined
from tercet.data.rows import Ragged, Texts, TrainingSet
from tercet.errors import UserError
from tercet.files import sha256
from tercet.mining.stage import SCHEMA, mine

DOCUMENTS = [
    "Fix a flat tyre",
    "fix a  flat tyre",
    "pump up a tyre",
    "bake bread",
    "FIX A FLAT TYRE",
]


def rows() -> TrainingSet:
    """Two queries; document 0 answers the first, and 1 and 4 are the same text as 0."""
    return TrainingSet(
        queries=Texts(["q0", "q1"], ["my tyre is flat", "how is bread made"]),
        documents=Texts([f"d{i}" for i in range(len(DOCUMENTS))], DOCUMENTS),
        row_query=np.array([0, 1, 0]),
        positives=Ragged.of([[0], [3], [0]]),
        negatives=Ragged.of([[2], [], []]),
        source_offsets=np.array([0, 3]),
    )


def vectors() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    queries = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    documents = np.array([[0.8, 0.1], [0.8, 0.1], [0.6, 0.2], [0.1, 0.9], [0.8, 0.1]])
    return queries, documents.astype(np.float32)


def test_the_mined_set_says_what_was_kept_and_why(tmp_path: Path) -> None:
    config = MiningConfig(negatives=2, depth=10, relative_margin=0.9)  # depth above the corpus
    counts = mine(rows(), *vectors(), config, tmp_path / "mined.parquet", miner="abc")
    table = pq.read_table(tmp_path / "mined.parquet")
    assert table.schema == SCHEMA
    first, second = table.to_pylist()
    assert first["query_id"] == "q0"
    assert first["positive_ids"] == ["d0", "d1", "d4"]
    assert first["negative_ids"] == ["d2", "d3"]  # 0.6 <= 0.9 * 0.8 = 0.72
    assert first["negative_scores"] == pytest.approx([0.6, 0.1])
    assert first["negative_ranks"] == [4, 5]
    assert first["negative_rules"] == ["top of ranks 1-10, score <= 0.9 of lowest positive"] * 2
    assert first["positive_score"] == pytest.approx(0.8)
    assert (first["miner"], first["round"]) == ("abc", 0)
    assert second["negative_ids"] == ["d2", "d0"]  # d1 and d4 say what d0 says
    assert (counts.queries, counts.kept, counts.short, counts.without) == (2, 4, 0, 0)
    assert counts.dropped == {"known": 4, "repeat": 2, "window": 0, "margin": 0, "surplus": 0}


def test_the_summary_beside_it_agrees(tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    config = MiningConfig(negatives=2, relative_margin=0.2)
    # 0.2 * 0.8 = 0.16 leaves d3 to q0 (d2 has 0.6), 0.2 * 0.9 = 0.18 leaves d0 to q1 (d2 has 0.2)
    counts = mine(rows(), *vectors(), config, out, miner="abc", round_number=3)
    summary = json.loads((tmp_path / "mining.json").read_text())
    assert summary["counts"] == vars(counts)
    assert summary["sha256"] == sha256(out) and summary["file"] == out.name
    assert (summary["miner"], summary["round"]) == ("abc", 3)
    assert MiningConfig(**summary["settings"]) == config
    assert (counts.short, counts.without, counts.dropped["margin"]) == (2, 0, 2)
    assert summary["score_percentiles"]["lowest_positive"]["0"] == pytest.approx(0.8)
    assert summary["score_percentiles"]["negatives"]["100"] == pytest.approx(0.1)


def test_a_query_without_survivors_keeps_its_line_and_is_counted(tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    counts = mine(rows(), *vectors(), MiningConfig(relative_margin=0.01), out, miner="m")
    assert counts.without == 2 and counts.kept == 0
    assert [line["negative_ids"] for line in pq.read_table(out).to_pylist()] == [[], []]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    config = MiningConfig(sampling="random", negatives=1)
    for name in ("a", "b"):
        mine(rows(), *vectors(), config, tmp_path / name / "m.parquet", miner="m")
    for file in ("m.parquet", "mining.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_only_queries_that_a_row_asks_are_mined(tmp_path: Path) -> None:
    some = rows()
    only_second = TrainingSet(
        some.queries,
        some.documents,
        np.array([1]),
        Ragged.of([[3]]),
        Ragged.of([[]]),
        np.array([0, 1]),
    )
    counts = mine(only_second, *vectors(), MiningConfig(), tmp_path / "m.parquet", miner="m")
    assert counts.queries == 1
    assert pq.read_table(tmp_path / "m.parquet")["query_id"].to_pylist() == ["q1"]


def test_rows_take_the_mined_negatives_after_their_own(tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    mine(rows(), *vectors(), MiningConfig(negatives=2, relative_margin=0.9), out, miner="m")
    more = with_mined(rows(), out)
    assert [more.negatives[r].tolist() for r in range(3)] == [[2, 3], [2, 0], [2, 3]]


def test_settings_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mining.skip 5 leaves nothing of mining.depth 5"):
        mine(rows(), *vectors(), MiningConfig(skip=5, depth=5), tmp_path / "m.parquet", miner="m")
    queries, documents = vectors()
    with pytest.raises(ValueError, match="vectors for"):
        mine(rows(), queries[:1], documents, MiningConfig(), tmp_path / "m.parquet", miner="m")
    assert not (tmp_path / "m.parquet").exists()
