"""Exports of runs: the checkpoint is verified first, and the card tells how it was made."""

import json
from pathlib import Path

import pytest

from tercet import stages
from tercet.configs import load
from tests.conftest import Run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, pairs: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    source = f"[{{path: {pairs}, licence: cc-by-4.0}}]"
    words = [f"output={folder / 'run'}", f"data.train={source}", f"model.path={tiny_model}"]
    stages.finetune(load("tiny", [*words, "train.steps=4", "licence=mit", "train.save_every=2"]))
    return folder / "run"


def test_the_card_tells_data_config_and_how_to_repeat_it(trained: Path, run: Run) -> None:
    status, _, err = run("export", trained, "--out", "out", "--truncate", 8)
    assert status == 0, err
    card = Path("out/README.md").read_text(encoding="utf-8")
    summary = json.loads((trained / "summary.json").read_text())
    assert f"| fingerprint | {summary['data']['fingerprint']} |" in card
    for part in (
        "license: mit",
        "- `pairs.jsonl`: cc-by-4.0",
        "`tercet finetune config.yaml`",
        "trained for 4 steps",
        "torch 2.",
        "have 8 dimensions",
        "compared by cosine",
        "## Intended use and limits",
        "temperature:",
    ):
        assert part in card, part
    assert str(trained.parent) not in card


@pytest.mark.parametrize("what", ["run", "checkpoint", "model"])
@pytest.mark.parametrize("damage", ["weights", "manifest"])
def test_a_damaged_checkpoint_is_refused(
    what: str, damage: str, trained: Path, run: Run, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    name = json.loads((copy / "summary.json").read_text())["checkpoint"]
    checkpoint = copy / "checkpoints" / name
    given = {"run": copy, "checkpoint": checkpoint, "model": checkpoint / "model"}[what]
    status, _, err = run("export", given, "--out", "sound")
    assert status == 0, err
    if damage == "weights":
        weights = checkpoint / "model" / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        expected = "model/model.safetensors is not what was written"
    else:
        (checkpoint / "manifest.json").unlink()
        expected = "manifest.json cannot be read"
    status, _, err = run("export", given, "--out", "out")
    assert status == 2 and expected in err and not Path("out").exists()
