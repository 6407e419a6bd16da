"""benchmarks/mteb_agreement.py: our numbers beside MTEB's, and what is done if they differ."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import mteb_agreement
from tercet.errors import UserError
from tercet.evaluation.official import by_mteb
from tests.test_stages import small_task

pytest.importorskip("mteb", reason="needs MTEB: tercet[mteb]")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_table_of_agreement_with_mteb(tmp_path: Path, tiny_model: Path, pairs: Path) -> None:
    pets = small_task(pairs, tmp_path / "pets", "test")
    found = mteb_agreement.agreement(str(tiny_model), [pets])
    (task,) = found["tasks"]
    assert task["largest_difference"] <= 1e-5 and len(task["metrics"]) >= 14
    table = mteb_agreement.tables(found)["mteb_agreement"]
    assert "| pets | tercet evaluate |" in table and "| pets | mteb |" in table
    assert "difference on pets at most 1e-05: " in table and ", met." in table


def test_disagreement_with_mteb_is_written_before_it_fails(
    tmp_path: Path, tiny_model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse(*given: Any) -> dict[str, float]:
        return {metric: mean - 2e-5 for metric, mean in by_mteb(*given).items()}

    monkeypatch.setattr("tercet.stages.official.by_mteb", worse)
    for name in ("birds", "pets"):
        small_task(pairs, tmp_path / name, "test")
    words = ("--shared", tmp_path, "--tasks", "birds", "pets", "--model", tiny_model)
    arguments = ["mteb_agreement", *words, "--out", tmp_path / "out"]
    monkeypatch.setattr("sys.argv", [str(word) for word in arguments])
    with pytest.raises(SystemExit, match="difference on birds at most 1e-05: .*, missed"):
        mteb_agreement.main()
    found = json.loads((tmp_path / "out" / "mteb_agreement.json").read_text(encoding="utf-8"))
    assert [task["task"] for task in found["tasks"]] == ["birds", "pets"]
    for task in found["tasks"]:
        assert task["largest_difference"] == pytest.approx(2e-5, abs=1e-5)
    with pytest.raises(UserError, match="nowhere"):
        mteb_agreement.agreement(str(tiny_model), [tmp_path / "nowhere"])
