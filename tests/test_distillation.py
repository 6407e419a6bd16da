"""The program behind docs/distillation.md: splits without leaks, parts measured anew when anything
behind them changes, and a page of what was found."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import distillation, distillation_tables, distillation_work, mining_quality
from benchmarks.collections import write_halves, write_with_dev
from benchmarks.distillation import first_of
from benchmarks.distillation_aims import AIMS, aims, losses
from benchmarks.distillation_merge import gain_kept
from benchmarks.distillation_work import CODE, Work, at_one_length, encoder
from tercet.configs import ModelConfig
from tercet.data import RetrievalTask, read_task
from tercet.evaluation.retention import TEACHER, summary
from tercet.models import encode, load_encoder
from tercet.report import fill_marked
from tests.conftest import answer, question

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_what_is_chosen_by_is_not_reported(beir: Path, tmp_path: Path) -> None:
    def halves(small: int | None = None) -> list[RetrievalTask]:
        out = tmp_path / f"half-{small}-{(beir / 'qrels' / 'train.tsv').exists()}"
        write_halves(beir, out, 3, small)
        return [read_task(f"{out}-{part}") for part in ("choose", "report")]

    choose, report = halves()
    asked = read_task(beir, "train").queries.ids
    assert set(choose.queries.ids) <= set(asked) and len(choose.queries) == 12
    assert len(choose.documents) == len(answers(tmp_path / "half-None-True-choose", "test")) + 3
    whole = read_task(beir)
    assert report.qrels == whole.qrels and report.documents == whole.documents  # found in the store
    for one in halves(4):
        answered = {d for judged in one.qrels.values() for d in judged}
        assert len(one.queries) == 4 and len(one.documents) == len(answered) + 4
    (beir / "qrels" / "train.tsv").unlink()
    choose, report = halves()
    assert (len(choose.queries), len(report.queries)) == (6, 6)
    assert not set(choose.queries.ids) & set(report.queries.ids)
    assert len(choose.documents) == 9 and report.documents == whole.documents


def test_a_part_is_measured_again_with_other_code_or_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Work] = []
    parts = {"one": lambda work, name: calls.append(work) or {"name": name}}
    monkeypatch.setattr(distillation, "PARTS", parts)
    work = Work(tmp_path / "shared", tmp_path / "work", None, 3)
    assert [distillation.part(work, "one")["name"] for _ in range(2)] == ["one", "one"]
    section = distillation.done(work)["one"]
    assert len(calls) == 1 and section["made_by"]["small"] is None
    assert section["machine"]["threads"] and section["code"]["source"] and section["targets"] == []
    distillation.part(replace(work, rounds=1), "one")
    (work.shared / CODE).mkdir(parents=True)
    (work.shared / CODE / "corpus.jsonl").write_text("other rows")
    distillation.part(replace(work, rounds=1), "one")
    monkeypatch.setattr(distillation, "whole_source", lambda: "another")
    distillation.part(replace(work, rounds=1), "one")
    assert len(calls) == 4


def test_other_seeds_are_parts_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    parts = dict.fromkeys(("three_debian", "two_code"), lambda work, name: asked.append(name) or {})
    monkeypatch.setattr(distillation, "PARTS", parts)
    monkeypatch.setattr(distillation, "aims", lambda name, found: [{"what": name}])
    words = ["--shared", "nowhere", "--work", tmp_path / "w", "--out", tmp_path / "out"]
    for seeds, sections in ((1, 2), (3, 4)):
        monkeypatch.setattr(sys, "argv", ["distillation", *map(str, words), f"--seeds={seeds}"])
        distillation.main()
        found = json.loads((tmp_path / "out" / "distillation.json").read_text(encoding="utf-8"))
        assert len(found) == sections
    assert asked == ["three_debian", "two_code", "two_code_seed1", "two_code_seed2"] == [*found]
    assert found["two_code_seed2"]["targets"] == [{"what": "two_code"}]
    work = Work(tmp_path, tmp_path / "w", None, 1)
    seeds = [distillation.config_of(work, name).train.seed for name in asked[1:]]
    assert len({*seeds}) == 3 and seeds[1:] == [1, 2]


def test_parts_of_other_code_stay_and_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {name: lambda work, name: {"name": name} for name in ("one", "two")}
    monkeypatch.setattr(distillation, "PARTS", parts)
    words = ["--shared", "nowhere", "--work", str(tmp_path / "w"), "--out", str(tmp_path / "out")]

    def run(*more: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["distillation", *words, *more])
        distillation.main()
        return json.loads((tmp_path / "out" / "distillation.json").read_text(encoding="utf-8"))

    assert run().keys() == {"one", "two"}
    assert "to be run again" not in capsys.readouterr().err
    monkeypatch.setattr(distillation, "whole_source", lambda: "another")
    found = run("--only", "two")
    assert found["one"]["made_by"]["source"] != found["two"]["made_by"]["source"] == "another"
    assert "to be run again: one\n" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "w")  # as of a result that another machine's work folder led to
    assert run("--only", "two") == found
    assert not (tmp_path / "w" / "cache").exists()


@pytest.mark.parametrize("program", [distillation, mining_quality])
def test_a_trial_replaces_no_published_result(
    program: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["program", "--shared", "nowhere", "--work", str(tmp_path / "work"), "--small", "4"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        program.main()
    assert stop.value.code == 2 and "give another --out" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_trial_leaves_nothing_for_the_whole(beir: Path, tmp_path: Path) -> None:
    beir.rename(tmp_path / CODE)
    whole, small = (Work(tmp_path, tmp_path / "work", size, 1) for size in (None, 4))
    folders = [work.data(CODE) for work in (small, whole)]
    tasks = [read_task(folder) for folder in folders]
    assert [task.name for task in tasks] == [CODE, CODE]
    assert [len(task.queries) for task in tasks] == [4, 12]
    assert whole.whole(CODE) == tmp_path / CODE and small.whole(CODE) == folders[0]
    chosen = [read_task(work.halves(CODE)[0]) for work in (small, whole)]
    assert [len(task.queries) for task in chosen] == [4, 12]


def test_models_are_scored_as_exported_and_timed_at_one_length(
    tiny_model: Path, tmp_path: Path
) -> None:
    short = load_encoder(ModelConfig(path=str(tiny_model), max_length=9))
    short.save(str(tmp_path / "short"), create_model_card=False)
    long, short = encoder(str(tiny_model)), encoder(str(tmp_path / "short"))
    text = " ".join(answer(n) for n in range(4))
    whole = encode(long, [text], "document")
    assert short.max_seq_length == 9
    assert np.abs(encode(short, [text], "document") - whole).max() > 1e-3
    found = at_one_length({TEACHER: long, "short": short})
    np.testing.assert_array_equal(encode(found["short"], [text], "document"), whole)
    assert long.max_seq_length == short.max_seq_length == 64


def test_the_aims_are_judged_by_what_was_measured() -> None:
    assert AIMS.keys() == distillation.PARTS.keys() - {"retention"}  # which only shows
    loss, noise = (
        {"mean": mean, "low": -0.2, "high": 0.1, "p": p, "queries": 9, "effect": None}
        for mean, p in ((-0.1, 0.01), (-0.1, 0.2))
    )
    speed = {"documents_times_faster": 1.79, "documents_seconds": [2.0, 4.0]}
    share = {"share": 0.991, "share_low": 0.98, "share_high": 1.02}
    found = {
        "student": share | {"against_teacher": noise},
        "asymmetric": {"share": None},
        "speed": {"student": speed, TEACHER: {"documents_seconds": [3.0, 8.0]}},
        "minutes": 29.5,
    }
    intervals = [one.get("interval") for one in aims("three_code", found)]
    assert intervals == [[0.98, 1.02], None, [1.5, 2.0], None]
    assert [(one["got"], one["met"]) for one in aims("three_code", found)] == [
        (0.991, True),
        (0.0, False),
        (1.79, False),
        (29.5, True),
    ]
    assert [(one["met"], one["interval"]) for one in aims("tuned_code", found)] == [
        (False, [-0.2, 0.1])
    ]
    tests = {CODE: loss, "better": noise, "worse": loss}  # tuned on the first
    merged: dict[str, Any] = {
        "gain_kept": None,
        "gain_kept_interval": None,
        "test": {name: {"merged": {"against_teacher": delta}} for name, delta in tests.items()},
        "similarity": {"merged": {"against_base": noise}},
    }
    assert [one["got"] for one in aims("merge", merged)] == [0.0, 1]
    assert losses(merged) == ["worse"] and aims("retention", {}) == []
    merged["similarity"]["merged"]["against_base"] = loss
    assert losses(merged) == ["worse", "stsb_en"]
    merged["test"]["worse"]["merged"]["against_teacher"] = loss | {"p": 0.02}
    assert losses(merged) == ["worse", "stsb_en"]  # 3 x 0.01 and 2 x 0.02
    merged["test"]["worse"]["merged"]["against_teacher"] = loss | {"p": 0.03}
    assert losses(merged) == ["stsb_en"]  # 2 x 0.03: one of three may be so by chance


def test_the_share_of_a_gain_has_an_interval() -> None:
    random = np.random.default_rng(3)
    base, gain = random.uniform(size=(2, 60))

    def scores(values: Any) -> dict[str, float]:
        return {str(n): value for n, value in enumerate(values.tolist())}

    found = {"base": scores(base), "tuned": scores(base + gain), "merged": scores(base + gain / 2)}
    kept, interval = gain_kept(found)
    assert kept == pytest.approx(0.5) and interval == pytest.approx((0.5, 0.5))
    assert gain_kept(found | {"tuned": scores(base)}) == (None, None)


@pytest.mark.slow
def test_the_program_runs_every_part(
    beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a handful of texts, with the real teacher; what it finds fills the page."""
    shared = tmp_path / "shared"
    for data in (CODE, *distillation_work.OTHERS):
        (shared / data).parent.mkdir(exist_ok=True)
        (shared / data).symlink_to(beir)
    lines = "".join(f"{n % 5}\t{question(n)}\t{answer(n)}\n" for n in range(20))
    place = shared / distillation_work.PAIRS
    place.parent.mkdir()
    place.write_text("score\tsentence1\tsentence2\n" + lines, encoding="utf-8")
    words = ["--shared", shared, "--work", tmp_path / "work", "--out", tmp_path / "out"]
    words += ["--small", 8, "--rounds", 1, "--seeds", 2]
    monkeypatch.setattr(sys, "argv", ["distillation", *map(str, words)])
    distillation.main()
    assert not (tmp_path / "work" / "parts").exists()  # those of a trial are elsewhere
    found = json.loads((tmp_path / "out" / "distillation.json").read_text(encoding="utf-8"))
    again = {f"{name}_seed1" for name in distillation.SEEDED}
    assert {*distillation.PARTS, *again} == found.keys()
    assert all(one["code"] and one["machine"] and one["made_by"]["small"] for one in found.values())
    assert all(found[name]["targets"] for name in AIMS)
    for name, (source, _) in distillation.TUNED.items():
        assert found[name]["speed"] == found[source]["speed"]  # measured once
        assert found[name]["sizes"] == found[source]["sizes"]
    deltas = {who: one["against_base"] for who, one in found["merge"]["similarity"].items()}
    assert deltas["base"]["mean"] == 0 and deltas["merged"]["queries"] == 20
    shown = distillation_tables.tables(found)
    assert len(shown) == 6, shown.keys()
    assert all("nan" not in table for table in shown.values())
    assert "- two_code, 2 seeds: " in shown["students"] and "stored" in shown["students"]
    assert found["static_code"]["choosing_minutes"] > 0
    assert found["two_code_seed1"]["speed"] == found["two_code"]["speed"]
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
    spent = {f"{what}_seconds": [1.0] for what in ("documents", "queries")}
    faster = {"documents_times_faster": 1.9, "queries_times_faster": 2.125}
    speed = {"student": spent | faster, TEACHER: spent}
    facts: dict[str, Any] = {"max_length": {TEACHER: 256, "student": 256}}
    facts["machine"] = {"processor": "abacus", "cores": 2, "threads": 2}
    facts |= {"minutes": 12.34, "teacher_minutes": 3.21, "parts": 1, "recipe": "distil_align"}
    other = summary(scores(0.47), teacher)
    section = {**quality, "speed": speed, **facts}
    sections = {
        "three_code": section,
        "three_code_seed1": section | {"student": other, "teacher_minutes": 0.0},
        "static_code": section
        | {"parts": 2, "choosing_minutes": 6.54}
        | {"tables_on_dev": {"a": 0.1, "b": 0.2}, "trials_on_dev": {"0.1": 0.3}},
        "tuned_debian": section
        | {"recipe": "distil_kl", "rows": 16_384, "max_length": {TEACHER: 256, "student": 96}},
        "vocabulary_code": quality
        | {w: {"tokens": 9, "parameters": 5, "megabytes": 1.0} for w in ("before", "after")},
    }
    merged = {"base": quality[TEACHER], "tuned": quality["student"], "merged": quality[TEACHER]}
    merged |= {"documents": 1_234}
    less = {"mean": -0.02, "low": -0.03, "high": -0.01, "p": 0.0123, "queries": 9, "effect": None}
    correlation = {"mean": 0.8, "low": 0.78, "high": 0.82, "against_base": less}
    point = quality["student"] | {"against_base": quality["student"]["against_teacher"]}
    curve = {"dev": CODE, "chosen": 1.0, "points": [{"share": 1.0, "tasks": {CODE: point}}]}
    sections["merge"] = {
        "curve": curve,
        "chosen": 1.0,
        "gain_kept": 0.75,
        "gain_kept_interval": (0.6, 0.9),
        "similarity": {"base": correlation, "merged": correlation},
        "test": {CODE: merged, "other": merged | {"merged": quality["asymmetric"]}},
    }
    del sections["merge"]["test"]["other"]["tuned"]  # of a large collection
    found = distillation_tables.tables(
        {name: one | {"targets": aims(first_of(name), one)} for name, one in sections.items()}
    )
    assert found.keys() == {"students", "static_choice", "vocabulary", "merge_curve", "merge_test"}
    assert "| 1.90 x | 2.1 x | 12.3 | 3.2 |" in found["students"]
    assert "| 12.3 (in 2 parts) |" in found["students"]
    assert "| distil_kl, 16,384 rows, 96 tokens |" in found["students"]
    assert "| three_code | distil_align |" in found["students"]
    assert found["students"].endswith("\n\nabacus, 2 cores, 2 threads.")
    assert "taken: `b`" in found["static_choice"] and "taken: `0.1`" in found["static_choice"]
    assert "- three_code. Aims: share of the teacher's nDCG@10 at least 0.99: " in found["students"]
    assert "minutes of training at most 30: 12.34, met." in found["students"]
    least = "queries a second over the teacher's at least 50: 2.125 [1, 1], missed"
    assert least in found["students"] and "| 12.3 | stored |" in found["students"]
    shares = [quality["student"]["share"], other["share"]]
    apart = f"from {min(shares):.1%} to {max(shares):.1%}."
    note = f"- three_code, 2 seeds: {np.mean(shares):.1%} of the teacher, {apart}"
    assert note in found["students"]
    assert f"{shares[0]:.1%} [{quality['student']['share_low']:.1%}, " in found["students"]
    assert "took 6.5 minutes" in found["static_choice"]
    assert "Aims: share of the teacher's nDCG@10 at least 0.99: " in found["vocabulary"]
    assert "collections with a significant loss at most 0: 2, missed." in found["merge_test"]
    assert "merged less base -0.020 [-0.030, -0.010], p = 0.012" in found["merge_test"]
    assert "keeps 75.0% of the gain" in found["merge_test"]
    assert "keeps at least 0.7: 0.75 [0.6, 0.9], met" in found["merge_test"]
    assert "intervals there: other " in found["merge_test"]
    assert "stsb_en -0.030." in found["merge_test"]
    assert "by Holm): other, stsb_en" in found["merge_test"]  # 0.45 against 0.5 over 40 queries
    assert "| 1,234 |" in found["merge_test"] and "merged 0.800 [0.780" in found["merge_test"]
    page = (Path(__file__).parent.parent / "docs" / "distillation.md").read_text(encoding="utf-8")
    for name, table in found.items():
        assert table in fill_marked(page, name, table)
    assert distillation_tables.tables({}) == {}
