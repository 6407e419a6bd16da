"""benchmarks/evaluation.py: scoring beside the peer's evaluator, and what both take."""

from pathlib import Path

import pytest

from benchmarks import evaluation
from tests.published import as_shown

pytestmark = pytest.mark.usefixtures("one_thread")


def test_scoring_is_compared_with_the_peer(tmp_path: Path) -> None:
    found = evaluation.measure(tmp_path, 60, 400, 1)
    names = (*evaluation.VARIANTS, evaluation.SEARCH)
    found["memory"] = {name: evaluation.report_memory(name, tmp_path) for name in names}
    assert found["largest_difference"] <= 1e-6 and len(found["same_metrics"]) == 7
    assert all(0 < found["same_metrics"][metric]["ours"] < 1 for metric in ("ndcg@10", "map"))
    assert found["metrics"][evaluation.DEEP] > found["metrics"][evaluation.OURS]
    for peak in found["memory"].values():
        assert 0 <= peak["extra_anonymous_mib"] < max(peak.values())
    for place, name in enumerate(evaluation.VARIANTS):  # here all share a process: nothing to see
        found["memory"][name]["extra_anonymous_mib"] = 10.0 * (place + 1)
    found["memory"][evaluation.SEARCH]["extra_anonymous_mib"] = 130.0
    found["targets"] = evaluation.aims(found)
    assert [one["met"] for one in found["targets"][1:]] == [True, False, True]
    pages, (row,) = as_shown("evaluation", found, tmp_path)
    page = pages["evaluation"]
    assert "differ by at most" in page and evaluation.PRODUCTS in page
    assert "evaluator's time over ours at least 3: " in page
    assert (
        row["Against sentence-transformers"] == f"{evaluation.PEER}, depth {evaluation.PEER_DEPTH}"
    )
    assert row["Memory, ours / theirs"] == "0.20"  # 10 MiB and 50 MiB of growth
