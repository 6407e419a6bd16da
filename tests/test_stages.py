"""The stages one after the other on a small task, through the files they hand over."""

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from tercet import stages
from tercet.configs import ModelConfig, load
from tercet.data import RetrievalTask, Texts, write_task
from tercet.data.check import Report
from tercet.errors import UserError
from tercet.models import encode, load_encoder


def small_task(pairs: Path, folder: Path, split: str) -> Path:
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    queries = Texts([f"q{i}" for i in range(len(rows))], [row["query"] for row in rows])
    documents = Texts([f"d{i}" for i in range(len(rows))], [row["positive"] for row in rows])
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(len(rows))}
    write_task(RetrievalTask(folder.name, split, documents, queries, qrels), folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, pairs: Path) -> Path:
    """A run with mined negatives and a dev set, exported."""
    folder = tmp_path_factory.mktemp("run")
    dev = small_task(pairs, folder / "dev", "dev")
    common = [
        f"output={folder / 'run'}",
        f"data.train={pairs}",
        f"model.path={tiny_model}",
        "mining.relative_margin=null",
    ]
    mined = stages.mine(load("tiny", common))
    assert mined.counts.kept > 0
    model = stages.finetune(
        load(
            "tiny",
            [
                *common,
                f"data.mined={mined.path}",
                f"evaluation.dev={dev}",
                "train.steps=30",
                "train.eval_every=10",
                "train.learning_rate=0.01",
            ],
        )
    )
    assert model == folder / "run" / "model"
    return folder / "run"


def test_sentence_transformers_loads_the_export_and_agrees(finished: Path, pairs: Path) -> None:
    texts = [json.loads(line)["query"] for line in pairs.read_text().splitlines()]
    theirs = SentenceTransformer(str(finished / "model")).encode(texts)
    ours = encode(load_encoder(ModelConfig(path=str(finished / "model"))), texts, "query")
    assert np.abs(ours - theirs).max() <= 1e-6


def test_the_run_names_its_numbers(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["steps"] == 30
    assert summary["data"]["rows"] == 48 and summary["data"]["hard negatives"] > 0
    assert (finished / "checkpoints" / summary["checkpoint"]).is_dir()
    log = [json.loads(line) for line in (finished / "run.jsonl").read_text().splitlines()]
    dev = {line["step"]: line["dev/ndcg@10"] for line in log if "dev/ndcg@10" in line}
    assert set(dev) == {10, 20, 30}
    assert summary["dev"] == max(dev.values())
    assert summary["checkpoint"] == f"step-{max(dev, key=lambda s: (dev[s], -s)):08d}"


def test_the_card_holds_data_config_prompts_and_results(
    finished: Path, tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    test = small_task(pairs, tmp_path / "small", "test")
    results = stages.evaluate(
        str(finished / "model"),
        [test],
        tmp_path / "results",
        against=[str(tiny_model)],
        trained_on=[str(finished / "config.yaml")],
    )
    base, bm25, tuned = results
    assert tuned.leakage is not None  # its test is what it was trained on
    assert tuned.leakage.queries_by_hash == tuned.leakage.documents_by_hash == 48
    assert bm25.model == "BM25"
    assert tuned.means["ndcg@10"].mean > base.means["ndcg@10"].mean
    stages.export(str(finished), tmp_path / "out", results=[tmp_path / "results"])
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("library_name: sentence-transformers", "| rows | 48 |", "SentenceTransformer("):
        assert part in card
    for result in results:
        assert f"{result.means['ndcg@10'].mean:.3f}" in card
    assert "temperature: 0.05" in card
    assert str(tmp_path) not in card and str(finished) not in card


def test_a_run_is_not_mined_or_trained_over(finished: Path, tiny_model: Path, pairs: Path) -> None:
    again = load("tiny", [f"output={finished}", f"data.train={pairs}", f"model.path={tiny_model}"])
    with pytest.raises(UserError, match="overwrite=true"):
        stages.mine(again)
    with pytest.raises(UserError, match="already holds a finished run"):
        stages.finetune(again)


def test_an_export_that_is_not_the_checkpoint_is_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tercet.export.folder.TOLERANCE", -1.0)
    with pytest.raises(UserError, match="nothing was written"):
        stages.export(str(tiny_model), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_exporting_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        stages.export(str(tmp_path), tmp_path / "out")


def test_a_model_is_called_by_its_run() -> None:
    assert stages.name_of("runs/demo/model") == "demo"
    assert stages.name_of("embedded") == "all-MiniLM-L6-v2"
    assert stages.name_of("BAAI/bge-small-en-v1.5") == "bge-small-en-v1.5"


def test_checking_a_recipe_reads_what_it_trains_on(tiny_model: Path, pairs: Path) -> None:
    report = stages.check_data("tiny", [f"data.train={pairs}", f"model.path={tiny_model}"])
    assert isinstance(report, Report) and report.rows == 48
    assert report.lengths["queries"].max_length == 32  # the recipe's, not the model's


def test_data_is_checked_without_a_tokenizer_too(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tercet.models.load.EMBEDDED_PACKAGE", "absent_package")
    report = stages.check_data(str(pairs))
    assert isinstance(report, Report) and report.rows == 48 and report.lengths == {}
    said = capsys.readouterr().err.strip()
    assert said.startswith("token lengths are left out") and "\n" not in said
    assert "pip install 'tercet[demo]'" in said
