"""The output folder: one run at a time."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tercet.train.tracking import read_log
from tests.conftest import Run
from tests.workers.launch import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def words(tiny_model: Path, pairs: Path) -> list[str]:
    """To be typed in an empty folder."""
    return ["finetune", "tiny", f"model.path={tiny_model}", f"data.train={pairs}", "output=run"]


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
