"""benchmarks/comparison.py: how long a comparison takes, command and collections."""

from pathlib import Path

import pytest

from benchmarks import comparison
from tests.comparison import collection
from tests.published import read_back

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_comparison_is_timed_from_a_warm_store(tmp_path: Path, tiny_model: Path) -> None:
    found = comparison.measure([str(tiny_model)], [collection(tmp_path / "few", 60)])
    assert found["models"][1:] == ["BM25"] and found["tasks"][0]["documents"] == 60
    assert 0 < found["tasks"][0]["seconds"] < found["compare_seconds"]
    text = comparison.tables(read_back("comparison", found, tmp_path))["compare_time"]
    assert "| few | 48 | 60 |" in text and "| whole command |  |  |" in text
    assert "minutes of the whole command at most 10: " in text and text.endswith(", met.")
