"""Runs that are told to stop, and processes that lose one of theirs: saved, ended, explained."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tercet import peers
from tercet.configs import load
from tercet.errors import LOST, SAVED, Stopped
from tercet.train import finetune, loop, polite
from tercet.train.checkpoint import newest
from tercet.train.state import name_of
from tercet.train.tracking import read_log
from tests.conftest import Run, weights
from tests.workers.launch import ROOT, run_jobs

STEPS = 6
pytestmark = pytest.mark.usefixtures("one_thread")


def options(tiny_model: Path, pairs: Path) -> list[str]:
    where = [f"model.path={tiny_model}", f"data.train={pairs}", "train.learning_rate=0.001"]
    return [*where, f"train.steps={STEPS}", "train.dropout=0.2", "train.save_every=50"]


def job_in(out: Path, settings: list[str], name: str, world: int, **fault: Any) -> dict[str, Any]:
    return {
        "name": name,
        "world": world,
        "recipe": str(ROOT / "configs" / "tiny.yaml"),
        "set": [f"output={out / name}", *settings],
        "said": str(out / f"{name}."),
        "fault": fault or None,
        "command": bool(fault),
        "may_fail": bool(fault),
    }


def seconds_after(out: Path, name: str, rank: int) -> float:
    """From the last step that was logged, which another process died after, to a last word."""
    return (out / f"{name}.{rank}").stat().st_mtime - (out / name / "run.jsonl").stat().st_mtime


@pytest.fixture(scope="module")
def ended(tiny_model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where the runs are, and by name how each of their processes ended."""
    out = tmp_path_factory.mktemp("stops")
    job = partial(job_in, out, options(tiny_model, pairs))
    jobs = [
        job("whole", 1),
        job("whole-two", 2),
        job("term", 1, kind="signal", step=3, number=signal.SIGTERM),
        job("term-two", 2, kind="signal", step=3, at=1, number=signal.SIGTERM),
        job("twice", 1, kind="signals", step=3, number=signal.SIGTERM),
        job("killed", 2, kind="signal", step=3, at=1, number=signal.SIGKILL),
        job("error", 2, kind="error", step=3, at=1),
        job("main-killed", 2, kind="signal", step=3, at=0, number=signal.SIGKILL),
        job("stuck", 2, kind="stuck", step=3, at=1),
        job("clock", 2, kind="clock", step=0, at=0),
        job("other-clock", 2, kind="clock", step=0, at=1),
        job("late", 2, kind="late", step=3, at=1, heard=str(out / "late.0")),
        job("ports", 2, kind="ports", step=0, at=0),
    ]
    found = dict(zip([j["name"] for j in jobs], run_jobs(jobs, out), strict=True))
    again = [job("term", 1), job("term-two", 2)]
    run_jobs(again, out)
    return out, found


@pytest.mark.parametrize("name", ["term", "term-two"])
def test_a_signal_finishes_the_step_and_saves(ended: Any, name: str) -> None:
    out, found = ended
    assert set(found[name]) == {SAVED}
    kept = {path.name for path in (out / name / "checkpoints").iterdir()}
    # The signal comes when the step's collective is over: the others hear of it in the next one.
    assert kept == {"step-00000005" if "two" in name else "step-00000004", "step-00000006"}
    whole = out / ("whole-two" if "two" in name else "whole")
    last = f"checkpoints/step-{STEPS:08d}"
    a, b = weights(whole / last), weights(out / name / last)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert [line["step"] for line in read_log(out / name / "run.jsonl")] == list(range(1, 7))


@pytest.mark.parametrize(("name", "steps"), [("clock", [5, 6]), ("other-clock", [6])])
def test_a_checkpoint_is_written_when_the_last_is_old(
    ended: Any, name: str, steps: list[int]
) -> None:
    """Old by the main process's clock; all save then, and it changes nothing."""
    out, found = ended
    assert found[name] == [0, 0]
    kept = sorted(path.name for path in (out / name / "checkpoints").iterdir())
    assert kept == [name_of(step) for step in steps]  # the two newest stay
    a, b = (weights(out / run / "checkpoints" / name_of(STEPS)) for run in ("whole-two", name))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_one_process_writes_one_too(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    words = [f"output={tmp_path}", *options(tiny_model, pairs), "train.keep=9", "train.steps=3"]
    finetune(load("tiny", words))
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [name_of(step) for step in (1, 2, 3)]


def test_a_second_signal_stops_at_once(ended: Any) -> None:
    out, found = ended
    assert found["twice"] == [-signal.SIGTERM]
    assert not (out / "twice" / "checkpoints").exists()
    assert "a second one stops at once" in (out / "twice.0").read_text()


@pytest.mark.parametrize(
    ("name", "status", "why"),
    [
        ("killed", -signal.SIGKILL, "ended without a word: killed, out of memory"),
        ("error", 1, "ended: ValueError: a strange thing happened"),
        ("stuck", -signal.SIGKILL, "ended without a word: killed, out of memory"),
    ],
)
def test_a_process_that_dies_ends_the_others_with_the_reason(
    ended: Any, name: str, status: int, why: str
) -> None:
    out, found = ended
    assert found[name] == [LOST, status]
    said = (out / f"{name}.0").read_text()
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: process 1 of 2 on ") and why in last
    assert "Traceback" not in said
    assert seconds_after(out, name, 0) < 30  # of which a stuck one waits for 2, where runs wait 20


@pytest.mark.faults
def test_who_is_stuck_ends_within_a_minute(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    """With the time that a run has to end by itself, which the others shorten."""
    settings = options(tiny_model, pairs)
    job = job_in(tmp_path, settings, "stuck", 2, kind="stuck", step=3, at=1, grace=peers.GRACE)
    assert run_jobs([job], tmp_path) == [[LOST, -signal.SIGKILL]]
    assert peers.GRACE <= seconds_after(tmp_path, "stuck", 0) < 60


def test_without_the_main_process_the_others_say_why(ended: Any) -> None:
    out, found = ended
    assert found["main-killed"] == [-signal.SIGKILL, LOST]
    last = (out / "main-killed.1").read_text().strip().splitlines()[-1]
    assert last.startswith("error: process 0 of 2 on ") and "ended without a word" in last
    assert seconds_after(out, "main-killed", 1) < 30


def test_the_others_hear_of_a_mistake_before_the_trackers_are_closed(ended: Any) -> None:
    """Closing waits, in this test, until the other process has said that it ends."""
    out, found = ended
    assert found["late"] == [LOST, 1]
    last = (out / "late.0").read_text().strip().splitlines()[-1]
    assert "ended: ValueError: a strange thing happened" in last


def test_ports_that_the_main_process_cannot_use_end_all(ended: Any) -> None:
    out, found = ended
    assert found["ports"] == [2, 2]  # the other does not wait for a word that never comes
    last = (out / "ports.0").read_text().strip().splitlines()[-1]
    assert last.startswith("error: TERCET_PORTS: give a port or a range of them")


def test_a_signal_to_a_launcher_saves(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    """torchrun, which `accelerate launch` calls as well, passes it on and waits for its own."""
    words = [f"output={tmp_path / 'run'}", *options(tiny_model, pairs)]
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "tercet"]
    quiet = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    with (tmp_path / "said").open("w") as said:
        running = subprocess.Popen(
            [sys.executable, "-m", *launcher, "finetune", "tiny", *words, "train.steps=100000"],
            cwd=tmp_path,
            env=os.environ | quiet | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300"},
            stderr=said,
        )
        log = tmp_path / "run" / "run.jsonl"
        until(lambda: running.poll() is not None or len(read_log(log)) > 2)
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=120) != 0
    told = (tmp_path / "said").read_text()
    assert "stopped as asked after step" in " ".join(told.split()), told
    reached = newest(tmp_path / "run" / "checkpoints")
    assert reached is not None and reached.name == name_of(read_log(log)[-1]["step"])


def until(happens: Callable[[], bool], seconds: float = 180) -> None:
    """Return when it has happened."""
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_stop_says_what_to_do(
    run: Run, tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loop.gradient_of

    def signalled(at: loop.Run, *given: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return plain(at, *given)

    monkeypatch.setattr(loop, "gradient_of", signalled)
    words = [f"output={tmp_path / 'run'}", *options(tiny_model, pairs)]
    before = signal.getsignal(signal.SIGINT)
    status, _, err = run("finetune", "tiny", *words)
    assert status == SAVED
    assert "stopped as asked after step 1 of 6, which is saved" in " ".join(err.split())
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(Stopped, match="step 2"):
        finetune(load("tiny", words))
    state = tmp_path / "run" / "checkpoints" / "step-00000002" / "state.json"
    assert json.loads(state.read_text())["step"] == 2


def test_a_ctrl_c_that_comes_twice_is_one(
    run: Run, tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a terminal and from a launcher, the second when the step is saved already."""
    plain, begun = loop.gradient_of, time.monotonic()

    def signalled(at: loop.Run, *given: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGINT)).start()
        return plain(at, *given)

    monkeypatch.setattr(loop, "gradient_of", signalled)
    status, _, err = run("finetune", "tiny", f"output={tmp_path}", *options(tiny_model, pairs))
    assert status == SAVED and "stopped as asked after step 1 of 6" in " ".join(err.split())
    assert time.monotonic() - begun > polite.SAME


def test_nothing_is_lost_in_an_evaluation(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint comes before it; the run that goes on begins by evaluating that step again."""
    config = load("tiny", [f"output={tmp_path}", *options(tiny_model, pairs), "train.eval_every=2"])
    asked: list[int] = []

    def dies(model: object) -> dict[str, float]:
        asked.append(len(asked))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return {"ndcg@10": 1.0 - len(asked) / 10}

    with pytest.raises(KeyboardInterrupt):
        finetune(config, evaluate=dies)
    assert newest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-00000004"
    trained = finetune(config, evaluate=dies)
    assert len(asked) == 4  # steps 2, 4 (twice) and 6
    assert (trained.best.name, trained.metric) == ("step-00000002", 0.9)
    log = read_log(tmp_path / "run.jsonl")
    assert [line["step"] for line in log if "dev/ndcg@10" in line] == [2, 4, 6]


def test_a_signal_in_an_evaluation_is_heard_after_it(
    tiny_model: Path, pairs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = load("tiny", [f"output={tmp_path}", *options(tiny_model, pairs), "train.eval_every=2"])

    def signalled(model: object) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        assert "SIGTERM: stopping after this step" in capfd.readouterr().err  # said at once
        return {"ndcg@10": 1.0}

    with pytest.raises(Stopped, match="step 2"):
        finetune(config, evaluate=signalled)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
