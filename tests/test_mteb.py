"""MTEB itself: it gives the same numbers as ours, and reads what we write."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mteb", reason="needs MTEB: tercet[mteb]")

from tercet import stages
from tercet.configs import ModelConfig
from tercet.data import RetrievalTask, Texts, read_task, write_task
from tercet.errors import UserError
from tercet.evaluation import read_result
from tercet.evaluation.official import as_mteb_task, official_task, run_mteb, stored_encoder
from tercet.models import load_encoder
from tests.conftest import NAMES, Run, answer, question

SHARED = ("ndcg_at_1", "ndcg_at_10", "ndcg_at_100", "recall_at_10", "recall_at_100")
MORE = ("precision_at_1", "precision_at_10", "mrr_at_10", "hit_rate_at_10")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graded judgements; every query has a document of its own id, which answers nothing."""
    generator = np.random.default_rng(0)
    numbers = range(len(NAMES))
    qrels = {}
    for n in numbers:
        judged = generator.choice([m for m in numbers if m != n], 6, replace=False)
        qrels[f"x{n}"] = {f"x{m}": int(generator.integers(0, 4)) for m in judged} | {
            f"x{(n + 1) % len(NAMES)}": 2
        }
    task = RetrievalTask(
        "animals",
        "test",
        Texts([f"x{n}" for n in numbers], [answer(n) for n in numbers]),
        Texts([f"x{n}" for n in numbers], [question(n) for n in numbers]),
        qrels,
    )
    path = tmp_path_factory.mktemp("mteb") / "animals"
    write_task(task, path)
    return path


@pytest.mark.parametrize("skip_self", [False, True])
def test_our_numbers_are_mtebs(
    folder: Path, tiny_model: Path, tmp_path: Path, skip_self: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    how = stages.Search(skip_self=skip_self)
    result = stages.evaluate(str(tiny_model), [folder], tmp_path, how=how)[-1]
    task = as_mteb_task(read_task(folder), skip_self=skip_self)
    (found,) = run_mteb(SentenceTransformer(str(tiny_model), device="cpu"), task)
    assert found.name == "animals" and found.split == "test"
    for name in (*SHARED, *MORE):
        ours = result.means[name.replace("_at_", "@")].mean
        assert ours == pytest.approx(found.row[name], abs=1e-5), name
    assert result.means["map"].mean == pytest.approx(found.row["map_at_1000"], abs=1e-5)
    assert found.row["main_score"] == found.row["ndcg_at_10"]


def test_mteb_reads_our_file(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    from mteb.results import TaskResult

    result = stages.evaluate(str(tiny_model), [folder], tmp_path)[-1]
    path = tmp_path / result.model / "animals.test.json"
    read = TaskResult.from_disk(path)
    assert read.task_name == "animals"
    assert read.get_score() == pytest.approx(result.means["ndcg@10"].mean)


def test_the_predictions_are_those_mteb_writes(
    folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    how = stages.Search(predictions=True)
    result = stages.evaluate(str(tiny_model), [folder], tmp_path, how=how)[-1]
    written = json.loads(
        (tmp_path / result.model / "animals.test_predictions.json").read_text(encoding="utf-8")
    )
    encoder = load_encoder(ModelConfig(path=str(tiny_model)))
    (found,) = run_mteb(stored_encoder(encoder), as_mteb_task(read_task(folder)))
    assert written.keys() == {"mteb_model_meta", "default"}
    ours = written["default"]["test"]
    assert ours.keys() == found.run.keys()
    for query, documents in found.run.items():
        assert ours[query] == pytest.approx(documents, abs=1e-5)


def test_an_official_task_gets_intervals_and_keeps_mtebs_numbers(
    folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local task stands in for one of the hub: nothing is downloaded here."""
    local = as_mteb_task(read_task(folder))
    monkeypatch.setattr("tercet.stages.official.official_task", lambda _: local)
    (result,) = stages.evaluate(str(tiny_model), [], tmp_path, official=["Animals"])
    plain = stages.evaluate(str(tiny_model), [folder], tmp_path / "plain")[-1]
    assert result.scores.keys() >= {"ndcg@10", "map"}
    assert result.scores["ndcg@10"] == pytest.approx(plain.scores["ndcg@10"], abs=1e-6)
    mean = result.means["ndcg@10"]
    assert mean.low < mean.mean < mean.high
    path = tmp_path / result.model / "animals.test.json"
    written = json.loads(path.read_text())
    assert written["mteb_version"] and written["dataset_revision"] == "local"
    (row,) = written["scores"]["test"]
    assert row["main_score"] == pytest.approx(mean.mean, abs=1e-5)
    assert {"ndcg_at_1000", "nauc_ndcg_at_10_max"} <= row.keys()
    assert read_result(path).means == result.means
    assert path.with_suffix(".run").exists()


def test_an_unknown_task_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match="MTEB has no task 'nfcorpuss'; did you mean 'NFCorpus'"):
        official_task("nfcorpuss")


def test_data_that_cannot_be_had_is_one_line(run: Run, tiny_model: Path) -> None:
    status, _, err = run("evaluate", tiny_model, "--mteb", "NFCorpus")
    assert status == 2 and err.splitlines()[-1].startswith("error: --mteb NFCorpus: mteb cannot")
