"""`tercet compare`: results that add up, plots, and mistakes that are one line."""

import json
import os
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tercet.configs import ModelConfig
from tercet.errors import UserError
from tercet.evaluation import METRICS, efficiency, read_result
from tercet.evaluation import compare as compared
from tercet.evaluation.significance import holm
from tercet.files import write_json, write_text
from tercet.models import load_encoder, model_fingerprint, quantise
from tercet.report.cells import INDEX_NAMES
from tercet.report.comparison import comparison_page
from tercet.report.plots import write_plots
from tercet.report.vector_sheets import index_sheets
from tercet.report.words import front_words
from tercet.stages.contestants import disturbed
from tests.comparison import EVIL, MANY, Comparison, collection
from tests.conftest import Run, answer, question, write_lines
from tests.encoders import WIDTH, save_encoder
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
    deltas: dict[str, list[dict[str, Any]]] = {}
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
            want = compared(base, other)
            assert (delta["p"], delta["effect"]) == (want.p, want.effect)
            assert delta["mean"] == pytest.approx(np.mean(values))
            assert delta["differences"] == sorted(values)
            assert delta["wins"] == sum(v > 0 for v in values)
            assert delta["wins"] + delta["losses"] + delta["ties"] == task["queries"]
            deltas.setdefault(delta["model"], []).append(delta)
    assert list(deltas) == [EVIL, "BM25"]
    for family in deltas.values():  # a pair of models over the tasks
        assert [d["p_holm"] for d in family] == holm([d["p"] for d in family])


def test_speed_and_size_were_measured_for_each_model(comparison: Comparison) -> None:
    tiny, small = (model["efficiency"] for model in comparison.found["models"])
    assert (tiny["dimensions"], small["dimensions"]) == (32, WIDTH)
    assert tiny["megabytes"] == pytest.approx(4e-6 * tiny["parameters"])
    for found in (tiny, small):
        assert found["load_seconds"] > 0
        assert 0 < found["slowest_pass"] <= found["documents_per_second"] <= found["fastest_pass"]
        assert 0 < found["latency_p50_ms"] <= found["latency_p95_ms"]
        assert 50 < found["base_memory_mb"] < found["peak_memory_mb"] < 20_000


def test_a_query_is_timed_as_one_pass_of_the_model_itself_with_all_threads(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[int, bool, int]] = []

    def loaded(*given: Any) -> Any:
        model = load_encoder(*given)

        def note(module: torch.nn.Module, args: Any) -> None:
            passes.append((len(args[0]["input_ids"]), module is model, torch.get_num_threads()))

        model.register_forward_pre_hook(note)
        return model

    monkeypatch.setattr(efficiency, "load_encoder", loaded)
    texts = [answer(n) for n in range(8)], [question(n) for n in range(7)]
    torch.set_num_threads(2)  # the fixture of the module puts it back
    found = efficiency.measure(ModelConfig(path=comparison.models[0]), *texts)
    assert found.threads == 2
    assert passes[-12:] == [(1, True, 2)] * (5 + 7)  # those that warm up, and those timed


def test_the_mean_over_collections_weighs_each_the_same(comparison: Comparison) -> None:
    for place, mean in enumerate(comparison.found["overall"]):
        each = [t["quality"][place]["means"]["ndcg@10"] for t in comparison.found["tasks"]]
        assert mean["mean"] == pytest.approx(np.mean([one["mean"] for one in each]))
        assert mean["low"] <= mean["mean"] <= mean["high"]
        widths = [one["high"] - one["low"] for one in each]  # of independent samples of queries
        assert mean["high"] - mean["low"] == pytest.approx(np.hypot(*widths) / 2, rel=0.15)
        if place:
            deltas = [t["deltas"][place - 1]["mean"] for t in comparison.found["tasks"]]
            assert mean["delta"]["mean"] == pytest.approx(np.mean(deltas))
        else:
            assert mean["delta"] is None
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


class Numbers(HTMLParser):
    """Every cell of a column of numbers, and every fact: attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[tuple[dict[str, str | None], str]] = []
        self._open: dict[str, str | None] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._open = found if tag == "td" and found.get("class") == "number" else None

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.cells.append((self._open, data))


def at(found: Any, pointer: str) -> Any:
    """What stands at a JSON pointer."""
    for part in pointer.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        found = found[int(part)] if isinstance(found, list) else found[part]
    return found


def shows(text: str, value: Any) -> bool:
    """Whether every number in `text` is one of `value`, rounded to the digits that are shown."""
    values = [value] if not isinstance(value, dict) else [value[k] for k in ("mean", "low", "high")]
    if text == "< 0.001":
        return values[0] < 0.001
    shown = [one.replace(",", "") for one in re.findall(r"[+-]?\d[\d,]*\.?\d*", text)]
    scales = [factor for unit, factor in UNITS.items() if text.endswith(unit)] or [1, 1e-6]
    return len(shown) == len(values) and any(
        all(
            abs(float(one) - v * scale) <= 0.5001 * 0.1 ** len(one.partition(".")[2])
            for one, v in zip(shown, values, strict=True)
        )
        for scale in scales
    )


UNITS = {" %": 100, " TB": 1e-12, " GB": 1e-9, " MB": 1e-6, " kB": 1e-3}


def test_every_number_of_the_page_is_in_its_json(comparison: Comparison) -> None:
    page = (comparison.out / "report.html").read_text(encoding="utf-8")
    found = json.loads((comparison.out / "results.json").read_text(encoding="utf-8"))
    cells = Numbers(page).cells
    assert len(cells) > 500
    for attributes, text in cells:
        assert attributes.get("data-json"), text
        assert shows(text, at(found, str(attributes["data-json"]))), (attributes, text)
    empty = [a for tag, a in Tags(page).tags if tag == "td" and "data-order" not in a]
    assert all("data-json" not in a or at(found, str(a["data-json"])) is None for a in empty)


def test_every_metric_stands_on_the_page_with_its_interval(comparison: Comparison) -> None:
    page = (comparison.out / "report.html").read_text(encoding="utf-8")
    shown = {str(attributes["data-json"]): text for attributes, text in Numbers(page).cells}
    for t, task in enumerate(comparison.found["tasks"]):
        for r, row in enumerate(task["quality"]):
            assert row["means"].keys() == {*METRICS}
            for metric, mean in row["means"].items():
                text = shown[f"/tasks/{t}/quality/{r}/means/{metric}"]
                assert text == f"{mean['mean']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]"
    folded = re.findall(r"<details><summary>(.*?)</summary>", page)
    for task in comparison.found["tasks"]:
        assert f"{task['name']} (test): more metrics [95 % interval]" in folded


def test_the_front_counts_what_rescoring_reads_and_names_model_and_form() -> None:
    def form(precision: str, size: int, mean: float, more: int = 0) -> dict[str, Any]:
        facts = {"dims": 32, "precision": precision, "bytes": size, "mean": mean}
        return facts | {"rescored": more > 0, "rescoring_bytes": more}

    one = [form("float32", 128, 0.5), form("int8", 32, 0.49), form("binary", 4, 0.48, 32)]
    two = [form("binary", 4, 0.2), form("binary", 4, 0.495, 32)]
    found = {"models": [{"name": "one"}, {"name": "two"}], "compression": [one, two]}
    assert list(front_words(found)) == [
        "two, 32 x binary: 4 bytes, 0.200.",
        "one, 32 x int8: 32 bytes, 0.490.",
        "two, 32 x binary, rescored: 36 bytes, 0.495.",
        "one, 32 x float32: 128 bytes, 0.500.",
    ]


def test_projected_memory_bears_no_setting_of_this_collection(comparison: Comparison) -> None:
    here, projected = index_sheets(comparison.found)
    assert [row[1].text for row in projected.rows] == [*INDEX_NAMES.values()] * 2
    assert "IVF-PQ (IVF" in "".join(row[1].text for row in here.rows)
    assert "without the int8 vectors that rescoring reads" in projected.note


def test_models_of_other_dimensions_are_said_to_be(
    comparison: Comparison, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise UserError("enough")

    monkeypatch.setattr("tercet.stages.comparing.costs_of", stop)
    status, _, err = run("compare", *comparison.models, "--data", comparison.folders[0])
    assert status == 2 and err.count("dimensions differ") == 1, err
    assert f"dimensions differ (tiny 32, {EVIL} {WIDTH}): compare quality at equal bytes" in err
    status, _, err = run("compare", comparison.models[0], "--data", comparison.folders[0])
    assert status == 2 and "enough" in err and "dimensions differ" not in err
    words = ("compare", comparison.models[0], "--data", comparison.folders[0], "--dims", "8,4096")
    status, _, err = run(*words)
    assert status == 2 and "error: --dims: 4096 shortens nothing; give less than 32" in err


def test_speeds_that_others_disturbed_are_called_noise() -> None:
    steady = {"fastest_pass": 12.0, "slowest_pass": 10.0, "latency_p50_ms": 5, "latency_p95_ms": 9}
    assert disturbed(steady) is None
    assert disturbed(steady | {"slowest_pass": 8.0}) == (
        "the same texts took 1.5 times longer in one pass than in another"
    )
    found = disturbed(steady | {"latency_p95_ms": 25})
    assert found == "a query's 95th percentile is 5.0 times its median"


def test_no_number_stands_outside_the_tables(comparison: Comparison) -> None:
    """Notes and headings hold none that was measured; facts name their place."""
    page = (comparison.out / "report.html").read_text(encoding="utf-8")
    found = json.loads((comparison.out / "results.json").read_text(encoding="utf-8"))
    facts = [a["data-json"] for tag, a in Tags(page).tags if tag == "dd"]
    assert len(facts) == 2 + len(found["environment"]) + len(found["models"])
    assert all(at(found, str(pointer)) is not None for pointer in facts)
    measured = {f"{n:,}" for t in found["tasks"] for n in (t["queries"], t["documents"])}
    for note in re.findall(r'<p class="soft">(.*?)</p>|<caption>(.*?)</caption>', page, re.DOTALL):
        assert not measured & set(re.findall(r"[\d,]+", " ".join(note))), note


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


def test_what_is_typed_and_what_comes(run: Run, tmp_path: Path, judge: Path) -> None:
    """An XLM-RoBERTa as paraphrase-multilingual-MiniLM is one, with all that may be asked for."""
    save_encoder("xlm-roberta", tmp_path / "many")
    small = collection(tmp_path / "few", 60)
    with (small / "queries.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"_id": "lost", "text": "who asked this"}\n')
    seen = ({"query": question(n), "positive": f"{n} it is"} for n in range(5))
    write_lines(tmp_path / "seen.jsonl", seen)
    words = ["--data", small, "--out", "page", "--dims", "8", "--rerank", judge]
    words += ["--rerank-depth", 5, "--trained-on", "seen.jsonl", "--query-prompt", "many=ask: "]
    status, out, err = run("compare", "many/model", *words)
    assert status == 0, err
    assert "│ many" in out and "│ BM25" in out and "page: page/report.html" in out
    assert "few: seen in training: 5 of 48 queries, 0 of 48 answers" in out
    assert "Against many" in out and "1 of 49 queries have no judgement" in err
    found = json.loads((tmp_path / "page/results.json").read_text())
    assert {form["dims"] for form in found["compression"][0]} == {16, 8}
    (task,), (model,) = found["tasks"], found["models"]
    assert "indexes" not in task and found["seconds"]["total"] > task["seconds"] > 0
    assert model["prompts"] == {"query": "ask: ", "document": ""}
    both = f"many + {judge.parent.name}"
    rows = {row["model"]: row["means"]["ndcg@10"] for row in task["quality"]}
    assert list(rows) == ["many", both, "BM25"] == [row["model"] for row in found["overall"]]
    for name, mean in rows.items():
        stored = read_result(tmp_path / f"page/results/{safe(name)}/few.test.json")
        assert mean == vars(stored.means["ndcg@10"])
        scores = stored.scores["ndcg@10"].items()
        clean = [score for query, score in scores if int(query.removeprefix("q")) >= 5]
        (without,) = (row for row in task["leakage"]["without"] if row["model"] == name)
        assert without["mean"] == pytest.approx(np.mean(clean)) and len(clean) == 43
    assert task["leakage"]["seen"] == {"queries": 5, "documents": 0, "touched": 5}
    assert (task["without_judgement"], task["without_answer"]) == (1, 0)
    page = (tmp_path / "page/report.html").read_text(encoding="utf-8")
    assert "without those concerned" in page and both in page
    for attributes, text in Numbers(page).cells:
        assert shows(text, at(found, str(attributes["data-json"]))), (attributes, text)


def safe(name: str) -> str:
    return re.sub(r"[^\w.\-]+", "_", name)


def test_mistakes_are_one_line_and_come_first(
    comparison: Comparison, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tercet.stages.comparing.load_contestant", lambda *_: 1 / 0)
    model, data = comparison.models[0], comparison.folders[0]
    write_json(tmp_path / "old" / "results.json", {"format": 0})
    write_json(tmp_path / "kept" / "comparisons.json", [])
    write_json(tmp_path / "theirs" / "results.json", [1])
    (tmp_path / "odd" / "results.json").mkdir(parents=True)
    write_text(tmp_path / "mine" / "report.html", "<p>of the user</p>")
    write_text(tmp_path / "drawn" / "plots" / "scores.svg", "<svg/>")
    write_json(tmp_path / "scored" / "results" / "tiny" / "animals.test.json", {"mine": 1})
    twin = shutil.copytree(model, tmp_path / "twin" / "tiny")
    own = collection(tmp_path / "own", 60)
    write_lines(own / "corpus.jsonl", ({"_id": f"q{n}", "text": answer(n)} for n in range(48)))
    lines = [f"q{n}\tq{n}\t1" for n in range(48)]
    write_text(own / "qrels" / "test.tsv", "\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    for words, said in (
        ((model, "./absent", "--data", data), "model: ./absent does not exist"),
        ((model, twin, "--data", data), "two models are called 'tiny'"),
        ((model, f"{model}/", "--data", data), "tiny/: given twice; name each model once"),
        ((model, "BM25", "--data", data), "BM25: is no model; it stands beside the others"),
        (
            (model, "--data", data, "--query-prompt", "BM25=x"),
            "prompts for 'BM25': BM25 takes none",
        ),
        ((model, "--data", data, "--data", data), "two tasks are called 'animals'"),
        ((model, "./absent", "--data", tmp_path / "none"), "--data: .*none: no such folder"),
        ((model, "--data", data, "--out", "old"), "another version of tercet.*format 0"),
        ((model, "--data", data, "--out", "theirs"), "format unknown.*choose another --out"),
        ((model, "--data", data, "--out", "odd"), "format unknown.*choose another --out"),
        ((model, "--data", data, "--out", "kept"), "kept: holds results of `tercet evaluate`"),
        ((model, "--data", data, "--out", data), "holds a BEIR folder .corpus.jsonl"),
        ((model, "--data", data, "--out", model), "holds a model .modules.json"),
        ((model, "--data", data, "--out", "mine"), "report.html: is there without results.json"),
        ((model, "--data", data, "--out", "drawn"), "plots: is there without results.json"),
        ((model, "--data", data, "--out", "scored"), "animals.test.json: not a result"),
        ((model, "--data", data, "--out", "mine/report.html"), "cannot write there .it is a file"),
        ((model, "--data", data, "--dims", "8,x"), "--dims: whole numbers above 0"),
        ((model, "--data", data, "--dims", "0"), "--dims: whole numbers above 0"),
        ((model, "--data", data, "--index"), "--index: no collection has 1,000 documents"),
        ((model, "--data", data, "--query-prompt", "ask: "), "--query-prompt: MODEL=TEXT"),
        ((model, "--data", data, "--query-prompt", "big=ask: "), "prompts for 'big': no such"),
        ((model, "--data", data, "--rerank", "./absent"), "--rerank.*absent"),
        ((model, "--data", data, "--trained-on", "absent.jsonl"), "absent.jsonl"),
        ((model, "--data", own, "--skip-self"), "would leave the answer out"),
    ):
        status, _, err = run("compare", *words)
        lines = [line for line in err.splitlines() if line.startswith("error:")]
        assert status == 2 and re.search(said, err) and len(lines) == 1, err
        assert "Traceback" not in err
    monkeypatch.setitem(sys.modules, "faiss", None)
    status, _, err = run("compare", model, "--data", comparison.folders[1], "--index")
    assert status == 2 and "pip install 'tercet[ann]'" in err


def test_speed_is_measured_outside_any_launch_and_without_the_hub(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a launcher says would make the process wait for others."""
    for name, value in (("PMI_SIZE", "2"), ("OMPI_COMM_WORLD_SIZE", "2"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    here = efficiency.environment_apart(ModelConfig(path=comparison.models[0]))
    assert here["HF_HUB_OFFLINE"] == "1" and not efficiency.LAUNCH & here.keys()
    assert here["PATH"] == os.environ["PATH"]
    assert "HF_HUB_OFFLINE" not in efficiency.environment_apart(ModelConfig(path="nobody/nothing"))


def test_ranges_are_stored_with_the_model_and_used(
    comparison: Comparison, run: Run, tmp_path: Path
) -> None:
    model = shutil.copytree(comparison.models[0], tmp_path / "own")
    status, out, err = run("calibrate", model, "--data", comparison.folders[0], "--dims", "8,64")
    assert status == 0, err
    assert out == f"ranges: {model / quantise.FILE}\n"
    stored = json.loads((model / quantise.FILE).read_text())
    assert list(stored["widths"]) == ["32", "8"]
    again = ("calibrate", model, "--data", comparison.folders[0], "--dims", "16")
    status, _, err = run(*again[:-1], "48", "--overwrite")
    assert status == 2 and "--dims: 48 shortens nothing; give less than 32" in err, err
    status, _, err = run(*again)
    assert status == 2 and "the model has ranges" in err, err
    assert json.loads((model / quantise.FILE).read_text()) == stored
    status, _, err = run(*again[:-1], "8", "--overwrite")
    assert status == 0, err
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


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        ("embedded", "few.txt", "embedded: .* export it to one first"),
        ("./absent", "few.txt", "model: ./absent does not exist"),
        ("tny", "few.txt", r"model: tny is no folder.*did you mean 'tiny'\?"),
        ("tiny", "fw.txt", "fw.txt: no such file"),
    ],
)
def test_a_mistake_in_calibrating_is_one_line(
    model: str, data: str, said: str, run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "tiny")
    (tmp_path / "few.txt").write_text("a text\n")
    status, _, err = run("calibrate", model, "--data", data)
    assert status == 2 and err.startswith("error: ") and re.search(said, err), err
    assert err.count("\n") == 1 and not (tmp_path / "tiny" / quantise.FILE).exists()
