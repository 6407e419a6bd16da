"""What is made once is made again when anything that decides it has changed."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from benchmarks.collections import contents, cut_by
from benchmarks.kept import MADE, kept_json, made_of, mined, trained
from tercet import stages
from tercet.configs import Config, load
from tercet.train.tracking import Tracker

pytestmark = pytest.mark.usefixtures("one_thread")
OTHER = {"source": "of another day"}  # what stands for another version of the code


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model, in a folder that a test may change."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def config(model: Path, beir: Path, *more: str) -> Config:
    said = ("tracking.wandb=false", "mining.relative_margin=null", "mining.negatives=2")
    return load("tiny", [f"model.path={model}", f"data.train={beir}", *said, *more])


def change_a_weight(model: Path) -> None:
    (file,) = model.rglob("*.safetensors")
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] += 0.25
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_result_is_computed_once_for_what_it_was_made_by(tmp_path: Path) -> None:
    calls: list[int] = []
    for code, wanted in (("x", 1), ("x", 1), ("y", 2)):
        made = kept_json(tmp_path / "a.json", lambda: calls.append(1) or {"a": 1}, {"code": code})
        assert made == {"a": 1, "made_by": {"code": code}} and len(calls) == wanted
    (tmp_path / "a.json").write_text(json.dumps({"a": 2}))  # nobody knows of what
    assert kept_json(tmp_path / "a.json", lambda: {"a": 1}, {"code": "y"})["a"] == 1


def test_settings_data_weights_negatives_and_code_decide(
    model: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(*more: str) -> str:
        return json.dumps(made_of(config(model, beir, *more)))

    first = seen()
    assert seen("output=elsewhere", "overwrite=true") == first
    found = {first, seen("train.seed=3")}
    (tmp_path / "negatives").write_text("one")
    found.add(seen(f"data.mined={tmp_path / 'negatives'}"))
    (tmp_path / "negatives").write_text("two")
    found.add(seen(f"data.mined={tmp_path / 'negatives'}"))
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.kept.code_version", lambda: OTHER)
        found.add(seen())
    corpus = (beir / "corpus.jsonl").read_text(encoding="utf-8")
    (beir / "corpus.jsonl").write_text(corpus.replace("forest", "wood"), encoding="utf-8")
    found.add(seen())
    change_a_weight(model)
    found.add(seen())
    assert len(found) == 7
    other = tmp_path / "other.jsonl"
    for text in ("one", "two"):
        other.write_text(text)
        for key in ("evaluation.dev", "data.held_out", "mining.known"):
            found.add(seen(f"{key}={other}" if key == "evaluation.dev" else f"{key}=[{other}]"))
    assert len(found) == 13


def test_a_model_is_trained_once_for_what_decides_it(
    model: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def train(given: Config) -> Path:
        calls.append(Path(given.output))
        return stages.finetune(given)

    def run(*more: str) -> dict[str, Any]:
        return trained(tmp_path / "runs" / "a", config(model, beir, *more), train)

    first = run()
    assert run() == first and len(calls) == 1
    assert calls[0].name.startswith("a-") and Path(first["model"]) == calls[0] / "model"
    assert 0 < first["seconds"] < 600
    assert run("train.seed=3")["model"] != first["model"]
    change_a_weight(model)
    changed = run()
    assert len({first["model"], changed["model"]}) == 2 and len(calls) == len({*calls}) == 3


def test_a_training_that_had_ended_is_not_repeated(model: Path, beir: Path, tmp_path: Path) -> None:
    place, asked = tmp_path / "runs" / "a", config(model, beir)
    first = trained(place, asked, stages.finetune)
    (made,) = place.parent.rglob(MADE)
    log = made.with_name("parts.json")
    began = json.loads(log.read_text(encoding="utf-8"))[0]["start"]
    log.write_text(json.dumps([{"start": 0, "seconds": 40}, {"start": began}]), encoding="utf-8")
    made.unlink()  # killed before it was written

    def never(_: Config) -> Path:
        raise AssertionError("trained again")

    found = trained(place, asked, never)
    assert found["model"] == first["model"] and found["parts"] == 2
    assert 40 < found["seconds"] <= 40 + first["seconds"] + 0.1


def test_a_training_that_was_stopped_is_no_obstacle_to_other_code(
    model: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, asked = tmp_path / "runs" / "a", config(model, beir, "train.save_every=1")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Tracker, "log", stop_at(3))
        trained(place, asked, stages.finetune)
    (stopped,) = place.parent.iterdir()
    assert any((stopped / "checkpoints").iterdir())
    for where in ("benchmarks.kept", "tercet.train.resuming"):
        monkeypatch.setattr(f"{where}.code_version", lambda: OTHER)
    found = trained(place, asked, stages.finetune)
    assert found["parts"] == 1 and Path(found["model"]).parent != stopped


def test_the_seconds_of_a_stopped_training_add_up_to_its_checkpoint(
    model: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, asked = tmp_path / "runs" / "a", config(model, beir, "train.save_every=2")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Tracker, "log", stop_at(1))  # no checkpoint yet: nothing to go on from
        trained(place, asked, stages.finetune)
    (run,) = place.parent.iterdir()
    for step in (3, 4):  # the second of these parts comes to no new checkpoint
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Tracker, "log", stop_at(step))
            trained(place, asked, stages.finetune)
        log = json.loads((run / "parts.json").read_text(encoding="utf-8"))
        assert len(log) == step - 2
        log[0]["start"] -= 10  # as if the first had begun so much earlier
        (run / "parts.json").write_text(json.dumps(log), encoding="utf-8")
    found = trained(place, asked, stages.finetune)
    assert found["parts"] == 3
    first, second, last = json.loads((run / "parts.json").read_text(encoding="utf-8"))
    assert 10 < first["seconds"] < 10 + second["start"] - first["start"] and second["seconds"] == 0
    assert 10 < found["seconds"] < first["seconds"] + time.time() - last["start"]


def stop_at(step: int) -> Any:
    """In place of `Tracker.log`: the process is told to end while it writes the line of a step."""
    log = Tracker.log

    def stop(self: Tracker, at: int, values: dict[str, Any]) -> None:
        if at == step:
            raise KeyboardInterrupt
        log(self, at, values)

    return stop


def test_a_mined_set_is_whole_or_made_again(model: Path, beir: Path, tmp_path: Path) -> None:
    place = tmp_path / "mined" / "a"
    first = mined(place, config(model, beir))
    assert mined(place, config(model, beir)) == first
    assert first["counts"]["queries"] == 36 and first["counts"]["kept"] > 36
    assert first["false_negatives"] is None and first["seconds"] > 0
    file = Path(first["file"])
    whole = file.read_bytes()
    for name in (MADE, "mining.json", "mine.yaml", "mining.html"):  # killed after the Parquet file
        (file.parent / name).unlink()
    assert mined(place, config(model, beir)).keys() == first.keys()
    assert file.read_bytes() == whole and (file.parent / "mining.html").exists()
    change_a_weight(model)
    assert mined(place, config(model, beir))["file"] != first["file"]


def test_collections_cut_otherwise_have_another_folder() -> None:
    assert cut_by(8, (8, 8)) == cut_by(8, (8, 8))
    assert len({cut_by(8, (8, 8)), cut_by(None, (800, 10_000)), cut_by(8, (8, 9))}) == 3


def test_the_contents_of_folders_change_with_any_file(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    file, seen = tmp_path / "a" / "b" / "c", set[str]()
    for text in ("one", "two"):
        file.write_text(text)
        assert contents(tmp_path / "a") == contents(tmp_path / "a")
        seen |= {contents(tmp_path / "a"), contents(file, tmp_path / "a")}
    file.rename(file.with_name("d"))
    seen |= {contents(tmp_path / "a"), contents(tmp_path / "absent")}
    assert len(seen) == 6
