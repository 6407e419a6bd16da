"""MTEB itself: it gives the same numbers as ours, and reads what we write."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mteb", reason="needs MTEB: tercet[mteb]")

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

from tercet import stages
from tercet.configs import ModelConfig
from tercet.data import RetrievalTask, Texts, read_task, write_task
from tercet.errors import UserError
from tercet.evaluation import (
    METRICS,
    read_comparisons,
    read_result,
    read_run,
    result_files,
    result_path,
    run_of,
)
from tercet.evaluation.official import (
    as_mteb_task,
    by_mteb,
    disagreement,
    official_task,
    run_mteb,
    stored_encoder,
)
from tercet.evaluation.results import FORMAT
from tercet.files import write_json
from tercet.models import encode, load_encoder
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
    assert found.task is not None and found.found is not None
    theirs = run_of(found.task, found.found)
    assert ours.keys() == theirs.keys()
    for query, documents in theirs.items():
        assert ours[query] == pytest.approx(documents, abs=1e-5)


@pytest.mark.parametrize("skip_self", [False, True])
def test_an_official_task_gets_intervals_and_keeps_mtebs_numbers(
    folder: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    skip_self: bool,
) -> None:
    """A local task stands in for one of the hub: nothing is downloaded here."""
    local = as_mteb_task(read_task(folder), skip_self=skip_self)
    monkeypatch.setattr("tercet.stages.official.official_task", lambda _: local)
    bm25, result = stages.evaluate(str(tiny_model), [], tmp_path, official=["Animals"])
    how = stages.Search(skip_self=skip_self)
    lexical, plain = stages.evaluate(str(tiny_model), [folder], tmp_path / "plain", how=how)
    assert result.scores.keys() == {*METRICS}
    assert result.scores["ndcg@10"] == pytest.approx(plain.scores["ndcg@10"], abs=1e-6)
    assert bm25.model == "BM25" and bm25.scores == lexical.scores
    assert result.skip_self is bm25.skip_self is skip_self
    mean = result.means["ndcg@10"]
    assert mean.low < mean.mean < mean.high
    path = tmp_path / result.model / "animals.test.json"
    written = json.loads(path.read_text())
    assert written["mteb_version"] and written["dataset_revision"] == "local"
    (row,) = written["scores"]["test"]
    assert row["main_score"] == pytest.approx(mean.mean, abs=1e-5)
    assert {"ndcg_at_1000", "nauc_ndcg_at_10_max"} <= row.keys()
    assert result.by_mteb is not None and len(result.by_mteb) == len(METRICS)
    assert disagreement(result)[0] <= 1e-5 and "trec_eval" not in capsys.readouterr().err
    assert read_result(path).means == result.means
    run = read_run(path.with_suffix(".run"))
    assert any(query in documents for query, documents in run.items()) is not skip_self
    (found,) = read_comparisons(tmp_path)
    assert (found.task, found.model, found.base) == ("animals", result.model, "BM25")


def test_other_rows_stand_beside_an_official_task(
    folder: Path,
    tiny_model: Path,
    judge: Path,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    local = as_mteb_task(read_task(folder))
    monkeypatch.setattr("tercet.stages.official.official_task", lambda _: local)
    other = shutil.copytree(tiny_model, tmp_path / "other")
    results = stages.evaluate(
        str(tiny_model),
        [],
        tmp_path / "out",
        against=[str(other)],
        official=["Animals"],
        how=stages.Search(depth=20, rerank=str(judge), rerank_depth=10),
        trained_on=[str(pairs)],
    )
    name = tiny_model.parent.name
    assert [r.model for r in results] == ["other", "BM25", name, f"{name} + {judge.parent.name}"]
    for_one, _, plain, second = results
    assert for_one.scores == plain.scores and for_one.leakage is None
    assert plain.leakage is not None and plain.leakage.queries_by_hash == len(NAMES)
    assert second.counts["reranked"] == 10 and second.means.keys() == plain.means.keys()
    assert second.means["recall@10"].mean == plain.means["recall@10"].mean
    assert second.mteb is None and second.leakage == plain.leakage
    assert "--split, --depth and --skip-self are for --data" in capsys.readouterr().err


def several(folder: Path) -> AbsTaskRetrieval:
    """Two subsets of the task in `folder`, each with two splits of half of the queries."""
    task = as_mteb_task(read_task(folder))
    task.load_data()
    whole = task.dataset["default"]["test"]
    ids = sorted(whole["relevant_docs"])

    def part(first: int) -> Any:
        kept = {query: whole["relevant_docs"][query] for query in ids[first::4]}
        return {**whole, "relevant_docs": kept}

    names, splits = ("eng", "deu"), ("dev", "test")
    task.dataset = {
        name: {split: part(2 * n + m) for m, split in enumerate(splits)}
        for n, name in enumerate(names)
    }
    langs = {"eng": ["eng-Latn"], "deu": ["deu-Latn"]}
    task.metadata = task.metadata.model_copy(update={"eval_splits": [*splits], "eval_langs": langs})
    task.hf_subsets = [*names]
    task.load_data = lambda **_: None  # type: ignore[method-assign]  # it is there
    return task


def test_subsets_and_splits_are_results_of_their_own(
    folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = several(folder)
    monkeypatch.setattr("tercet.stages.official.official_task", lambda _: task)
    results = stages.evaluate(str(tiny_model), [], tmp_path, official=["Animals"])
    ours = [result for result in results if result.model != "BM25"]
    assert {(result.task, result.split) for result in ours} == {
        (f"animals.{name}", split) for name in ("eng", "deu") for split in ("dev", "test")
    }
    assert sum(result.counts["queries"] for result in ours) == len(NAMES)
    plain = stages.evaluate(str(tiny_model), [folder], tmp_path / "plain")[-1]
    for result in ours:
        for query, score in result.scores["ndcg@10"].items():
            assert score == pytest.approx(plain.scores["ndcg@10"][query], abs=1e-6)
        assert result.languages == (f"{result.task.removeprefix('animals.')}-Latn",)
        assert read_result(result_path(result, tmp_path)).means == result.means


@pytest.mark.parametrize("part", ["animals.eng.dev", "animals.deu.test"])
def test_an_official_task_does_not_replace_what_others_wrote(
    folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    task = several(folder)
    monkeypatch.setattr("tercet.stages.official.official_task", lambda _: task)
    newer = {"task_name": "animals", "tercet": {"format": FORMAT + 1}}
    for place, content, said in (
        (f"{tiny_model.parent.name}/{part}.json", newer, "written by a newer version of tercet"),
        (f"BM25/{part}.json", {"mine": 1}, "not a result of `tercet evaluate`"),
        (f"{tiny_model.parent.name}/{part}.mteb.json", [1], "not a result of `tercet evaluate --"),
    ):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        write_json(tmp_path / "out" / place, content)
        with pytest.raises(UserError, match=f"^--out: .*{re.escape(part)}.*{said}"):
            stages.evaluate(str(tiny_model), [], tmp_path / "out", official=["Animals"])
        assert json.loads((tmp_path / "out" / place).read_text()) == content
        assert [f.name for f in (tmp_path / "out").rglob("*") if f.is_file()] == [Path(place).name]


class Likeness(AbsTaskSTS):
    """A task that is no retrieval."""

    metadata = TaskMetadata(
        name="Likeness",
        description="pairs",
        dataset={"path": "likeness", "revision": "local"},
        type="STS",
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="cosine_spearman",
    )

    def load_data(self, *_: Any, **__: Any) -> None:
        rows = {
            "sentence1": [answer(n) for n in range(12)],
            "sentence2": [answer(n * 3 % 40) for n in range(12)],
            "score": [float(n % 4) for n in range(12)],
        }
        self.dataset = {"default": DatasetDict({"test": Dataset.from_dict(rows)})}
        self.data_loaded = True


def test_what_is_no_retrieval_is_written_as_mteb_says_it(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tercet.stages.official.official_task", lambda _: Likeness())
    for _ in range(2):  # its own file is replaced
        assert stages.evaluate(str(tiny_model), [], tmp_path, official=["Likeness"]) == []
    path = tmp_path / tiny_model.parent.name / "Likeness.test.mteb.json"
    written = json.loads(path.read_text())
    assert written["task_name"] == "Likeness" and written["mteb_version"]
    (row,) = written["scores"]["test"]
    assert row["main_score"] == row["cosine_spearman"]
    assert f"Likeness (test): {row['main_score']}, by mteb alone: " in capsys.readouterr().err
    assert result_files(tmp_path) == []


def test_our_numbers_are_checked_by_mteb(
    run: Run, folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("evaluate", tiny_model, "--data", folder, "--skip-self", "--check-with-mteb")
    prompts = ("--query-prompt", "city: ", "--document-prompt", "the river ")
    status, out, err = run(*words, *prompts)
    assert status == 0, err
    path = tmp_path / "results" / tiny_model.parent.name / "animals.test.json"
    found = read_result(path)
    assert found.by_mteb is not None and {"ndcg@10", "map", "mrr@10"} < found.by_mteb.keys()
    assert disagreement(found)[0] <= 1e-5
    assert f"animals: ndcg@10 {found.means['ndcg@10'].mean:.5f} here, " in err
    assert f"{len(found.by_mteb)} metrics differ by at most" in err

    def worse(*given: Any) -> dict[str, float]:
        return {metric: mean - 2e-5 for metric, mean in by_mteb(*given).items()}

    monkeypatch.setattr("tercet.stages.official.by_mteb", worse)
    path.unlink()
    status, _, err = run(*words)
    assert status == 2 and "by mteb; all is written" in err and path.exists()
    assert (tmp_path / "results" / "comparisons.json").exists()


def test_the_check_leaves_out_what_mteb_cuts_short(
    run: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer at place 1,000 behind the query's own document; one document is empty."""
    model, asked = load_encoder(ModelConfig(path=str(tiny_model))), question(0)
    shown = [asked, "", *(f"{answer(n % 48)} {NAMES[n // 48]} {n}" for n in range(1_060))]
    ids = ["own", "empty", *(f"d{n}" for n in range(1_060))]
    scores = encode(model, shown, "document") @ encode(model, [asked], "query")[0]
    order = [ids[place] for place in np.argsort(-scores) if ids[place] != "own"]
    task = RetrievalTask(
        "many", "test", Texts(ids, shown), Texts(["own"], [asked]), {"own": {order[999]: 1}}
    )
    write_task(task, tmp_path / "many")
    rows: list[Any] = []

    def noted(row: Any, *given: Any) -> dict[str, float]:
        rows.append(row)
        return by_mteb(row, *given)

    monkeypatch.setattr("tercet.stages.official.by_mteb", noted)
    words = ("--data", tmp_path / "many", "--skip-self", "--check-with-mteb")
    status, _, err = run("evaluate", tiny_model, *words)
    assert status == 0 and "1 documents without title and text are kept" in err, err
    found = read_result(tmp_path / "results" / tiny_model.parent.name / "many.test.json")
    assert found.means["recall@1000"].mean == 1 and rows[0]["recall_at_1000"] == 0
    assert found.by_mteb is not None and "recall@100" in found.by_mteb
    assert found.means.keys() - found.by_mteb.keys() == {"recall@1000", "map"}


def test_an_unknown_task_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match="MTEB has no task 'nfcorpuss'; did you mean 'NFCorpus'"):
        official_task("nfcorpuss")


def test_data_that_cannot_be_had_is_one_line(run: Run, tiny_model: Path) -> None:
    status, _, err = run("evaluate", tiny_model, "--mteb", "NFCorpus")
    assert status == 2 and err.splitlines()[-1].startswith("error: --mteb NFCorpus: mteb cannot")


@pytest.mark.parametrize("error", [ImportError("pip install mteb[x]"), IndexError("no rows")])
def test_what_mteb_lacks_is_one_line(
    run: Run, folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    task = as_mteb_task(read_task(folder))

    def fail(*_: Any, **__: Any) -> None:
        raise error

    task.load_data = fail  # type: ignore[method-assign]
    monkeypatch.setattr("tercet.stages.official.official_task", lambda _: task)
    status, _, err = run("evaluate", tiny_model, "--mteb", "Animals")
    assert status == 2
    assert err.splitlines()[-1] == f"error: --mteb animals: mteb cannot run it: {error}"
