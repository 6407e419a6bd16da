"""The gradient of a step is that of the dense loss in one process, size included.

Real processes (gloo), float64; the cases are in workers/parity.py, the dense loss in
workers/reference.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAUNCHES = ("1", "2", "4", "sharded")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parity")
    subprocess.run(
        [sys.executable, "-m", "tests.workers.parity", str(out)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    return out


@pytest.mark.parametrize("launch", LAUNCHES)
def test_the_gradient_is_that_of_the_dense_loss(found: Path, launch: str) -> None:
    """Processes x kept graphs x tiles x masks x a last batch of 13 rows x repeated texts.

    And of GTE's joint partition, of own negatives alone, and of Matryoshka.
    """
    cases = json.loads((found / f"{launch}.json").read_text(encoding="utf-8"))
    assert len(cases) == (15 if launch == "sharded" else 28)
    for case in cases:
        assert case["scale"] == pytest.approx(1, abs=1e-6), case["name"]
        assert case["cosine"] >= 1 - 1e-9, case["name"]
        assert case["loss"][0] == pytest.approx(case["loss"][1], abs=1e-9), case["name"]
        got, want = case["temperature"]
        assert got == pytest.approx(want, abs=1e-9), case["name"]


@pytest.mark.parametrize("launch", LAUNCHES)
def test_the_cases_are_what_their_names_say(found: Path, launch: str) -> None:
    for case in json.loads((found / f"{launch}.json").read_text(encoding="utf-8")):
        expected = 1 if "single" in case["name"] else 13 if "batch 1" in case["name"] else 16
        assert case["rows"] == expected
        assert case["texts"] <= case["shown"] - (0 if expected == 1 else 20)  # repeats
        masks = "masks off" not in case["name"] and "single" not in case["name"]
        assert (case["by_margin"] > 0) == (case["by_guide"] > 0) == masks, case["name"]
        if "recomputed" in case["name"]:
            assert case["recomputed"] == 1
        if "kept" in case["name"]:
            assert case["recomputed"] == 0


@pytest.mark.parametrize("launch", LAUNCHES)
def test_some_graphs_are_kept_and_some_recomputed(found: Path, launch: str) -> None:
    cases = json.loads((found / f"{launch}.json").read_text(encoding="utf-8"))
    halves = [case for case in cases if "some" in case["name"]]
    assert len(halves) >= 4
    for case in halves:
        assert 0 < case["recomputed"] < 1, case["name"]


@pytest.mark.parametrize("launch", ["2", "4"])
def test_gradients_are_reduced_once_whatever_the_micro_batches(found: Path, launch: str) -> None:
    for case in json.loads((found / f"{launch}.json").read_text(encoding="utf-8")):
        assert case["micro_batches"] >= (1 if "single" in case["name"] else 3), case["name"]
        assert case["reduced"] == case["parameters"], case["name"]


@pytest.mark.parametrize("launch", LAUNCHES)
def test_dropout_is_drawn_again_for_a_recomputed_graph(found: Path, launch: str) -> None:
    """Bit for bit, whatever is kept; another step draws anew, and without dropout nothing does."""
    drawn = json.loads((found / f"{launch}-dropout.json").read_text(encoding="utf-8"))
    kept, some, recomputed = (drawn[keep] for keep in ("kept", "some", "recomputed"))
    assert kept["recomputed"] == 0 < some["recomputed"] < 1 == recomputed["recomputed"]
    assert kept["gradient"] == some["gradient"]
    assert kept["gradient"] == recomputed["gradient"]
    assert kept["gradient"] != drawn["anew"]["gradient"]
    assert kept["gradient"] != drawn["off"]["gradient"]
