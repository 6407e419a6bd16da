"""What all benchmark programs publish: no trials, aims met or missed, the code, medians' ratios."""

import argparse
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import encoding, evaluation, loss_stage, quality
from benchmarks.machine import RESULTS, medians, refuse_trial, target, targets_note
from tercet.versions import whole_source

MARKED = r"<!-- (\w+):begin -->(.*?)<!-- \1:end -->"


@pytest.mark.parametrize(
    "line",
    [
        "mining --quick",
        "mining --rounds 2",
        "encoding --data x --quick",
        "encoding --data x --documents 100",
        "evaluation --documents 1000",
        "evaluation --rounds 1",
        "guide_mask --quick",
        "inference --data x --quick",
        "inference --data x --model other",
        "loss_stage --quick",
        "pruning --rounds 1",
        "train_step --no-large",
        "compiled --batch 8",
        "scale --rows 64",
        "quantised --shared x --model other",
        "comparison --shared x --models embedded --tasks scifact",
        "mteb_agreement --shared x --tasks scifact",
    ],
)
def test_a_trial_leaves_the_published_results_alone(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss", reason="benchmarks.mining measures it: tercet[ann]")

    program, *words = line.split()
    monkeypatch.setattr("sys.argv", [program, *words, "--out", str(RESULTS / ".." / "results")])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{program}").main()
    assert ended.value.code == 2
    assert "give another --out" in capsys.readouterr().err


def test_what_is_no_trial_is_published() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tasks", nargs="+", default=["a", "b"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args(["--tasks", "c", "b", "a", "--rounds", "4"])
    refuse_trial(parser, asked, "tasks", "rounds", "quick")
    refuse_trial(parser, parser.parse_args(["--rounds", "1"]), "tasks", "quick")
    elsewhere = parser.parse_args(["--rounds", "1", "--quick", "--tasks", "a", "--out", "x"])
    refuse_trial(parser, elsewhere, "tasks", "rounds", "quick")


def test_no_figure_of_a_page_is_typed() -> None:
    """Each table between marks is what the published results say; the others are empty."""
    pytest.importorskip("faiss", reason="benchmarks.mining measures it: tercet[ann]")
    from benchmarks.tables import ROOT, filled, pages, read

    shown = pages(read(RESULTS))
    assert shown
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        tables = shown.get(name, {})
        assert filled(name, tables) == text, f"{name}: run python -m benchmarks.tables"
        for mark, between in re.findall(MARKED, text, re.DOTALL):
            assert mark in tables or not re.search(r"\d\.\d", between), f"{name}: {mark}"


def test_ratios_of_the_tables_are_medians_over_rounds() -> None:
    """Of rounds in which ours took 1, 2 and 4 s: 3 times as long, though medians say 2.5."""
    pytest.importorskip("faiss", reason="benchmarks.mining measures it: tercet[ann]")
    from benchmarks import mining

    def taken(ours: str, theirs: str) -> dict[str, Any]:
        seconds = {ours: [1.0, 2.0, 4.0], theirs: [3.0, 12.0, 5.0]}
        return {"seconds": seconds, "medians": medians(seconds)}

    memory = {"extra_mib": 1.0, "extra_anonymous_mib": 1.0, "beside_mib": 1.0}
    scored = taken(evaluation.OURS, evaluation.PEER)
    scored |= {part: dict.fromkeys(scored["seconds"], memory) for part in ("memory", "metrics")}
    loss = taken("ours, tile 8", "theirs, mini-batch 512")
    loss |= {"tile": 8, "memory": {"ours": memory}}
    texts = taken("ours", "theirs, batch 8") | {"padded_per_real": {}}
    texts |= {"tokens_per_second": texts["medians"]}
    size = taken(mining.OURS, "faiss") | {"documents": 5, "memory": memory}
    size |= {"share_of_peak": size["medians"]}
    tables = (
        evaluation.rows(scored),
        loss_stage.rows(loss),
        encoding.rows(texts),
        mining.search_rows({"sizes": [size]}),
    )
    for table in tables:
        assert [row["Time / ours"] for row in table] == ["1.00", "3.00"], table


def test_it_is_told_whether_an_aim_was_met() -> None:
    aims = [
        target("speed", 3, least=4),
        target("size", 3, most=4),
        target("gap", float("nan"), most=1),
    ]
    assert [one["met"] for one in aims] == [False, True, False]
    assert targets_note(aims[:2]) == "Aims: speed at least 4: 3, missed; size at most 4: 3, met."
    kept = target("share", 0.991, least=0.99, interval=(0.98, 1.00123))
    assert targets_note([kept]) == "Aims: share at least 0.99: 0.991 [0.98, 1.001], met."


def test_results_name_all_code_that_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    (package / "stages").mkdir(parents=True)
    elsewhere = tmp_path / "evaluation"
    elsewhere.mkdir()
    (package / "evaluation").symlink_to(elsewhere)
    sources = {whole_source(package)}
    for place in ("a.py", "stages/a.py", "evaluation/a.py", "evaluation/a.yaml"):
        (package / place).write_text("1")
        sources.add(whole_source(package))
    assert len(sources) == 5
    (package / "evaluation" / "a.html.j2").write_text("1")
    assert whole_source(package) in sources

    demo = tmp_path / "demo"
    demo.mkdir()
    (demo / "summary.json").write_text(json.dumps(dict.fromkeys(quality.DEMO_KEYS, 1)))
    (demo / "demo.txt").write_text("done")
    arguments = ["quality", "--demo", str(demo), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", arguments)
    quality.main()
    found = json.loads((tmp_path / "out" / "demo.json").read_text(encoding="utf-8"))
    assert found["code"]["source"] == whole_source() and found["machine"]["threads"]
    assert (found["base"], found["printed"]) == (1, "done")
