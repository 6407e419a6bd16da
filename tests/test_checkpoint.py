"""A checkpoint is used only if every file of it is what was written, and none can run code."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tercet.configs import load
from tercet.files import write_json
from tercet.train import finetune
from tercet.train.checkpoint import drop_old, manifest_of, newest, verify

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tiny_model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 2 and 4."""
    where = [f"model.path={tiny_model}", f"data.train={pairs}"]
    out = tmp_path_factory.mktemp("made")
    finetune(load("tiny", [f"output={out}", *where, "train.save_every=2"]))
    return out / "checkpoints"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "checkpoints"))


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [delete, truncate, flip])
def test_each_file_damaged_in_turn_is_named_and_the_older_one_used(
    made: Path, folder: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    target = folder / "step-00000004"
    files = sorted(f for f in target.rglob("*") if f.is_file())
    assert len(files) > 8  # weights, optimizer, state, manifest and what makes the model loadable
    for path in files:
        whole = path.read_bytes()
        if not whole:
            continue
        damage(path)
        assert newest(folder) == folder / "step-00000002"
        said = " ".join(capsys.readouterr().err.split())
        assert f"{target}: skipped" in said and str(path.relative_to(target)) in said
        path.write_bytes(whole)
    assert newest(folder) == target


def test_every_flipped_bit_of_the_manifest_is_noticed(folder: Path) -> None:
    path = folder / "step-00000004" / "manifest.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 1 << (at % 8)
        path.write_bytes(data)
        assert verify(path.parent) is not None, (at, data[max(0, at - 9) : at + 9])


def add_to_manifest(checkpoint: Path, name: str) -> None:
    hashes = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))["sha256"]
    write_json(checkpoint / "manifest.json", manifest_of(hashes | {name: "0" * 64}))


class Runs:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str, str]]:
        return Path.write_text, (self.mark, "run")  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["trainer.safetensors", "weights.pt", "notes"])
def test_a_checkpoint_with_a_pickle_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    target, mark = folder / "step-00000004", tmp_path / "mark"
    if name.endswith(".pt"):
        torch.save({"a": torch.zeros(1)}, target / name)
    else:
        (target / name).write_bytes(pickle.dumps(Runs(mark)))
    add_to_manifest(target, name)
    found = verify(target)
    expected = "not what was written" if name.endswith("safetensors") else "could run any code"
    assert found is not None and name in found and expected in found
    assert newest(folder) == folder / "step-00000002" and not mark.exists()


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "model/../../secret", "link"])
def test_paths_out_of_the_folder_are_refused(folder: Path, name: str) -> None:
    target = folder / "step-00000004"
    (folder / "secret").write_text("x", encoding="utf-8")
    if name == "link":
        (target / name).symlink_to(folder / "secret")
    else:
        add_to_manifest(target, name)
    found = verify(target)
    assert found is not None and "outside it" in found and name in found


def test_what_comes_after_this_step_is_dropped(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 9):
        (tmp_path / f"step-{step:08d}").mkdir()
    (tmp_path / ".step-00000005.x.partial").mkdir()
    drop_old(tmp_path, step=4, best=1, keep=2)
    assert sorted(p.name[-1] for p in tmp_path.iterdir()) == ["1", "3", "4"]
