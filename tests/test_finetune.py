"""Whole runs of the tiny recipe: what they leave, what they survive, what they refuse."""

import json
import os
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tercet.configs import load
from tercet.errors import UserError
from tercet.models import encode
from tercet.train import Trained, finetune
from tercet.train.tracking import read_log
from tercet.versions import code_version
from tests.conftest import NAMES, answer, question, weights, write_lines

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.usefixtures("one_thread")
KEYS = {
    "step",
    "loss",
    "grad_norm",
    "lr",
    "in_batch_accuracy",
    "positive_score",
    "hardest_negative_score",
    "masked_known",
    "masked_same",
    "masked_by_margin",
    "masked_by_guide",
    "padded_per_real_token",
    "duplicate_tokens_saved",
    "recomputed",
    "texts_at_max_length",
    "effective_rank",
    "temperature",
    "epoch",
    "skipped_steps",
    "peak_megabytes",
    "tokens_per_second",
}


@pytest.fixture
def settings(tiny_model: Path, pairs: Path, tmp_path: Path) -> list[str]:
    where = [f"model.path={tiny_model}", f"data.train={pairs}"]
    return [f"output={tmp_path / 'run'}", *where, "train.learning_rate=0.001"]


def run(settings: list[str], *more: str, **options: Any) -> Trained:
    return finetune(load("tiny", [*settings, *more]), **options)


def log_of(trained: Trained) -> list[dict[str, Any]]:
    return read_log(trained.last.parent.parent / "run.jsonl")


def test_a_run_learns_and_leaves_what_it_says(settings: list[str]) -> None:
    trained = run(settings, "train.steps=30", "batch.size=16", "train.save_every=10")
    lines = log_of(trained)
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert all(line.keys() == KEYS for line in lines)
    losses = [line["loss"] for line in lines]
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    assert lines[2]["epoch"] == pytest.approx(1)  # 48 rows, 16 at a time
    assert trained.steps == 30 and trained.best == trained.last
    assert sorted(p.name for p in trained.last.parent.iterdir()) == [
        "step-00000020",
        "step-00000030",
    ]
    model = SentenceTransformer(str(trained.last / "model"), device="cpu")
    texts = [question(1), answer(1), answer(2)]
    ours = encode(trained.encoder, texts, "query")
    np.testing.assert_allclose(model.encode(texts), ours, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        ["loss.learn_temperature=true"],
        ["loss.matryoshka.dims=[32,8]"],
        ["loss.false_negatives.guide=MODEL", "loss.false_negatives.margin=0.1"],
        ["data.train=[PAIRS,OTHER]"],
        ["data.mined=MINED", "data.negatives_per_row=2"],
        ["data.mined=MINED", "loss.in_batch_negatives=false"],
        ["loss.directions=[query_to_document,document_to_query]", "batch.keep_tokens=0"],
        ["batch.micro_tokens=auto", "batch.keep_tokens=auto", "train.schedule=wsd"],
    ],
    ids=lambda options: (
        options[0].split("=")[0].split(".", 1)[1] + ("" if len(options) < 2 else "+")
    ),
)
def test_every_option_runs(
    settings: list[str], options: list[str], tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    other = write_lines(
        tmp_path / "other.jsonl",
        [{"query": f"the {NAMES[n]} live", "positive": answer(n)} for n in range(9)],
    )
    places = {"MODEL": tiny_model, "PAIRS": pairs, "OTHER": other, "MINED": tmp_path / "m.parquet"}
    write_mined(places["MINED"], settings)
    for name, path in places.items():
        options = [option.replace(name, str(path)) for option in options]
    trained = run(settings, *options)
    lines = log_of(trained)
    assert len(lines) == 4 and all(np.isfinite(line["loss"]) for line in lines)
    if "learn_temperature" in options[0]:
        log_t = np.log([line["temperature"] for line in lines])
        moved = np.abs(np.diff(log_t))  # Adam moves a scalar by about the rate in each step
        assert (moved[:2] > 0.2e-3).all() and (moved < 1.1e-3).all()
    if "guide" in options[0]:
        assert sum(line["masked_by_guide"] for line in lines) > 0


def write_mined(path: Path, settings: list[str]) -> None:
    """Each question with the answers to the next two questions as its negatives."""
    from tercet.train.rows import read_rows

    data = read_rows(load("tiny", settings).data)
    ids = data.documents.ids
    count = len(data)
    rows = {
        "query_id": data.queries.ids,
        "positive_ids": [[ids[n]] for n in range(count)],
        "negative_ids": [[ids[(n + 1) % count], ids[(n + 2) % count]] for n in range(count)],
    }
    pq.write_table(pa.table(rows), path)


def test_the_best_checkpoint_by_the_dev_metric_is_kept(settings: list[str]) -> None:
    scores = iter([0.1, 0.9, 0.5, 0.4])

    def evaluate(model: SentenceTransformer) -> dict[str, float]:
        return {"ndcg@10": next(scores)}

    trained = run(settings, "train.eval_every=1", "train.save_every=1", evaluate=evaluate)
    assert (trained.best.name, trained.metric) == ("step-00000002", 0.9)
    kept = sorted(p.name for p in trained.last.parent.iterdir())
    assert kept == ["step-00000002", "step-00000003", "step-00000004"]
    dev = [line["dev/ndcg@10"] for line in log_of(trained) if "dev/ndcg@10" in line]
    assert dev == [0.1, 0.9, 0.5, 0.4]


@pytest.mark.parametrize(("steps", "times"), [(4, 4), (19, 10), (21, 7)])
def test_a_run_is_evaluated_ten_times_at_most(settings: list[str], steps: int, times: int) -> None:
    trained = run(settings, f"train.steps={steps}", evaluate=lambda model: {"ndcg@10": 0.5})
    assert sum("dev/ndcg@10" in line for line in log_of(trained)) == times


def test_as_many_checkpoints_stay_as_asked(settings: list[str]) -> None:
    trained = run(settings, "train.steps=5", "train.save_every=1", "train.keep=3")
    assert sorted(p.name[-1] for p in trained.last.parent.iterdir()) == ["3", "4", "5"]


def test_a_metric_that_is_not_measured_is_named(settings: list[str]) -> None:
    with pytest.raises(UserError, match="evaluation.metric: no 'ndcg@10'; measured are recall"):
        run(settings, evaluate=lambda model: {"recall": 1.0})


# Refusals


def test_a_finished_run_is_not_overwritten_by_accident(settings: list[str]) -> None:
    trained = run(settings, "train.steps=1")
    model = trained.last.parent.parent / "model"
    (model.parent / "summary.json").write_text("{}")
    shutil.copytree(trained.last / "model", model)  # as the finetune stage exports it
    with pytest.raises(UserError, match="already holds a finished run"):
        run(settings, "train.steps=1")
    again = run(settings, "train.steps=2", "overwrite=true")
    assert not model.exists() and len(log_of(again)) == 2


def test_another_config_in_an_unfinished_run_is_refused(settings: list[str]) -> None:
    run(settings, "train.steps=1")
    changed = r"loss.temperature: was 0.05, now 0.1; train.steps: was 1, now 2\).*--allow-changed"
    with pytest.raises(UserError, match=rf"another config \({changed} loss.temperature"):
        run(settings, "train.steps=2", "loss.temperature=0.1")
    with pytest.raises(UserError, match=r"another config \(loss.temperature: was 0.05, now 0.1\)"):
        run(settings, "train.steps=2", "loss.temperature=0.1", allow_changed=["train"])
    with pytest.raises(UserError, match="nothing is called 'train.step'; did you mean 'train.step"):
        run(settings, allow_changed=["train.step"])
    allowed = ["train.steps", "loss"]
    trained = run(settings, "train.steps=2", "loss.temperature=0.1", allow_changed=allowed)
    assert [line["temperature"] for line in log_of(trained)] == pytest.approx([0.05, 0.1])


def test_other_rows_in_an_unfinished_run_are_refused(
    settings: list[str], pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copy(pairs, tmp_path / "copy.jsonl"))
    run(settings, f"data.train={copy}", "train.steps=1")
    lines = copy.read_text(encoding="utf-8").splitlines(keepends=True)
    copy.write_text("".join(lines[:-1]), encoding="utf-8")
    where = f"data.train={copy}"
    with pytest.raises(UserError, match="set of rows .*data.rows: was 48, now 47") as error:
        run(settings, where, "train.steps=2", allow_changed=["train.steps"])
    assert str(error.value).endswith("--allow-changed data")
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        both = r"precision and set of rows \(train.mixed_precision: was 'no', .*data.rows: was 48"
        with pytest.raises(UserError, match=both) as error:
            run(settings, where, "train.steps=2", allow_changed=["train.steps"])
    assert str(error.value).endswith("--allow-changed train.mixed_precision --allow-changed data")
    trained = run(settings, where, "train.steps=2", allow_changed=["train.steps", "data"])
    assert len(log_of(trained)) == 2
    copy.write_text("".join(lines[:-2]), encoding="utf-8")
    again = run(settings, where, "train.steps=2", "train.log_every=2", "overwrite=true")
    assert [line["step"] for line in log_of(again)] == [1, 2]  # begun again, not gone on with


def test_other_code_in_an_unfinished_run_is_refused(
    settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(settings, "train.steps=1")
    now = code_version() | {"torch": "1.0"}
    monkeypatch.setattr("tercet.train.resuming.code_version", lambda: now)
    with pytest.raises(UserError, match="code .*code.torch: was '.*', now '1.0'.*-changed code$"):
        run(settings, "train.steps=1")
    assert run(settings, "train.steps=1", allow_changed=["code"]).steps == 1


# What a run survives


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("train.steps=6", "train.save_every=2")
    trained = run(settings, *more)
    before = weights(trained.last)
    damaged = trained.last / "trainer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    capsys.readouterr()
    again = run(settings, *more)
    said = capsys.readouterr().err
    assert "step-00000006: skipped, trainer.safetensors is not what was written" in said
    assert "resuming after step 4 of 6" in said
    after = weights(again.last)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [line["step"] for line in log_of(again)] == [1, 2, 3, 4, 5, 6]


def poison(tiny_model: Path, folder: Path) -> Path:
    """A copy whose word "forest" has a NaN vector, so that only some batches are poisoned."""
    model = SentenceTransformer(str(tiny_model), device="cpu")
    word = model.tokenizer.convert_tokens_to_ids("forest")
    with torch.no_grad():
        words = next(p for n, p in model.named_parameters() if n.endswith("word_embeddings.weight"))
        words[word, 0] = torch.nan
    model.save(str(folder), create_model_card=False)
    return folder


def test_a_loss_that_is_not_finite_stops_the_run(
    settings: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    bad = poison(tiny_model, tmp_path / "bad")
    with pytest.raises(UserError, match="loss nan.*nothing was applied"):
        run(settings, f"model.path={bad}", "train.save_every=1")
    (report,) = (tmp_path / "run").glob("nonfinite-step-*.json")
    found = json.loads(report.read_text(encoding="utf-8"))
    assert len(found["ids"]) == 8 and found["loss"] == "nan"
    assert read_log(tmp_path / "run" / "run.jsonl")[-1]["loss"] == "nan"


def test_skipped_steps_are_counted_and_not_applied(
    settings: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    bad = poison(tiny_model, tmp_path / "bad")
    trained = run(settings, f"model.path={bad}", "train.on_nonfinite=skip", "train.steps=6")
    lines = log_of(trained)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    wrong = [line for line in lines if line["loss"] == "nan"]
    assert 0 < len(wrong) == lines[-1]["skipped_steps"] < 6
    found = weights(trained.last)
    holding = [name for name, value in found.items() if not torch.isfinite(value).all()]
    assert holding == [n for n in found if n.endswith("word_embeddings.weight")]  # as given
    assert int((~torch.isfinite(found[holding[0]])).sum()) == 1


def test_a_run_whose_every_step_was_skipped_resumes(
    settings: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    bad = poison(tiny_model, tmp_path / "bad")
    more = (f"model.path={bad}", "train.on_nonfinite=skip", "batch.size=48", "train.save_every=1")
    trained = run(settings, *more)
    shutil.rmtree(trained.last)
    assert run(settings, *more).last == trained.last


# Trackers


@pytest.fixture
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def wandb_history(path: Path) -> list[dict[str, Any]]:
    """What an offline W&B file logged. Its layout is LevelDB's log: blocks of 32 KiB, in them
    pieces of records behind headers of checksum (4 bytes), length (2) and kind (1)."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    data, at, whole, history = path.read_bytes(), 7, b"", []
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record, whole = Record.FromString(whole), b""
            items = record.history.item
            if items:
                history.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    return history


@pytest.mark.usefixtures("no_login")
def test_wandb_offline_holds_what_run_jsonl_holds(settings: list[str], tmp_path: Path) -> None:
    trained = run(settings, "tracking.wandb=true", "train.steps=2")
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 20
    while len(history := wandb_history(path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)  # wandb's own process closes the file after `finish` has returned
    assert [row.get("_step") for row in history] == [1, 2], [sorted(row) for row in history]
    for seen, line in zip(history, log_of(trained), strict=True):
        assert seen.keys() >= KEYS - {"step"}
        assert seen["_step"] == line["step"] and seen["loss"] == pytest.approx(line["loss"])


@pytest.mark.usefixtures("no_login")
def test_a_wandb_that_does_not_start_stops_nothing(
    settings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "no such mode")
    trained = run(settings, "tracking.wandb=true", "train.steps=1")
    assert len(log_of(trained)) == 1
    assert "Weights & Biases did not start" in capsys.readouterr().err
