"""Folders that appear whole, what they may replace, and what disks and libraries complain of."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tercet import files
from tercet.errors import UserError
from tercet.files import (
    DAY,
    _place,
    check_replaceable,
    disk_errors,
    disk_trouble,
    library_errors,
    whole_file,
    whole_folder,
    write_text,
)
from tests.workers.launch import ROOT

HOLDS = "modules.json"
KILLED = """
import os
from pathlib import Path
from tercet.files import whole_folder
with whole_folder(Path("out")) as partial:
    (partial / "half").write_text("x")
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory two levels down, so that what is above it can be named."""
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    return place


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def model_in(folder: Path, *more: str) -> Path:
    folder.mkdir(parents=True)
    for name in (HOLDS, *more):
        (folder / name).write_text("old")
    return folder


def test_a_killed_process_leaves_a_half_that_the_next_one_sweeps(here: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", KILLED], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    (half,) = names(here)
    assert ended.returncode == -9 and half.startswith(".out.") and half.endswith(".partial")
    place, dead = half.removeprefix(".out.").split(".")[0].split("-")
    others = [  # of a live process, of another machine or container, of another folder
        f".out.{place}-{os.getppid()}.x.partial",
        f".out.{place[::-1]}-{dead}.x.partial",
        f".out.er.{place}-{dead}.x.partial",
    ]
    for name in (*others, f".out.{place}-{dead}.x.old"):
        Path(name).mkdir()
    with pytest.raises(ZeroDivisionError), whole_folder(Path("out")):
        assert names(here) == sorted([*others, "out", own_partial(here)])
        raise ZeroDivisionError
    assert names(here) == sorted([*others, "out"])  # a half is no loss, an old whole one is
    with whole_folder(Path("out")) as partial:
        (partial / "whole").write_text("x")
    assert names(here) == sorted([*others, "out"])
    assert names(Path("out")) == ["whole"]


def test_half_a_file_is_swept_by_whatever_is_written_beside_it_next(here: Path) -> None:
    killed = KILLED.replace("whole_folder", "whole_file").replace('(partial / "half")', "partial")
    subprocess.run([sys.executable, "-c", killed], env=os.environ | {"PYTHONPATH": str(ROOT)})
    (half,) = names(here)
    assert half.startswith(".out.") and half.endswith(".partial") and Path(half).is_file()
    place, dead = half.removeprefix(".out.").split(".")[0].split("-")
    kept = [f".out.{place}-{os.getppid()}.x.partial", ".mine.partial"]  # of a live one, of nobody
    for name in kept:
        Path(name).write_text("x")
    folder = f".other.{place}-{dead}.x.partial"  # for who makes that folder
    Path(folder).mkdir()
    write_text(Path("another"), "x")
    assert names(here) == sorted([*kept, folder, "another"])


def test_what_other_machines_left_goes_after_a_day(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [f".out.elsewhere-{os.getpid()}.x.{ending}" for ending in ("partial", "old")]
    for name in left:
        model_in(here / name)
    with whole_folder(Path("out")) as partial:
        (partial / "whole").write_text("x")
    assert names(here) == sorted([*left, "out"])
    tomorrow = time.time() + DAY + 1
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    with whole_folder(Path("out")) as partial:
        (partial / "whole").write_text("x")
    assert names(here) == ["out"]


def test_a_container_is_another_place() -> None:
    """Processes of two containers may have one number and one host name."""

    def place(*launcher: str) -> str:
        told = "from tercet.files import _place; print(_place())"
        command = [*launcher, sys.executable, "-c", told]
        return subprocess.check_output(command, cwd=ROOT, text=True).strip()

    container = ("unshare", "--user", "--map-root-user", "--pid", "--fork")
    assert place() == _place()
    try:
        subprocess.run([*container, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to make a process namespace")
    assert place(*container) != _place()


def test_two_processes_of_one_number_write_files_of_their_own(here: Path) -> None:
    with whole_file(here / "file") as first:
        first.write_text("first")
        with whole_file(here / "file") as second:
            second.write_text("second")
        assert first.read_text() == "first" and Path("file").read_text() == "second"
    assert names(here) == ["file"] and Path("file").read_text() == "first"


REPLACING = """
import os
from pathlib import Path
from tercet.files import whole_folder
rename = Path.rename
def dying(self, target):
    if self.name.endswith(".partial"):
        os.kill(os.getpid(), 9)
    return rename(self, target)
Path.rename = dying
with whole_folder(Path("out")) as partial:
    (partial / "modules.json").write_text("new")
"""


def test_a_process_killed_between_two_renames_loses_nothing(here: Path) -> None:
    model_in(here / "out")
    command = [sys.executable, "-c", REPLACING]
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert ended.returncode == -9 and not Path("out").exists()
    assert {name.rsplit(".")[-1] for name in names(here)} == {"old", "partial"}
    with pytest.raises(UserError, match="out: exists; .* --overwrite"):
        check_replaceable(Path("out"), HOLDS)
    assert Path("out", HOLDS).read_text() == "old"
    with whole_folder(Path("out")) as partial:
        (partial / HOLDS).write_text("newer")
    assert names(here) == ["out"] and Path("out", HOLDS).read_text() == "newer"


def test_a_rename_that_fails_leaves_the_old_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_in(here / "out")
    plain = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(PermissionError), whole_folder(Path("out")) as partial:
        (partial / HOLDS).write_text("new")
    assert names(here) == ["out"] and Path("out", HOLDS).read_text() == "old"


def own_partial(folder: Path) -> str:
    return next(n for n in names(folder) if f"-{os.getpid()}." in n)


def test_a_link_stays_a_link_and_dots_are_names(here: Path) -> None:
    model_in(here / "real")
    Path("link").symlink_to("real")
    with whole_folder(Path("link")) as partial:
        (partial / HOLDS).write_text("new")
    assert Path("link").is_symlink() and Path("real", HOLDS).read_text() == "new"
    with whole_folder(Path("./x/../y/.")) as partial:
        (partial / "z").write_text("z")
    assert names(here) == ["link", "real", "y"]


def test_others_may_read_what_a_library_wrote_for_us_alone(here: Path) -> None:
    with whole_folder(Path("model")) as partial:
        save_file({"a": torch.zeros(1)}, partial / "model.safetensors")
        (partial / "closed").write_text("x")
        (partial / "closed").chmod(0o600)
    for path in (Path("model"), *Path("model").iterdir()):
        assert path.stat().st_mode & 0o444 == 0o444


def test_what_may_be_replaced(here: Path) -> None:
    check_replaceable(Path("new/folder"), HOLDS)
    assert not Path("new/folder").exists()
    Path("empty").mkdir()
    check_replaceable(Path("empty"), HOLDS, overwrite=True)
    model_in(here / "model")
    check_replaceable(Path("model"), HOLDS, overwrite=True, keep=["org/name", "absent", here / "x"])
    check_replaceable(Path("model"), HOLDS, overwrite=True, keep=[here / "model2"])


def test_what_is_never_replaced(here: Path) -> None:
    file = here / "file"
    file.write_text("x")
    model_in(here / "model", "corpus.jsonl")
    Path("link").symlink_to("model")
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/summary.json").write_text("{}")
    refused: list[tuple[str, dict, str]] = [
        ("model", {}, "model: exists; .* --overwrite"),
        ("file", {"overwrite": True}, "file: is no folder"),
        ("file/x", {}, "cannot write there"),
        ("x" * 300, {}, r"cannot be written .File name too long.; choose another folder$"),
        (".", {"overwrite": True}, r"^\.: replacing it would delete .*/a/b"),
        ("..", {"overwrite": True}, r"^\.\.: replacing it would delete .*/a/b"),
        ("runs", {"overwrite": True}, "runs: holds something else .no modules.json"),
        ("runs/mine", {"overwrite": True}, "runs/mine: holds something else"),
        ("model", {"overwrite": True, "keep": ["link/corpus.jsonl"]}, "would delete link/corpus"),
        ("link", {"overwrite": True, "keep": [here / "model"]}, "would delete .*model; choose"),
    ]
    for out, how, expected in refused:
        with pytest.raises(UserError, match=expected):
            check_replaceable(Path(out), HOLDS, **how)
    assert names(here) == ["file", "link", "model", "runs"]


def test_a_folder_is_synced_with_all_it_holds_before_its_name_is(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, synced = files._fsync, []

    def recording(path: Path) -> None:
        synced.append(path)
        plain(path)

    monkeypatch.setattr(files, "_fsync", recording)
    with whole_folder(Path("out")) as partial:
        (partial / "a").mkdir()
        (partial / "a" / "b").write_text("x")
    assert synced == [partial / "a", partial / "a" / "b", partial, partial.parent]


def test_disks_and_libraries_in_one_line() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    faiss = RuntimeError(
        "Error in write_index: write error in /x: 1 != 2 (No space left on device)"
    )
    for error in (full, faiss):
        expected = r"^out: .*\(No space left on device.*make room"
        whole = disk_errors(Path("out"))
        with pytest.raises(UserError, match=expected), whole, library_errors("x", "try again"):
            raise error
    with (
        pytest.raises(UserError, match=r"^out: cannot be written \(No space.*\); buy another$"),
        disk_errors(Path("out"), "buy another"),
    ):
        raise full
    expected = r"\(Permission denied\); choose another folder; nothing"
    with pytest.raises(UserError, match=expected), disk_errors(Path("out")):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    for error in (
        OSError("no such model on the hub"),
        ConnectionRefusedError(errno.ECONNREFUSED, "x"),
    ):
        assert disk_trouble(error) is None
    with (
        pytest.raises(
            UserError, match=r"^the graph failed \(ValueError: odd shape\); leave it out$"
        ),
        disk_errors(Path("out")),
        library_errors("the graph failed", "leave it out"),
    ):
        raise ValueError("odd shape\n  at node 7")
    with pytest.raises(UserError, match="^mine$"), disk_errors(Path("out")), library_errors("", ""):
        raise UserError("mine")
    with pytest.raises(KeyError), disk_errors(Path("out")):
        raise KeyError("a bug stays a bug")
