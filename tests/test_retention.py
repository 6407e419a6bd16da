"""`tercet retention`: tables that add up."""

import json
from pathlib import Path

import numpy as np
import pytest

from tercet.configs import ModelConfig
from tercet.data import read_task
from tercet.evaluation.retention import TEACHER, Variant, retention, score, summary
from tercet.models import encode, load_encoder
from tercet.models.layers import keep_layers
from tercet.report.retention import retention_note, retention_plot, retention_table
from tests.conftest import Run

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_table_says_what_each_variant_scores(
    tiny_model: Path, beir: Path, tmp_path: Path
) -> None:
    teacher, student = (load_encoder(ModelConfig(path=str(tiny_model))) for _ in range(2))
    keep_layers(student, "first:1")
    task = read_task(beir)
    models = {TEACHER: teacher, "small": student}
    found = retention(models, task, [8], 1)
    names = [variant["name"] for variant in found["variants"]]
    assert names == [
        "teacher",
        "teacher, 8 dims",
        "teacher, int8 index",
        "small",
        "small, 8 dims",
        "small, int8 index",
        "small on the index of teacher",
        "small on the index of teacher, int8 index",
    ]
    asked = encode(student, task.queries.texts, "query")
    scores = asked @ encode(teacher, task.documents.texts, "document").T
    answers = [task.documents.index[next(iter(task.qrels[q]))] for q in task.queries.ids]
    own = scores[np.arange(len(asked)), answers]
    place = (scores > own[:, None]).sum(axis=1)
    gains = np.where(place < 10, 1 / np.log2(place + 2), 0)
    asymmetric = found["variants"][names.index("small on the index of teacher")]
    assert asymmetric["mean"] == pytest.approx(gains.mean(), abs=1e-6)
    assert found["variants"][0]["share"] == 1 and found["speed"][TEACHER]["p50_ms"] > 0
    assert found["speed"][TEACHER]["documents_times_faster"] == 1
    assert Variant("small", TEACHER).name == asymmetric["name"]
    small = found["variants"][names.index("small")]
    assert small["share_low"] <= small["share"] <= small["share_high"]
    rows = retention_table(found)
    assert rows[0]["Of the teacher"] == "100.0%"
    assert f"{small['share']:.1%} [{small['share_low']:.1%}, " in rows[3]["Of the teacher"]
    nothing = dict.fromkeys(task.qrels, 0.0)
    assert summary(nothing, nothing)["share_low"] is None
    assert rows[4]["Bytes / document"] == "32" and rows[2]["Bytes / document"] == "32"
    assert rows[4]["Variant"] == "small, 8 dims" and "12 queries" in retention_note(found)
    retention_plot(found, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text(encoding="utf-8")
    short = [encode(student, texts, role, truncate_dim=8) for texts, role in _sides(task)]  # type: ignore[arg-type]
    own = score(models, Variant("small", "small", dims=8), task)
    scores = short[0] @ short[1].T
    place = (scores > scores[np.arange(len(scores)), answers][:, None]).sum(axis=1)
    gains = np.where(place < 10, 1 / np.log2(place + 2), 0)
    assert np.mean(list(own.values())) == pytest.approx(gains.mean(), abs=1e-6)


def _sides(task):  # type: ignore[no-untyped-def]
    return (task.queries.texts, "query"), (task.documents.texts, "document")


def test_the_command_writes_numbers_table_and_plot(
    run: Run, tiny_model: Path, beir: Path, tmp_path: Path
) -> None:
    student = load_encoder(ModelConfig(path=str(tiny_model)))
    keep_layers(student, "first:1")
    student.save(str(tmp_path / "small"), create_model_card=False)
    words = ["retention", "small", "--teacher", tiny_model, "--data", beir, "--rounds", "1"]
    status, out, err = run(*words, "--dims", "8", "--out", "found")
    assert status == 0 and "small on the index of teacher" in out, err
    found = json.loads(Path("found/retention.json").read_text(encoding="utf-8"))
    assert found["task"] == "animals" and found["sizes"]["small"]["layers"] == 1
    assert found["machine"]["threads"] == 1
    assert "| small, 8 dims |" in Path("found/retention.md").read_text(encoding="utf-8")
    assert "<svg" in Path("found/retention.svg").read_text(encoding="utf-8")
    for change, complaint in (
        (["--data", "absent"], "absent"),
        (["--teacher", "./absent"], "teacher: ./absent does not exist"),
    ):
        status, _, err = run(*words, *change)
        assert status == 2 and complaint in err
    status, _, err = run("retention", "small", "small", "--data", beir)
    assert status == 2 and "small: given twice; name each model once" in err
