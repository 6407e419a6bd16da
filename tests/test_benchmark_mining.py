"""benchmarks/mining.py: search and mining beside their peers, section by section."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmarks import machine
from tests.published import as_shown

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def mining(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program with few vectors, measuring memory in this process."""
    pytest.importorskip("faiss", reason="the peer of the search: tercet[ann]")
    from benchmarks import mining as program

    here = lambda _, __, what, work: program.report_memory(what, Path(work))  # noqa: E731
    given: dict[str, Any] = {"in_subprocess": here, "gemm_peak": lambda: 1e11}
    given |= {"PAIRS": 300, "QUERIES": 40, "SIZES": {600: 1, 900: 1}}
    given |= {"KINDS": ("flat",), "ANN_DOCUMENTS": 500}
    for name, value in given.items():
        monkeypatch.setattr(program, name, value)
    return program


def test_search_and_mining_are_compared_with_the_peers(mining: ModuleType, tmp_path: Path) -> None:
    found = {"search": mining.search(tmp_path, 1, False), "peer": mining.peer(tmp_path, 1, False)}
    assert [size["documents"] for size in found["search"]["sizes"]] == [600, 900]
    assert all(size["largest_gap"] <= 1e-5 for size in found["search"]["sizes"])
    memory = found["search"]["sizes"][-1]["memory"]
    assert memory["map_mib"] == pytest.approx((40 + 900) * 384 * 4 / 2**20, rel=1e-3)
    aims = {one["what"]: one["got"] for one in found["search"]["targets"]}
    assert aims["score gap where positions differ"] <= 1e-5
    by_id = found["search"]["sizes"][-1]["share_of_peak"][mining.BY_ID]
    assert aims["the same of a store in the order of ids"] == by_id > 0
    assert aims["MiB beside the map"] == memory["total_mib"] - memory["map_mib"]
    few, many = (size["medians"]["ours"] for size in found["search"]["sizes"])
    growth = aims["time per document, the most over the fewest"]
    assert growth == pytest.approx((many / 900) / (few / 600))
    assert found["peer"]["same"] == {name: 1.0 for name in found["peer"]["same"]}
    assert found["peer"]["mined"]["ours"] > 300 and len(found["peer"]["again"]) == 1
    found["ann"] = mining.ann(tmp_path, 1, False)
    pages, readme = as_shown("mining", found, tmp_path)
    assert "| **ours** | 900 |" in pages["mining_search"] and "Aims: " in pages["mining_peer"]
    assert "| flat |" in pages["mining_ann"]
    assert readme[0]["Against sentence-transformers"] == "mine_hard_negatives"


def test_a_section_says_with_which_code_it_was_measured(
    mining: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("ann", "search"):
        monkeypatch.setattr(machine, "whole_source", lambda part=part: f"at {part}")
        words = ["mining", "--only", part, "--rounds", "1", "--out", str(tmp_path)]
        monkeypatch.setattr("sys.argv", words)
        mining.main()
    found = json.loads((tmp_path / "mining.json").read_text(encoding="utf-8"))
    assert {name: section["code"]["source"] for name, section in found.items()} == {
        "ann": "at ann",
        "search": "at search",
    }
    assert all(section["machine"]["threads"] == 1 for section in found.values())


def test_a_wrong_document_is_no_tie(mining: ModuleType) -> None:
    queries, documents = np.eye(2, dtype=np.float32), np.eye(3, 2, dtype=np.float32)
    ours, theirs = np.array([[0, 1], [1, 2]]), np.array([[0, 2], [1, 0]])
    assert mining.largest_gap(queries, documents, ours, theirs) == 0  # 1 and 2 tie, as do 2 and 0
    assert mining.largest_gap(queries, documents, ours, ours[::-1]) == 1
