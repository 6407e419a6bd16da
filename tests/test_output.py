"""The output folder: one run at a time, not trained twice, deleting nothing of others."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tercet.train import resuming
from tercet.train.tracking import read_log
from tests.conftest import Run
from tests.workers.launch import ROOT, run_jobs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def words(tiny_model: Path, pairs: Path) -> list[str]:
    """To be typed in an empty folder."""
    return ["finetune", "tiny", f"model.path={tiny_model}", f"data.train={pairs}", "output=run"]


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def running(words: list[str], folder: Path, begun: Callable[[], bool]) -> Iterator[None]:
    """The command in a process of its own from when it has `begun`; killed after the block."""
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tercet", *words]
    with subprocess.Popen(command, cwd=folder, env=os.environ | quiet) as process:
        try:
            end = time.monotonic() + 120
            while not begun():
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.05)
            yield
        finally:
            process.kill()


def test_two_runs_do_not_share_a_folder(run: Run, words: list[str], tmp_path: Path) -> None:
    words = [*words, "train.save_every=5", "train.steps=100000"]
    log = tmp_path / "run" / "run.jsonl"
    with running(words, tmp_path, lambda: len(read_log(log)) > 5):
        for more in ([], ["overwrite=true", "train.steps=1"]):
            before = len(read_log(log))
            status, _, err = run(*words, *more)
            assert status == 2 and "output: another run is at work in run; wait" in err
            assert len(read_log(log)) >= before  # nothing of the first one was removed
    status, _, err = run(*words, "overwrite=true", "train.steps=1")  # killed, it holds nothing
    assert status == 0, err


def test_a_lock_that_cannot_be_made_is_one_line(run: Run, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    status, _, err = run(*words)
    assert status == 2 and "run: cannot be written (Is a directory)" in err
    assert "choose another folder (output)" in err and "TERCET_CACHE" not in err


def test_a_name_that_no_disk_takes_is_one_line(run: Run, words: list[str]) -> None:
    status, _, err = run(*words[:-1], f"output={'a' * 300}")
    assert status == 2 and "cannot write there (File name too long); choose another" in err


# Finished runs


def test_a_finished_run_is_not_trained_again(run: Run, words: list[str], tmp_path: Path) -> None:
    assert run(*words, "train.steps=2")[0] == 0
    before = everything(tmp_path)
    status, out, err = run(*words, "train.steps=2")
    assert status == 0 and out == "model: run/model\n"
    assert "output: run holds this run, finished; overwrite=true trains it anew" in err
    for more in (["licence=mit"], ["train.steps=3", "--allow-changed", "train.steps"]):
        status, _, err = run(*words, "train.steps=2", *more)
        assert status == 2 and "the finished run in run had another config" in err
        assert "run already holds a finished run" in err
    assert everything(tmp_path) == before
    assert run(*words, "train.steps=1", "overwrite=true")[0] == 0
    assert len(read_log(tmp_path / "run" / "run.jsonl")) == 1


def test_a_finished_run_of_something_else_is_refused(
    run: Run, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the same words: other rows, another guide, other code, or nobody knows what it was."""
    rows, guide = tmp_path / "rows.jsonl", tmp_path / "guide"
    shutil.copyfile(words[3].removeprefix("data.train="), rows)
    shutil.copytree(words[2].removeprefix("model.path="), guide)
    words = [*words[:3], "data.train=rows.jsonl", "output=run", "train.steps=1"]
    words.append("loss.false_negatives.guide=guide")
    assert run(*words)[0] == run(*words)[0] == 0

    def refused(what: str) -> None:
        status, _, err = run(*words)
        assert status == 2 and "run already holds a finished run" in err
        assert f"the finished run in run had another {what}" in err

    whole = rows.read_bytes()
    rows.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    refused("set of rows")
    rows.write_bytes(whole)
    (guide / "config.json").open("a").write("\n")
    refused("teacher, guide")
    shutil.copytree(words[2].removeprefix("model.path="), guide, dirs_exist_ok=True)
    with monkeypatch.context() as later:
        later.setattr(resuming, "code_version", lambda: {"source": "another"})
        refused("version of the code")
    assert run(*words)[0] == 0
    summary = tmp_path / "run" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"begun": None}))
    refused("config")


def test_a_launch_and_a_student_that_are_finished(words: list[str], tmp_path: Path) -> None:
    def job(name: str, world: int, *more: str, **how: str) -> dict[str, Any]:
        return {
            "world": world,
            "recipe": str(ROOT / "configs" / "tiny.yaml"),
            "set": [*words[2:4], f"output={tmp_path / name}", *more],
            "said": str(tmp_path / f"{name}."),
            "command": True,
        } | how

    launch = job("launch", 2)
    cut = ["student.layers=[0]", words[2].replace("model.path", "distil.teacher")]
    student = job("student", 2, *cut, verb="distil")
    assert run_jobs([launch, student, launch, student], tmp_path) == [[0, 0]] * 4
    facts = json.loads((tmp_path / "student" / "student" / "student.json").read_text())
    assert facts["after"]["layers"] == 1
    for name in ("launch", "student"):
        (line,) = (tmp_path / f"{name}.0").read_text().splitlines()  # of the second time
        assert "holds this run, finished" in line


# What overwrite=true deletes


@pytest.mark.parametrize(
    "setting",
    [
        "model.path=run/model",
        "distil.teacher=run/checkpoints/step-00000002/model",
        "loss.false_negatives.guide=linked",
        "data.train=run/mined/step-00000000/rows.jsonl",
    ],
)
def test_overwrite_does_not_delete_what_the_run_begins_with(
    setting: str, run: Run, words: list[str], tmp_path: Path
) -> None:
    words = [*words, "train.steps=2"]
    assert run(*words)[0] == 0
    (tmp_path / "linked").symlink_to(tmp_path / "run" / "model")
    rows = tmp_path / "run" / "mined" / "step-00000000" / "rows.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_bytes(Path(words[3].removeprefix("data.train=")).read_bytes())
    before = everything(tmp_path)
    key, path = setting.split("=")
    status, _, err = run(*words, setting, "overwrite=true")
    assert status == 2 and f"{key}: overwrite=true would delete {path}" in err
    assert everything(tmp_path) == before
    if "step-" in path:  # an unfinished run is removed when the config is another
        (tmp_path / "run" / "summary.json").unlink()
        shutil.rmtree(tmp_path / "run" / "model")
        before = everything(tmp_path)
        status, _, err = run(*words, setting, "overwrite=true")
        assert status == 2 and f"{key}: overwrite=true would delete {path}" in err
        assert everything(tmp_path) == before


def test_what_no_run_has_written_stays(run: Run, words: list[str], tmp_path: Path) -> None:
    start = Path(words[2].removeprefix("model.path="))
    shutil.copytree(start, tmp_path / "model")
    recipe = tmp_path / "config.yaml"
    recipe.write_text("# mine\nmodel: {path: model}\ntrain: {steps: 1}\n")
    before = everything(tmp_path)
    for output in (".", str(tmp_path)):
        for more in ([], ["overwrite=true"]):
            status, _, err = run("finetune", "config.yaml", words[3], f"output={output}", *more)
            assert status == 2 and "config.yaml is not of a run" in err and "move it away" in err
    recipe.rename(tmp_path / "mine.yaml")
    status, _, err = run("finetune", "mine.yaml", words[3], "output=.", "overwrite=true")
    assert status == 2 and "model is not of a run, which would replace it" in err
    (tmp_path / "mine.yaml").rename(recipe)
    assert {f: b for f, b in everything(tmp_path).items() if f.name != ".lock"} == before


def test_overwrite_leaves_what_is_beside_a_run(run: Run, words: list[str], tmp_path: Path) -> None:
    assert run(*words, "train.steps=2")[0] == 0
    notes = [
        tmp_path / "run" / place for place in ("notes", "checkpoints/notes", "mined/x.parquet")
    ]
    for note in notes:
        note.parent.mkdir(exist_ok=True)
        note.write_text("mine")
    assert run(*words, "train.steps=1", "overwrite=true")[0] == 0
    assert all(note.read_text() == "mine" for note in notes)
    assert {path.name for path in notes[1].parent.iterdir()} == {"notes", "step-00000001"}
