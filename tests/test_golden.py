"""The loss curve of the tiny recipe, so that a refactor cannot change it unseen.

After a change that is meant to change it: TERCET_WRITE_GOLDEN=1 python -m pytest
tests/test_golden.py, and say in the commit why.
"""

import json
import os
from pathlib import Path

import pytest

from tercet.configs import load
from tercet.files import write_json
from tercet.train import finetune
from tercet.train.tracking import read_log

pytestmark = pytest.mark.usefixtures("one_thread")
GOLDEN = Path(__file__).parent / "golden" / "tiny.json"
KEYS = ("loss", "grad_norm", "lr", "positive_score", "hardest_negative_score")


def test_the_tiny_recipe_gives_its_golden_curve(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    where = [f"output={tmp_path / 'run'}", f"model.path={tiny_model}", f"data.train={pairs}"]
    finetune(load("tiny", [*where, "train.steps=8", "train.learning_rate=0.0005"]))
    lines = [{key: line[key] for key in KEYS} for line in read_log(tmp_path / "run" / "run.jsonl")]
    if os.environ.get("TERCET_WRITE_GOLDEN"):
        write_json(GOLDEN, lines)
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len(lines) == len(golden)
    for got, want in zip(lines, golden, strict=True):
        assert got == pytest.approx(want, abs=1e-4)
