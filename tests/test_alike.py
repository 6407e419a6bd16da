"""Machines of a launch that hold different files or settings do not begin to train."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.workers.launch import ROOT, run_jobs

CASES = {
    "rows": r"data.documents: 48, 47; data.fingerprint: '\w+', '\w+'; .*data.rows: 48, 47",
    "teacher": r"data.rows: 48, 47",
    "setting": r"\(config.loss.temperature: 0.05, 0.1\)",
    "saving": r"\(config.train.save_every: None, 1\)",  # a checkpoint is a meeting
}


@pytest.fixture(scope="module")
def ended(tiny_model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where what was said is, and by name how both processes ended; the second one is told more."""
    out = tmp_path_factory.mktemp("alike")
    stale = out / "stale.jsonl"
    stale.write_text("".join(pairs.open().readlines()[:-1]))
    (out / "link").symlink_to(out)

    def job(name: str, own: str, *more: str) -> dict[str, Any]:
        where = [f"output={out / name}", f"model.path={tiny_model}", f"data.train={pairs}"]
        return {
            "world": 2,
            "recipe": str(ROOT / "configs" / "tiny.yaml"),
            "set": [*where, *more],
            "own": {"1": [own]},
            "said": str(out / f"{name}."),
            "command": True,
            "may_fail": name in CASES,
        }

    jobs = [
        job("rows", f"data.train={stale}"),
        job("teacher", f"data.train={stale}", f"distil.teacher={tiny_model}"),
        job("setting", "loss.temperature=0.1"),
        job("saving", "train.save_every=1"),
        job("linked", f"output={out / 'link' / 'linked'}"),
    ]
    names = [*CASES, "linked"]
    return out, dict(zip(names, run_jobs(jobs, out), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_processes_that_would_train_on_different_things_are_refused(ended: Any, name: str) -> None:
    out, found = ended
    assert found[name] == [2, 2]
    last = (out / f"{name}.0").read_text().strip().splitlines()[-1]
    assert last.startswith("error: processes 0 (on ") and ") and 1 (on " in last
    assert re.search(CASES[name], last), last
    assert not (out / name / "checkpoints").exists()


def test_the_output_may_have_another_name(ended: Any) -> None:
    out, found = ended
    assert found["linked"] == [0, 0] and (out / "linked" / "model").is_dir()
