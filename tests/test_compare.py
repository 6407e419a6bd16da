"""`tercet compare`: results that add up, plots, and mistakes that are one line."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from tercet.configs import ModelConfig
from tercet.evaluation import compare as compared
from tercet.evaluation import read_result
from tercet.evaluation.significance import holm
from tercet.files import write_json
from tercet.models import load_encoder, model_fingerprint, quantise
from tercet.report.comparison import comparison_page
from tercet.report.plots import write_plots
from tests.comparison import EVIL, MANY, Comparison, collection
from tests.conftest import Run
from tests.encoders import WIDTH
from tests.test_mining_page import Tags

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_file_holds_what_was_returned(comparison: Comparison) -> None:
    written = json.loads((comparison.out / "results.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(comparison.found))
    assert [m["name"] for m in written["models"]] == ["tiny", EVIL]
    assert [t["documents"] for t in written["tasks"]] == [300, MANY]
    assert [m["model"] for m in written["overall"]] == ["tiny", EVIL, "BM25"]


def test_quality_is_that_of_evaluate_and_differences_are_its_queries(
    comparison: Comparison,
) -> None:
    deltas = []
    for task in comparison.found["tasks"]:
        folder = comparison.out / "results"
        results = {r.model: r for r in map(read_result, folder.rglob(f"{task['name']}.test.json"))}
        assert len(results) == 3
        for row in task["quality"]:
            means = results[row["model"]].means
            assert row["means"] == {metric: vars(mean) for metric, mean in means.items()}
        base = results["tiny"].scores["ndcg@10"]
        for delta in task["deltas"]:
            other = results[delta["model"]].scores["ndcg@10"]
            values = [other[query] - base[query] for query in base]
            assert delta["p"] == compared(base, other).p
            assert delta["mean"] == pytest.approx(np.mean(values))
            assert delta["differences"] == sorted(values)
            assert delta["wins"] == sum(v > 0 for v in values)
            assert delta["wins"] + delta["losses"] + delta["ties"] == task["queries"]
            deltas.append(delta)
    assert [d["p_holm"] for d in deltas] == holm([d["p"] for d in deltas])


def test_speed_and_size_were_measured_for_each_model(comparison: Comparison) -> None:
    tiny, small = (model["efficiency"] for model in comparison.found["models"])
    assert (tiny["dimensions"], small["dimensions"]) == (32, WIDTH)
    assert tiny["megabytes"] == pytest.approx(4e-6 * tiny["parameters"])
    for found in (tiny, small):
        assert found["load_seconds"] > 0 and found["documents_per_second"] > 0
        assert 0 < found["latency_p50_ms"] <= found["latency_p95_ms"]
        assert 50 < found["base_memory_mb"] < found["peak_memory_mb"] < 20_000


def test_the_mean_over_collections_weighs_each_the_same(comparison: Comparison) -> None:
    for place, mean in enumerate(comparison.found["overall"]):
        each = [t["quality"][place]["means"]["ndcg@10"] for t in comparison.found["tasks"]]
        assert mean["mean"] == pytest.approx(np.mean([one["mean"] for one in each]))
        assert mean["low"] <= mean["mean"] <= mean["high"]
        widths = [one["high"] - one["low"] for one in each]
        assert mean["high"] - mean["low"] == pytest.approx(np.hypot(*widths) / 2)
    for m, forms in enumerate(comparison.found["compression"]):
        assert forms[0]["kept"] == forms[0]["kept_least"] == 1
        for f, form in enumerate(forms):
            each = [t["compression"][m][f] for t in comparison.found["tasks"]]
            assert form["mean"] == pytest.approx(np.mean([one["mean"] for one in each]))
            assert form["kept_least"] == min(one["kept"] for one in each)


def test_indexes_are_studied_where_there_are_documents_enough(comparison: Comparison) -> None:
    first, second = comparison.found["tasks"]
    assert "indexes" not in first and "reductions" not in first
    assert [len(model) for model in second["indexes"]] == [7, 7]
    assert second["indexes"][0][0]["recall"] == 1.0
    assert {r["dims"] for r in second["reductions"][0]} == {16, 8}
    assert {r["dims"] for r in second["reductions"][1]} == {8}  # that model is 16 wide


def test_every_number_of_the_page_is_in_its_json(comparison: Comparison) -> None:
    page = (comparison.out / "report.html").read_text(encoding="utf-8")
    found = json.loads((comparison.out / "results.json").read_text(encoding="utf-8"))
    cells = [a for tag, a in Tags(page).tags if tag == "td" and "data-json" in a]
    assert len(cells) > 500
    for cell in cells:
        value = found
        for part in str(cell["data-json"]).split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            value = value[int(part)] if isinstance(value, list) else value[part]
        if isinstance(value, dict):
            value = value.get("mean")
        if value is None:
            assert "data-order" not in cell
        else:
            shown = float(str(cell["data-order"]))
            ratios = (1, 100, 1e-6)
            assert any(shown == pytest.approx(value * ratio) for ratio in ratios), cell


def test_the_page_asks_for_nothing_and_shows_hostile_names_as_text(
    comparison: Comparison,
) -> None:
    page = (comparison.out / "report.html").read_text(encoding="utf-8")
    found = Tags(page)
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    assert len(images) == 6 and all(str(i["src"]).startswith("data:image/svg") for i in images)
    assert all(len(str(image["alt"])) > 40 for image in images)
    assert EVIL in found.text and "<img src=x" not in page
    for tag, attributes in found.tags:
        assert not {a for a in attributes if a.startswith("on")}, tag
        for address in ("src", "href", "srcset"):
            value = attributes.get(address)
            assert value is None or value.startswith("data:") or value == "results.json"
    assert "default-src 'none'" in page and not re.search(r"https?://|@import", page)


def test_plots_are_files_too_and_the_same_again(comparison: Comparison, tmp_path: Path) -> None:
    names = {"scores", "size_speed", "quality_cost", "quality_bytes", "wins", "indexes"}
    folder = comparison.out / "plots"
    assert {file.name for file in folder.iterdir()} == {
        f"{name}.{form}" for name in names for form in ("svg", "png")
    }
    again = write_plots(comparison.found, tmp_path)
    for plot in again:
        assert plot.light == (folder / f"{plot.name}.svg").read_text(encoding="utf-8")
        for svg in (plot.light, plot.dark):
            assert ET.fromstring(svg).tag.endswith("svg") and "#1c2024" in plot.light
        assert (folder / f"{plot.name}.png").read_bytes().startswith(b"\x89PNG")
    page = (comparison.out / "report.html").read_text(encoding="utf-8")
    from_file = json.loads((comparison.out / "results.json").read_text(encoding="utf-8"))
    assert comparison_page(from_file, again) == page


def test_what_is_typed_and_what_comes(comparison: Comparison, run: Run, tmp_path: Path) -> None:
    small = collection(tmp_path / "few", 60)
    status, out, err = run(
        "compare", comparison.models[0], "--data", small, "--out", "page", "--dims", "8"
    )
    assert status == 0, err
    assert "│ tiny" in out and "│ BM25" in out and "page: page/report.html" in out
    found = json.loads((tmp_path / "page/results.json").read_text())
    assert {form["dims"] for form in found["compression"][0]} == {32, 8}
    assert "indexes" not in found["tasks"][0]


def test_mistakes_are_one_line_and_come_first(
    comparison: Comparison, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tercet.stages.comparing.evaluate_model", lambda *_: 1 / 0)
    model, data = comparison.models[0], comparison.folders[0]
    write_json(tmp_path / "old" / "results.json", {"format": 0})
    write_json(tmp_path / "theirs" / "results.json", [1])
    twin = shutil.copytree(model, tmp_path / "twin" / "tiny")
    for words, said in (
        ((model, "./absent", "--data", data), "model: ./absent does not exist"),
        ((model, twin, "--data", data), "two models are called 'tiny'"),
        ((model, "--data", data, "--data", data), "two tasks are called 'animals'"),
        ((model, "--data", tmp_path / "none"), "no such folder"),
        ((model, "--data", data, "--out", "old"), "another version of tercet.*format 0"),
        ((model, "--data", data, "--out", "theirs"), "format unknown.*choose another --out"),
        ((model, "--data", data, "--dims", "8,x"), "--dims: whole numbers above 0"),
        ((model, "--data", data, "--dims", "0"), "--dims: whole numbers above 0"),
        ((model, "--data", data, "--index"), "--index: no collection has 1,000 documents"),
    ):
        status, _, err = run("compare", *words)
        lines = [line for line in err.splitlines() if line.startswith("error:")]
        assert status == 2 and re.search(said, err) and len(lines) == 1, err
        assert "Traceback" not in err


def test_ranges_are_stored_with_the_model_and_used(
    comparison: Comparison, run: Run, tmp_path: Path
) -> None:
    model = shutil.copytree(comparison.models[0], tmp_path / "own")
    status, out, err = run("calibrate", model, "--data", comparison.folders[0], "--dims", "8,64")
    assert status == 0, err
    assert out == f"ranges: {model / quantise.FILE}\n"
    stored = json.loads((model / quantise.FILE).read_text())
    assert list(stored["widths"]) == ["32", "8"]
    status, _, err = run("compare", model, "--data", comparison.folders[0], "--dims", "8")
    assert status == 0, err
    found = json.loads((tmp_path / "comparison/results.json").read_text())
    assert found["models"][0]["calibrated"] == [8, 32]
    int8 = [form["mean"] for form in found["tasks"][0]["compression"][0]][1]
    assert int8 == comparison.found["tasks"][0]["compression"][0][1]["mean"]  # the same documents
    status, _, err = run("export", model, "--out", tmp_path / "cut", "--truncate", 8)
    assert status == 0, err
    exported = load_encoder(ModelConfig(path=str(tmp_path / "cut")), "model")
    kept = quantise.read_ranges(tmp_path / "cut", model_fingerprint(exported))
    assert list(kept) == [8] and kept[8].low.tolist() == stored["widths"]["8"]["low"]
    stored["model_fingerprint"] = "other"
    write_json(model / quantise.FILE, stored)
    status, _, err = run("compare", model, "--data", comparison.folders[0])
    assert status == 2 and "calibrated on other weights" in err
    status, _, err = run("calibrate", "embedded", "--data", comparison.folders[0])
    assert status == 2 and "export it to one first" in err
