"""Disks that are full or read-only and trackers that fail: the last checkpoint stays whole."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file

from tercet.configs import load
from tercet.errors import UserError
from tercet.train import finetune, loop, tracking
from tercet.train.checkpoint import newest, verify
from tercet.train.tracking import Tracker, read_log
from tests.conftest import Run, weights
from tests.workers import faults
from tests.workers.launch import ROOT, run_jobs

pytestmark = pytest.mark.usefixtures("one_thread")


def options(tiny_model: Path, pairs: Path, out: Path, *more: str) -> list[str]:
    where = [f"model.path={tiny_model}", f"data.train={pairs}", f"output={out}"]
    return [*where, "train.save_every=1", "train.steps=6", *more]


@pytest.fixture
def small_disk(disk_of: Callable[[int], Path]) -> Path:
    """A file system of 1 MiB, which holds two checkpoints and not three."""
    return disk_of(2**20)


def test_a_full_disk_leaves_the_last_checkpoint_whole(
    run: Run, tiny_model: Path, pairs: Path, small_disk: Path
) -> None:
    words = options(tiny_model, pairs, small_disk / "run", "train.keep=9")
    status, _, err = run("finetune", "tiny", *words)
    last = err.strip().splitlines()[-1]
    assert status == 2 and "Traceback" not in err
    assert "cannot be written (No space left" in last and "make room" in last
    checkpoints = small_disk / "run" / "checkpoints"
    there = sorted(checkpoints.iterdir())
    assert there and all(verify(path) is None for path in there)
    assert not list(checkpoints.glob(".*"))  # nothing half written stays
    reached = newest(checkpoints)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    status, _, err = run("finetune", "tiny", *words)
    assert status == 0 and reached is not None and f"from {reached}" in " ".join(err.split())


def test_a_limit_on_the_size_of_files_is_a_full_disk(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    """Without the right to mount: the kernel refuses the last part of the weights."""
    words = options(tiny_model, pairs, tmp_path / "run")
    size = (tiny_model / "model.safetensors").stat().st_size

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, size - 1))

    ended = subprocess.run(
        [sys.executable, "-m", "tercet", "finetune", "tiny", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2, ended.stderr
    assert "cannot be written (File too large" in ended.stderr.strip().splitlines()[-1]
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_read_only_output_is_refused_at_once(
    run: Run, tiny_model: Path, pairs: Path, small_disk: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    status, _, err = run("finetune", "tiny", *options(tiny_model, pairs, small_disk / "run"))
    assert status == 2 and "cannot write there (Read-only" in err


def test_a_log_that_cannot_be_written_stops_nothing(
    tiny_model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.jsonl").mkdir()
    trained = finetune(load("tiny", options(tiny_model, pairs, tmp_path)))
    said = capsys.readouterr().err
    assert trained.steps == 6 and said.count("cannot be written (Is a directory)") == 1


@pytest.mark.parametrize("place", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_log_that_is_no_file_becomes_one(
    tiny_model: Path, pairs: Path, tmp_path: Path, place: Callable[[Path], None]
) -> None:
    """Nobody reads from a pipe or a device: the one would be waited for, the other never ends."""
    place(tmp_path / "run.jsonl")
    assert finetune(load("tiny", options(tiny_model, pairs, tmp_path))).steps == 6
    assert not (tmp_path / "run.jsonl").is_symlink()
    assert len(read_log(tmp_path / "run.jsonl")) == 6


def test_a_summary_that_cannot_be_written_is_one_line(
    run: Run, tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    """The training is done by then, and all of it is in the checkpoints."""
    (tmp_path / "run" / "summary.json").mkdir(parents=True)
    words = options(tiny_model, pairs, tmp_path / "run")
    status, _, err = run("finetune", "tiny", *words)
    assert status == 2 and "summary.json: cannot be written (Is a directory)" in err
    (tmp_path / "run" / "summary.json").rmdir()
    status, _, err = run("finetune", "tiny", *words)
    assert status == 0 and "resuming after step 6 of 6" in " ".join(err.split())


def test_weights_that_are_not_finite_are_not_written(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loop.learning_rate

    def rate(step: int, *given: Any) -> float:
        return float("inf") if step == 2 else plain(step, *given)

    monkeypatch.setattr(loop, "learning_rate", rate)
    with pytest.raises(UserError, match="weights of step 3 are not finite .* not saved"):
        finetune(load("tiny", options(tiny_model, pairs, tmp_path)))
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000001", "step-00000002"]


def test_nan_at_step_3_ends_the_command(
    run: Run, tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "forward", loop.forward)  # comes back after the test
    faults.spoil_vectors(2)
    status, _, err = run("finetune", "tiny", *options(tiny_model, pairs, tmp_path / "run"))
    assert status == 2
    ended_by_nan(tmp_path / "run", err)


def ended_by_nan(run: Path, said: str) -> None:
    """The third step's NaN is printed and logged, and nothing that is not finite is on the disk."""
    last = said.strip().splitlines()[-1]
    report = json.loads((run / "nonfinite-step-3.json").read_text())
    assert "step 3: loss nan" in last
    assert all(id_ in last for id_ in report["ids"][:3]) and len(report["ids"]) == 8
    assert read_log(run / "run.jsonl")[-1]["loss"] == "nan"
    assert newest(run / "checkpoints") == run / "checkpoints" / "step-00000002"
    files = list(run.rglob("*.safetensors"))
    assert len(files) == 4  # weights and optimizer of two steps
    for path in files:
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())


# Two processes


@pytest.fixture(scope="module")
def two(tiny_model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where the runs of two processes are, and by name how both ended."""
    out = tmp_path_factory.mktemp("two")

    def job(name: str, *more: str, **fault: Any) -> dict[str, Any]:
        return {
            "name": name,
            "world": 2,
            "recipe": str(ROOT / "configs" / "tiny.yaml"),
            "set": options(tiny_model, pairs, out / name, *more),
            "said": str(out / f"{name}."),
            "fault": fault,
            "command": True,
            "may_fail": True,
        }

    wandb = "tracking.wandb=true"
    jobs = [
        job("nan", kind="nan", step=2, at=1),
        job("full", "train.keep=9", kind="full disk", step=3, at=0, size=10_000),
        job("tracker", wandb, kind="tracker"),
        job("no-wandb", wandb, kind="no wandb", at=0),
    ]
    ends = run_jobs(jobs, out)
    return out, dict(zip([one["name"] for one in jobs], ends, strict=True))


def test_nan_in_one_process_ends_both(two: Any) -> None:
    out, ends = two
    assert ends["nan"] == [2, 2]
    ended_by_nan(out / "nan", (out / "nan.0").read_text())


def test_a_full_disk_ends_both_and_leaves_the_last_checkpoint_whole(two: Any) -> None:
    out, ends = two
    said = (out / "full.0").read_text()
    last = said.strip().splitlines()[-1]
    assert ends["full"] == [2, 2], said
    assert "cannot be written (File too large" in last
    assert all("Traceback" not in (out / f"full.{rank}").read_text() for rank in (0, 1))
    there = sorted((out / "full" / "checkpoints").iterdir())
    assert [path.name for path in there] == [f"step-{step:08d}" for step in (1, 2, 3)]
    assert all(verify(path) is None for path in there)


@pytest.mark.parametrize(
    ("name", "said"),
    [("tracker", "failed (no route to host) and is left alone"), ("no-wandb", "did not start")],
)
def test_a_tracker_stops_neither_of_two(two: Any, name: str, said: str) -> None:
    out, ends = two
    assert ends[name] == [0, 0], (out / f"{name}.0").read_text()
    assert said in " ".join((out / f"{name}.0").read_text().split())
    assert len(read_log(out / name / "run.jsonl")) == 6


def test_skipping_without_end_is_given_up(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loop.gradient_of
    nan = float("nan")
    monkeypatch.setattr(loop, "gradient_of", lambda *given: plain(*given)._replace(loss=nan))
    monkeypatch.setattr(loop, "MOST_SKIPPED", 3)
    words = options(tiny_model, pairs, tmp_path, "train.on_nonfinite=skip")
    with pytest.raises(UserError, match="step 4: loss nan"):
        finetune(load("tiny", words))


def test_fp16_that_overflows_for_ever_is_given_up(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the scaler tells of each step: that it has left the step out."""
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", True)
    words = options(tiny_model, pairs, tmp_path, "train.ema=0.5")
    assert finetune(load("tiny", words)).steps == 6
    start, end = weights_of(tiny_model), weights(tmp_path / "checkpoints" / "step-00000006")
    assert all(torch.equal(start[name], end[name]) for name in start)  # no step was averaged
    assert read_log(tmp_path / "run.jsonl")[-1]["skipped_steps"] == 6
    monkeypatch.setattr(loop, "MOST_SKIPPED", 3)
    with pytest.raises(UserError, match="step 4: in fp16 the gradients of 4 steps in a row"):
        finetune(load("tiny", options(tiny_model, pairs, tmp_path / "other")))


def weights_of(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


# The log


def test_a_torn_line_costs_no_other(tmp_path: Path) -> None:
    """The disk was full in the middle of a line and has room again."""
    tracker = Tracker(Accelerator(cpu=True), load("tiny", [f"output={tmp_path}"]), 0)
    tracker.log(1, {"loss": 2.0})
    with tracker.path.open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')
    tracker._not_written(OSError(28, "No space left on device"))
    for step in (3, 4):
        tracker.log(step, {"loss": 1.0})
    assert [line["step"] for line in read_log(tracker.path)] == [1, 3, 4]


def test_a_torn_or_spoilt_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    good = '{"step": 1, "loss": 2.0}\n'
    for rest in (
        '{"step": 2, "lo',
        "\x00" * 40 + "\n",
        "[1]\n",
        '{"loss": 1}\n',
        "[" * 9999 + "\n",
    ):
        path.write_text(good + rest, encoding="utf-8")
        assert read_log(path) == [{"step": 1, "loss": 2.0}]
    path.write_bytes(good.encode() + b"\xff\xfe\n")
    assert len(read_log(path)) == 1


# Weights & Biases


@pytest.fixture
def wandb_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.usefixtures("wandb_keys")
def test_a_resumed_run_keeps_its_id(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = options(tiny_model, pairs, tmp_path / "run", "tracking.wandb=true")
    finetune(load("tiny", words))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    time.sleep(1.1)  # wandb names its folders by the second
    finetune(load("tiny", words))
    parts = [path.name for path in (tmp_path / "run" / "wandb").glob("offline-run-*")]
    assert len(parts) == 2 and len({name.split("-")[-1] for name in parts}) == 1
    assert parts[0].endswith((tmp_path / "run" / "wandb.id").read_text().strip())


@pytest.mark.usefixtures("wandb_keys")
def test_a_tracker_that_fails_or_hangs_stops_nothing(
    tiny_model: Path,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Hanging(faults.FailingTracker):
        def log(self, *_: Any, **__: Any) -> None: ...

        def finish(self) -> None:
            time.sleep(600)

    monkeypatch.setattr(tracking, "WAIT", 0.5)
    start = tracking.Tracker._start_wandb
    monkeypatch.setattr(tracking.Tracker, "_start_wandb", start)  # comes back after the test
    for kind in (faults.FailingTracker, Hanging):
        faults.use_tracker(kind())
        words = options(tiny_model, pairs, tmp_path / kind.__name__, "tracking.wandb=true")
        assert finetune(load("tiny", words)).steps == 6
    said = " ".join(capsys.readouterr().err.split())
    assert "failed (no route to host) and is left alone" in said
    assert "has not taken everything within" in said


@pytest.mark.faults
@pytest.mark.usefixtures("wandb_keys")
def test_a_server_that_cannot_be_reached_stops_nothing(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    words = options(tiny_model, pairs, tmp_path / "run", "tracking.wandb=true")
    keys = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    start = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "tercet", "finetune", "tiny", *words],
        cwd=tmp_path,
        env=os.environ | keys | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr
    assert len(read_log(tmp_path / "run" / "run.jsonl")) == 6
    assert time.monotonic() - start < 200
