"""`tercet export`: a mistake, a limit or a full disk is one line, and nothing half made stays."""

import json
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tercet.configs import load, save
from tercet.export import parity as parity_module
from tests.conftest import Run

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")


MISTAKES = {
    "no model": (["export", "empty", "--onnx"], "empty holds no model"),
    "no such model": (["export", "./absent", "--onnx"], "./absent does not exist"),
    "no text to calibrate on": (
        ["export", "MODEL", "--int8", "--calibrate", "blank.txt"],
        "blank.txt: no text in it",
    ),
    "no such texts": (["export", "MODEL", "--int8", "--calibrate", "absent.txt"], "absent.txt"),
    "calibration without int8": (
        ["export", "MODEL", "--onnx", "--calibrate", "one.txt"],
        "--calibrate: .*--int8",
    ),
    "data without onnx": (["export", "MODEL", "--data", "empty"], "--calibrate and --data are for"),
    "no BEIR folder": (["export", "MODEL", "--onnx", "--data", "empty"], "no corpus.jsonl"),
    "a loss of 300 %": (["export", "MODEL", "--int8", "--max-loss", "3"], "--max-loss: 3.0 is not"),
    "too many dimensions": (["export", "MODEL", "--truncate", "64"], "truncate: 64 is not between"),
    "no dimension": (["export", "MODEL", "--truncate", "0"], "truncate: 0 is not between"),
    "a file in the way": (["export", "MODEL", "--out", "one.txt/x"], "cannot write there"),
    "a file there": (["export", "MODEL", "--out", "one.txt"], "one.txt: is no folder; choose"),
    "a file to replace": (["export", "MODEL", "--out", "one.txt", "--overwrite"], "is no folder"),
    "here": (["export", "MODEL", "--out", ".", "--overwrite"], "replacing it would delete"),
    "above": (["export", "MODEL", "--out", "..", "--overwrite"], "replacing it would delete"),
    "over itself": (["export", "MODEL", "--out", "MODEL", "--overwrite"], "would delete .*model"),
    "over something else": (
        ["export", "MODEL", "--out", "runs", "--overwrite"],
        "runs: holds something else .no modules.json",
    ),
    "over the texts": (
        ["export", "MODEL", "--int8", "--calibrate", "m/t.txt", "--out", "m", "--overwrite"],
        "replacing it would delete m/t.txt",
    ),
    "results of no run": (["export", "MODEL", "--results", "one.txt"], "is no finished run"),
    "a folder without results": (
        ["export", "done", "--results", "empty"],
        "--results: empty holds no results; name what `evaluate` wrote",
    ),
    "a run that has not ended": (
        ["export", "begun"],
        "begun: this run is not finished; give its command again, or name a checkpoint: "
        "begun/checkpoints/step-00000002$",
    ),
    "a cross-encoder": (
        ["export", "pairs"],
        r"pairs cannot be loaded: it is a cross-encoder or classifier "
        r"\(BertForSequenceClassification\)",
    ),
    "half of the weights": (["export", "half", "--onnx"], "half cannot be loaded: Error while des"),
    "a module that nobody knows": (
        ["export", "odd", "--onnx"],
        "odd cannot be loaded: .*does not define a .Nothing",
    ),
    "a long name": (["export", "MODEL", "--out", "x" * 300], "File name too long.; choose another"),
    "a split of nothing": (
        ["export", "MODEL", "--onnx", "--split", "dev"],
        "--split: is of the folders of --data; add one",
    ),
    "a split without onnx": (["export", "MODEL", "--split", "dev"], "--split: is of the folders"),
    "public": (["export", "MODEL", "--public"], "--public: is of what --push uploads"),
    "a loss of nothing": (["export", "MODEL", "--onnx", "--max-loss", "0.1"], "--int8 writes"),
    "no name to push to": (["export", "MODEL", "--push", "a/b/c"], "--push: "),
    "offline": (["export", "MODEL", "--push", "me/model"], "--push: offline mode"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(mistake: str, run: Run, tiny_model: Path) -> None:
    words, expected = MISTAKES[mistake]
    Path("empty").mkdir()
    Path("blank.txt").write_text(" \n\n")
    Path("one.txt").write_text("a text\n")
    Path("runs/mine").mkdir(parents=True)
    for number in (1, 2):
        Path(f"begun/checkpoints/step-{number:08}").mkdir(parents=True)
    save(load("tiny"), Path("begun/config.yaml"))
    Path("done").mkdir()
    save(load("tiny"), Path("done/config.yaml"))
    Path("done/summary.json").write_text("{}")
    shutil.copytree(tiny_model, "pairs")
    Path("pairs/modules.json").unlink()
    settings = json.loads(Path("pairs/config.json").read_text())
    settings["architectures"] = ["BertForSequenceClassification"]
    Path("pairs/config.json").write_text(json.dumps(settings))
    shutil.copytree(tiny_model, "half")
    weights = Path("half/model.safetensors").read_bytes()
    Path("half/model.safetensors").write_bytes(weights[: len(weights) // 2])
    shutil.copytree(tiny_model, "odd")
    modules = json.loads(Path("odd/modules.json").read_text())
    modules[-1]["type"] = "sentence_transformers.models.Nothing"
    Path("odd/modules.json").write_text(json.dumps(modules))
    Path("m").mkdir()
    Path("m/modules.json").write_text("[]")
    Path("m/t.txt").write_text("a text\n")
    words = [str(tiny_model) if word == "MODEL" else word for word in words]
    out = [] if "--out" in words else ["--out", "out"]
    before = sorted(Path().rglob("*"))
    status, _, err = run(*words, *out)
    last = err.strip().splitlines()[-1]
    assert status == 2 and last.startswith("error: ")
    assert re.search(expected, last), last
    assert sorted(Path().rglob("*")) == before


def test_a_cross_encoder_with_modules_is_refused(run: Run, judge: Path) -> None:
    assert (judge / "modules.json").exists()
    status, _, err = run("export", judge, "--out", "out")
    assert status == 2 and "it is a cross-encoder or classifier (CrossEncoder)" in err


def test_several_processes_are_refused(
    run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tercet.processes.process_count", lambda: 2)
    status, _, err = run("export", tiny_model, "--out", "out")
    assert status == 2 and "export: works in one process" in err and not Path("out").exists()


@pytest.mark.parametrize("limit", ["vectors", "quality"])
def test_beyond_a_limit_nothing_is_written(
    limit: str, run: Run, tiny_model: Path, few_texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["export", tiny_model, "--out", "out", "--int8", "--data", few_texts]
    if limit == "vectors":
        monkeypatch.setattr(parity_module, "LEAST_COSINE", 1.1)
        expected = r"model.safetensors: the least cosine .* is 1.000000 \(limit 1.1\)"
    else:
        monkeypatch.setattr("tercet.export.variants.loss", lambda _: 0.5)
        monkeypatch.setattr("tercet.export.parity._quality", spoilt_quality)
        expected = r"model_int8.onnx: nDCG@10 on animals falls from 0.8000 to 0.4000.*--max-loss"
    status, _, err = run(*words)
    assert status == 2 and re.search(expected, err), err
    assert [path.name for path in Path().iterdir()] == ["animals"]


def spoilt_quality(before: Any, after: Any) -> dict[str, Any]:
    return {"before": {"mean": 0.8}, "after": {"mean": 0.4}, "loss": 0.5}


def test_a_failed_export_leaves_the_old_one(
    run: Run, tiny_model: Path, few_texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out").mkdir()
    Path("out/modules.json").write_text("kept")
    monkeypatch.setattr(parity_module, "LEAST_COSINE", 1.1)
    words = ["export", tiny_model, "--out", "out", "--onnx", "--data", few_texts, "--overwrite"]
    assert run(*words)[0] == 2
    assert [path.name for path in Path("out").iterdir()] == ["modules.json"]


@pytest.mark.parametrize("part", ["weights", "graph"])
def test_a_full_disk_is_one_line(part: str, run: Run, tiny_model: Path, few_texts: Path) -> None:
    """A limit on the size of files stands for the disk: the weights, or the graph, do not fit."""
    run("store", "list")  # what is loaded on first use is loaded now
    weights = (tiny_model / "model.safetensors").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    most = {"weights": 20_000, "graph": weights + 4_096}[part]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        status, _, err = run("export", tiny_model, "--out", "out", "--onnx", "--data", few_texts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    last = err.strip().splitlines()[-1]
    assert status == 2 and "out: cannot be written (File too large" in last, err
    assert ("writing the ONNX graph" in err) == (part == "graph")
    assert [path.name for path in Path().iterdir()] == ["animals"]


def test_a_disk_that_fills_under_the_quantiser(
    run: Run, tiny_model: Path, few_texts: Path, disk_of: Callable[[int], Path]
) -> None:
    """Its C++ part would read back half a graph; there is room for the first graph only."""
    words = ["export", tiny_model, "--data", few_texts, "--max-loss", 1, "--int8"]
    assert run(*words[:-3], "--onnx", "--out", "whole")[0] == 0
    files = [file.stat().st_size for file in Path("whole").rglob("*") if file.is_file()]
    graph = Path("whole/onnx/model.onnx").stat().st_size
    disk = disk_of(sum(-(-size // 4_096) * 4_096 for size in files) + graph)
    status, _, err = run(*words, "--out", disk / "out")
    last = err.strip().splitlines()[-1]
    assert status == 2 and "out: cannot be written (No space left on device); make room" in last
    assert list(disk.iterdir()) == []
