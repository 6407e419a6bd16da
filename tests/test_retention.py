"""`tercet retention`, and the programs behind docs/distillation.md: splits without leaks, and
tables that add up."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import distillation, distillation_tables
from benchmarks.collections import kept_json, write_halves, write_with_dev
from benchmarks.distillation import CODE
from tercet.configs import ModelConfig
from tercet.data import read_task
from tercet.evaluation.retention import TEACHER, Variant, retention, score, summary
from tercet.models import encode, load_encoder
from tercet.models.layers import keep_layers
from tercet.report import fill_marked
from tercet.report.retention import retention_note, retention_plot, retention_table
from tests.conftest import NAMES, Run, answer, question, write_lines

pytestmark = pytest.mark.usefixtures("one_thread")
TESTED = range(36, 48)


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """Animals, the first 36 for training; each also answers the question before its own."""
    folder = tmp_path / "animals"
    (folder / "qrels").mkdir(parents=True)
    count = range(len(NAMES))
    write_lines(folder / "corpus.jsonl", ({"_id": f"d{n}", "text": answer(n)} for n in count))
    write_lines(folder / "queries.jsonl", ({"_id": f"q{n}", "text": question(n)} for n in count))
    pairs = [(n, d) for n in range(36) for d in (n, n + 1 if n % 3 == 0 else n)]
    splits = {"train": dict.fromkeys(pairs), "test": dict.fromkeys((n, n) for n in TESTED)}
    for split, rows in splits.items():
        lines = "".join(f"q{n}\td{d}\t1\n" for n, d in rows)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    return folder


def answers(folder: Path, split: str) -> set[str]:
    return {d for judged in read_task(folder, split).qrels.values() for d in judged}


def test_no_answer_is_in_two_parts(beir: Path, tmp_path: Path) -> None:
    write_with_dev(beir, tmp_path / "split")
    parts = {split: read_task(tmp_path / "split", split) for split in ("train", "dev", "test")}
    sides = [answers(tmp_path / "split", split) for split in parts]
    assert not sides[0] & sides[1] and all(sides)
    assert parts["test"].qrels == read_task(beir).qrels
    assert len(parts["train"].queries) > len(parts["dev"].queries) > 0
    assert parts["train"].documents == read_task(beir).documents
    write_halves(beir, tmp_path / "half", documents=(3, 100))
    choose, report = (read_task(tmp_path / f"half-{part}") for part in ("choose", "report"))
    assert not set(choose.queries.ids) & set(report.queries.ids)
    assert (len(choose.queries), len(choose.documents)) == (6, 9)
    assert (len(report.queries), len(report.documents)) == (6, 48)


def test_a_result_is_computed_once(tmp_path: Path) -> None:
    calls: list[int] = []
    found = [kept_json(tmp_path / "a.json", lambda: calls.append(1) or {"a": 1}) for _ in range(2)]
    assert found == [{"a": 1}] * 2 and calls == [1]
    for code, wanted in (("x", 2), ("x", 2), ("y", 3)):
        made = kept_json(tmp_path / "a.json", lambda: calls.append(1) or {"a": 1}, {"code": code})
        assert made == {"a": 1, "made_by": {"code": code}} and len(calls) == wanted


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
    rows = retention_table(found)
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
    assert status == 2 and "two models are called 'small'" in err


@pytest.mark.slow
def test_the_program_runs_every_part(
    beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a handful of texts, with the real teacher; what it finds fills the page."""
    shared = tmp_path / "shared"
    for data in (CODE, *distillation.OTHERS):
        (shared / data).parent.mkdir(exist_ok=True)
        (shared / data).symlink_to(beir)
    lines = "".join(f"{n % 5}\t{question(n)}\t{answer(n)}\n" for n in range(20))
    place = shared / distillation.PAIRS
    place.parent.mkdir()
    place.write_text("score\tsentence1\tsentence2\n" + lines, encoding="utf-8")
    words = ["--shared", shared, "--work", tmp_path / "work", "--out", tmp_path / "out"]
    words += ["--small", 8, "--rounds", 1]
    monkeypatch.setattr(sys, "argv", ["distillation", *map(str, words)])
    distillation.main()
    found = json.loads((tmp_path / "out" / "distillation.json").read_text(encoding="utf-8"))
    assert set(distillation.PARTS) < found.keys()
    shown = distillation_tables.tables(found)
    assert len(shown) == 6, shown.keys()
    assert all("nan" not in table for table in shown.values())
    assert (tmp_path / "out" / "distillation.svg").exists()


def test_the_page_shows_every_section_that_is_there() -> None:
    """Tables out of sections as the program writes them; absent ones leave no table."""
    random = np.random.default_rng(0)

    def scores(mean: float) -> dict[str, float]:
        return {str(n): s for n, s in enumerate(random.normal(mean, 0.1, 40).tolist())}

    teacher = scores(0.5)
    quality = {
        who: summary(teacher if who == TEACHER else scores(mean), teacher)
        for who, mean in ((TEACHER, 0.5), ("student", 0.48), ("asymmetric", 0.45))
    }
    speed = {"student": {"documents_times_faster": 1.9, "queries_times_faster": 2.125}}
    facts = {"minutes": 12.34, "teacher_minutes": 3.21, "resumed": False, "recipe": "distil_align"}
    section = {**quality, "speed": speed, **facts}
    merged = {"base": quality[TEACHER], "tuned": quality["student"], "merged": quality[TEACHER]}
    merged |= {"documents": 1_234}
    correlation = {"mean": 0.8, "low": 0.78, "high": 0.82}
    point = quality["student"] | {"against_base": quality["student"]["against_teacher"]}
    curve = {"dev": CODE, "chosen": 1.0, "points": [{"share": 1.0, "tasks": {CODE: point}}]}
    found = distillation_tables.tables(
        {
            "three_code": section,
            "static_code": section
            | {"tables_on_dev": {"a": 0.1, "b": 0.2}, "trials_on_dev": {"0.1": 0.3}},
            "tuned_debian": section | {"recipe": "distil_kl", "rows": 16_384},
            "vocabulary_code": quality
            | {w: {"tokens": 9, "parameters": 5, "megabytes": 1.0} for w in ("before", "after")},
            "merge": {
                "curve": curve,
                "chosen": 1.0,
                "gain_kept": 0.75,
                "similarity": {"base": correlation, "merged": correlation},
                "test": {CODE: merged, "other": merged | {"merged": quality["asymmetric"]}},
            },
        }
    )
    assert found.keys() == {"students", "static_choice", "vocabulary", "merge_curve", "merge_test"}
    assert "| 1.90 x | 2.1 x | 12.3 | 3.2 |" in found["students"]
    assert "| distil_kl, 16,384 rows |" in found["students"]
    assert "taken: `b`" in found["static_choice"] and "taken: `0.1`" in found["static_choice"]
    assert "keeps 75.0% of the gain" in found["merge_test"]
    assert "elsewhere: other" in found["merge_test"]  # 0.45 against 0.5 over 40 queries
    assert "| 1,234 |" in found["merge_test"] and "merged 0.800 [0.780" in found["merge_test"]
    page = (Path(__file__).parent.parent / "docs" / "distillation.md").read_text(encoding="utf-8")
    for name, table in found.items():
        assert table in fill_marked(page, name, table)
    assert distillation_tables.tables({}) == {}
