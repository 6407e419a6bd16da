"""Negatives mined again inside a run: the same after kill -9 and on two processes."""

import json
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tercet import stages
from tercet.configs import Config, ModelConfig, load
from tercet.data import text_hash, with_mined
from tercet.errors import SAVED, Stopped, UserError
from tercet.models import encode, load_encoder
from tercet.stages.mining import remine_stage
from tercet.train import finetune
from tercet.train.precision import own_forward
from tercet.train.rows import batches_of, read_rows
from tercet.train.tracking import read_log
from tests.conftest import answer, question, write_lines, write_task
from tests.workers.launch import ROOT, run_jobs

EVERY, STEPS = 3, 8
LAST = f"checkpoints/step-{STEPS:08d}"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def settings(tiny_model: Path, pairs: Path) -> list[str]:
    where = [f"model.path={tiny_model}", f"data.train={pairs}", "batch.size=8"]
    mining = [f"mining.refresh_every={EVERY}", "mining.negatives=3", "mining.relative_margin=null"]
    steps = [f"train.steps={STEPS}", "train.save_every=2", "train.keep=9"]  # of all rounds
    return [*where, *mining, *steps, "train.learning_rate=0.003"]


def rounds(run: Path) -> list[list[dict[str, Any]]]:
    return [
        pq.read_table(run / f"mined/step-{step:08d}/mined.parquet").to_pylist()
        for step in range(0, STEPS, EVERY)
    ]


def test_each_round_mines_the_queries_of_its_steps_with_the_weights_of_then(
    settings: list[str], tmp_path: Path
) -> None:
    config = load("tiny", [*settings, f"output={tmp_path / 'run'}"])
    stages.finetune(config)
    found = rounds(tmp_path / "run")
    rows = read_rows(config.data)
    order = batches_of(config, rows)
    for number, mined in enumerate(found):
        steps = range(number * EVERY, min((number + 1) * EVERY, STEPS))
        asked = {rows.queries.ids[q] for step in steps for q in rows.row_query[order(step).rows]}
        assert {row["query_id"] for row in mined} == asked
        assert {row["round"] for row in mined} == {number}
        assert all(len(row["negative_ids"]) == 3 for row in mined)
        assert not any(set(row["negative_ids"]) & set(row["positive_ids"]) for row in mined)
    assert len({mined[0]["miner"] for mined in found}) == 3  # the weights moved in between
    assert {p.name for p in (tmp_path / "run" / "mined" / "cache").iterdir()} <= {"pairs"}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["data"]["hard negatives"] > 0


def test_killed_runs_and_two_processes_end_alike(settings: list[str], tmp_path: Path) -> None:
    """Killed in step 5: the checkpoint of step 4 names the set of step 3, and goes on with it."""
    more = ["train.dropout=0.2"]
    plain = ["train.dropout=0.0"]

    def job(name: str, world: int, options: list[str], kill: int | None = None) -> dict[str, Any]:
        return {
            "world": world,
            "recipe": str(ROOT / "configs" / "tiny.yaml"),
            "set": [f"output={tmp_path / name}", *settings, *options],
            "kill_after": kill,
            "remine": True,
        }

    jobs = [
        job("whole", 1, more),
        job("killed", 1, more, kill=5),
        job("killed", 1, more),
        job("one", 1, plain),
        job("two", 2, plain),
    ]
    run_jobs(jobs, tmp_path)
    weights = {
        name: load_file(tmp_path / name / LAST / "model" / "model.safetensors")
        for name in ("whole", "killed")
    }
    assert all((weights["whole"][k] == weights["killed"][k]).all() for k in weights["whole"])
    assert rounds(tmp_path / "whole") == rounds(tmp_path / "killed")
    one, two = (read_log(tmp_path / name / "run.jsonl") for name in ("one", "two"))
    assert [a["loss"] for a in one] == pytest.approx([b["loss"] for b in two], abs=1e-5)
    state = json.loads((tmp_path / "whole" / LAST / "state.json").read_text(encoding="utf-8"))
    assert state["mined"]["file"] == "mined/step-00000006/mined.parquet"


def test_a_signal_to_one_process_is_heard_before_a_round(
    settings: list[str], tmp_path: Path
) -> None:
    """It comes when the last step before the round has met: the next meeting is the round's."""
    fault = {"kind": "signal", "step": EVERY - 1, "at": 1, "number": signal.SIGTERM}
    job = {
        "world": 2,
        "recipe": str(ROOT / "configs" / "tiny.yaml"),
        "set": [f"output={tmp_path / 'run'}", *settings],
        "said": str(tmp_path / "said."),
        "fault": fault,
        "command": True,
        "may_fail": True,
    }
    assert run_jobs([job], tmp_path) == [[SAVED, SAVED]]
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000002", "step-00000003"]
    mined = [path.parent.name for path in (tmp_path / "run").glob("mined/step-*/mined.parquet")]
    assert mined == ["step-00000000"]
    assert f"stopped as asked after step {EVERY} of {STEPS}" in (tmp_path / "said.0").read_text()


def test_a_signal_before_the_first_round_is_heard_before_it(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tercet.train import finetune, loop

    monkeypatch.setattr(loop, "politely", lambda: nullcontext(lambda: True))
    config = load("tiny", [*settings, f"output={tmp_path}"])
    with pytest.raises(Stopped, match="as asked before the first step; run the same") as stop:
        finetune(config, remine=lambda *_: pytest.fail("mined"))
    assert stop.value.status == SAVED and not (tmp_path / "mined").exists()


def test_a_round_that_is_killed_or_interrupted_is_mined_again(
    settings: list[str], tmp_path: Path
) -> None:
    """Inside the second round: a kill loses no step, a signal is heard in the step after it."""

    def job(name: str, world: int = 1, **fault: Any) -> dict[str, Any]:
        within = {"kind": "inside", "call": 1} | fault if fault else None
        return {
            "name": name,
            "world": world,
            "recipe": str(ROOT / "configs" / "tiny.yaml"),
            "set": [f"output={tmp_path / name}", *settings, "train.save_every=8"],
            "remine": True,
            "fault": within,
            "command": bool(fault),
            "may_fail": bool(fault),
            "said": str(tmp_path / f"{name}{'.' if fault else '+'}"),
        }

    faults = {
        "killed-encoding": {"place": "encoding"},
        "killed-mining": {"place": "mining"},
        "told": {"place": "mining", "number": signal.SIGTERM},
        "told-two": {"place": "mining", "number": signal.SIGTERM, "at": 1, "world": 2},
    }
    jobs = [job("whole"), job("whole-two", 2)]
    for name, fault in faults.items():
        jobs += [job(name, **fault), job(name, world=fault.get("world", 1))]
    ends = run_jobs(jobs, tmp_path)
    assert ends[2::2] == [[-signal.SIGKILL], [-signal.SIGKILL], [SAVED], [SAVED, SAVED]]
    assert not any(any(ranks) for ranks in [*ends[:2], *ends[3::2]])
    for name in faults:
        said = (tmp_path / f"{name}+0").read_text()
        assert f"resuming after step {EVERY + ('told' in name)} of" in said, said
        a, b = (
            load_file(tmp_path / n / LAST / "model" / "model.safetensors")
            for n in ("whole-two" if "two" in name else "whole", name)
        )
        assert all((a[key] == b[key]).all() for key in a), name


def test_a_checkpoint_needs_the_set_it_was_trained_on(settings: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"

    def interrupt(*_: Any) -> dict[str, float]:
        raise KeyboardInterrupt

    config = load("tiny", [*settings, f"output={out}", "train.save_every=1", "train.eval_every=5"])
    with pytest.raises(KeyboardInterrupt):
        finetune(config, evaluate=interrupt, remine=remine_stage(config))
    mined = out / "mined/step-00000003/mined.parquet"
    mined.write_bytes(mined.read_bytes()[:-1])
    with pytest.raises(UserError, match="missing or changed, and the checkpoint of step 5"):
        finetune(config, remine=remine_stage(config))


def test_rounds_that_no_checkpoint_names_go(settings: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    stages.finetune(load("tiny", [*settings, f"output={out}", "train.keep=1"]))
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{STEPS:08d}"]
    left = sorted(path.parent.name for path in (out / "mined").glob("step-*/mined.parquet"))
    assert left == ["step-00000006"]
    assert len(list((out / "mined").glob("step-*/mining.json"))) == 3


def test_overwriting_a_run_removes_its_rounds(settings: list[str], tmp_path: Path) -> None:
    plain = load("tiny", [*settings, f"output={tmp_path}", "mining.refresh_every=null"])
    stages.finetune(load("tiny", [*settings, f"output={tmp_path}"]))
    assert (tmp_path / "mined").exists()
    stages.finetune(plain.model_copy(update={"overwrite": True}))
    assert not (tmp_path / "mined").exists()


def test_what_is_mined_with_and_around_has_to_stay(
    settings: list[str], tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    """The same paths with other contents are other negatives in the rounds to come."""
    miner = Path(shutil.copytree(tiny_model, tmp_path / "miner"))
    held = write_task(tmp_path / "held", "test")
    judged = held / "qrels" / "test.tsv"
    judged.write_text("".join(judged.open().readlines()[:4]))
    known = Path(shutil.copy(pairs, tmp_path / "known.jsonl"))
    named = [f"mining.sources=[model,{miner}]", f"mining.known={known}", f"data.held_out=[{held}]"]
    words = [*settings, *named, f"output={tmp_path / 'run'}"]

    def go(steps: int) -> int:
        config = load("tiny", [*words, f"train.steps={steps}", "mining.refresh_every=2"])
        return finetune(config, remine=remine_stage(config), allow_changed=["train.steps"]).steps

    go(1)
    for path, changed in {
        known: "mining.known",
        judged: "data.held_out",
        miner / "config.json": "models.mining.sources",
    }.items():
        before = path.read_text()
        path.write_text(before + "\n" if path.suffix == ".json" else cut(before))
        with pytest.raises(UserError, match=rf"{changed}: was \['\w+'\], now \['\w+'\]"):
            go(3)
        path.write_text(before)
    assert go(3) == 3


def test_ids_and_what_other_splits_know_have_to_stay(settings: list[str], tmp_path: Path) -> None:
    """No batch depends on either, the negatives of later rounds do."""
    data, held = write_task(tmp_path / "data", "train"), write_task(tmp_path / "held", "test")
    other = "query-id\tcorpus-id\tscore\nq1\td0\t1\n"
    for folder in (data, held):
        (folder / "qrels" / "dev.tsv").write_text(other)
    words = [*settings, f"data.train={data}", f"data.held_out=[{held}]", "mining.refresh_every=2"]

    def go(steps: int) -> int:
        config = load("tiny", [*words, f"output={tmp_path / 'run'}", f"train.steps={steps}"])
        return finetune(config, remine=remine_stage(config), allow_changed=["train.steps"]).steps

    go(1)
    judged, held_too = data / "qrels" / "dev.tsv", held / "qrels" / "dev.tsv"
    renamed = [data / "corpus.jsonl", data / "qrels" / "train.tsv"]
    for key, paths, was, now in (
        ("data.train", [judged], "d0", "d2"),
        ("data.train", renamed, "d40", "x40"),
        ("mining.held_out", [held_too], "d0", "d2"),
    ):
        before = {path: path.read_text() for path in paths}
        for path, text in before.items():
            path.write_text(text.replace(was, now))
        with pytest.raises(UserError, match=rf"{key}: was \["):
            go(3)
        for path, text in before.items():
            path.write_text(text)
    assert go(3) == 3


def test_steps_that_are_added_within_a_round_are_mined_for(
    settings: list[str], tmp_path: Path
) -> None:
    """The round of step 6 was for 6 and 7; on to 12, step 8 comes before the round of 9."""
    folder = tmp_path / "run"

    def go(steps: int) -> Config:
        config = load("tiny", [*settings, f"output={folder}", f"train.steps={steps}"])
        finetune(config, remine=remine_stage(config), allow_changed=["train.steps"])
        return config

    go(STEPS)
    config = go(12)
    found = sorted(path.parent.name for path in folder.glob("mined/*/mined.parquet"))
    assert found == [f"step-{step:08d}" for step in (0, 3, 6, 8, 9)]
    rows = read_rows(config.data)
    order = batches_of(config, rows)
    asked = {rows.queries.ids[q] for q in rows.row_query[order(8).rows]}
    added = pq.read_table(folder / "mined/step-00000008/mined.parquet").to_pylist()
    assert {row["query_id"] for row in added} == asked
    named = json.loads((folder / "checkpoints/step-00000012/state.json").read_text())["mined"]
    assert (named["file"], named["until"]) == ("mined/step-00000009/mined.parquet", 12)
    go(12)  # nothing is added, and nothing mined
    assert sorted(path.parent.name for path in folder.glob("mined/*/mined.parquet")) == found


def cut(text: str) -> str:
    return "".join(text.splitlines(keepends=True)[:-1])


def test_a_run_that_mines_cannot_drop_rows(settings: list[str], tmp_path: Path) -> None:
    config = load("tiny", [*settings, f"output={tmp_path}", "mining.too_few=drop"])
    with pytest.raises(UserError, match="too_few: drop would change the order"):
        stages.finetune(config)


def test_a_round_sees_what_mining_sees_and_uses_every_opinion(
    settings: list[str], tiny_model: Path, judge: Path, tmp_path: Path
) -> None:
    """No text of data.corpus and no answer of the dev set; BM25 and a judge take part."""
    dev, corpus = tmp_path / "dev", tmp_path / "corpus.txt"
    (dev / "qrels").mkdir(parents=True)
    write_lines(dev / "corpus.jsonl", [{"_id": "x", "text": f" {answer(5).upper()}"}])
    write_lines(dev / "queries.jsonl", [{"_id": "y", "text": "who?"}])
    (dev / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\ny\tx\t1\n")
    corpus.write_text("".join(f"another {answer(n)}\n" for n in range(40)))
    some = write_lines(
        tmp_path / "some.jsonl",
        ({"query": question(n), "positive": answer(n)} for n in range(5)),
    )
    more = write_lines(  # whose documents are candidates for the first ones
        tmp_path / "more.jsonl",
        ({"query": f"which {question(n)}", "positive": answer(n)} for n in range(6, 48)),
    )
    held = write_lines(  # answers the dev set, and is no positive: a curated negative
        tmp_path / "held.jsonl",
        [{"query": "a", "positive": answer(6), "negative": answer(5)}],
    )
    sources = f"[{some}, {more}, {{path: {held}, columns: {{negative: negative}}}}]"
    config = load(
        "tiny",
        [
            *settings,
            f"output={tmp_path / 'run'}",
            f"data.train={sources}",
            f"data.corpus=[{corpus}]",
            f"evaluation.dev={dev}",
            "mining.sources=[model,bm25]",
            "mining.depth=60",
            f"mining.rescore.model={judge}",
            "mining.rescore.depth=50",
            "mining.rescore.relabel=true",
            "mining.rescore.relabel_above=0.6",
        ],
    )
    rows = read_rows(config.data)
    assert rows.extra == 40 and len(rows.documents) == 48 + 40
    remine = remine_stage(config)
    assert remine is not None
    out = tmp_path / "run" / "mined" / "step-00000000" / "mined.parquet"
    encoder = load_encoder(config.model)
    for number, queries in enumerate((np.arange(0, 5), np.arange(3, 40))):
        remine(encoder, rows, queries, out, number)
        mined = pq.read_table(out).to_pylist()
        assert [row["query_id"] for row in mined] == [rows.queries.ids[q] for q in queries]
        seen = {id_ for row in mined for id_ in row["negative_ids"] + row["relabelled_ids"]}
        allowed = set(rows.documents.ids[:48]) - {text_hash(answer(5))}
        assert seen and seen <= allowed
        assert any(row["relabelled_ids"] for row in mined)
        assert all(row["negative_rescores"] is not None for row in mined)
        taken = with_mined(rows, out, some=True)
        assert len(taken.documents) == 88 and len(taken.positives.values) > len(rows)
    found = json.loads(out.with_name("mining.json").read_text(encoding="utf-8"))
    assert found["held_out"]["marked"] == 1 and found["documents"] == 47
    assert found["provenance"]["models"]["model"]["path"] == str(tiny_model)
    assert out.with_name("mining.html").exists()


def test_mining_computes_in_the_weights_own_precision(tiny_model: Path) -> None:
    """Accelerate puts autocast round the forward of the very model that is trained."""
    texts = [answer(n) for n in range(8)]
    plain = encode(load_encoder(ModelConfig(path=str(tiny_model))), texts, "document")
    encoder = load_encoder(ModelConfig(path=str(tiny_model)))
    try:
        AcceleratorState._reset_state()
        accelerator = Accelerator(mixed_precision="bf16", cpu=True)
        assert accelerator.prepare_model(encoder) is encoder
    finally:
        AcceleratorState._reset_state()
    rounded = encode(encoder, texts, "document")
    assert np.abs(rounded - plain).max() > 1e-4
    with own_forward(encoder):
        np.testing.assert_array_equal(encode(encoder, texts, "document"), plain)
    np.testing.assert_array_equal(encode(encoder, texts, "document"), rounded)
