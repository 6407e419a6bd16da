"""benchmarks/pruning.py: what is cut out of a model, what that saves, and whether it pays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import pruning
from benchmarks.pruning import FEWER, WHOLE, halve_heads, verdict, zero_least
from tercet.configs import ModelConfig
from tercet.data import RetrievalTask, Texts
from tercet.export.graph import write_graph
from tercet.models import encode, load_encoder
from tercet.report.table import fill_marked
from tests.conftest import NAMES, answer, question
from tests.published import as_shown

pytestmark = pytest.mark.usefixtures("one_thread")


def test_half_of_the_heads_are_taken_out(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

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
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

    heads = "half of the heads"
    settings: dict[str, Any] = {"EMBEDDED": str(tiny_model), "MAX_LENGTH": 32, "QUERIES": 3}
    settings["CUTS"] = {name: pruning.CUTS[name] for name in (WHOLE, heads)}
    for name, value in settings.items():
        monkeypatch.setattr(pruning, name, value)
    ids = [str(n) for n in range(len(NAMES))]
    documents, queries = (Texts(ids, [f(n) for n in range(len(ids))]) for f in (answer, question))
    task = RetrievalTask("pets", "test", documents, queries, {n: {n: 1} for n in ids})
    found = pruning.measure(task, 1)
    graphs = [f"{cut}, {form}" for cut in (WHOLE, heads) for form in ("fp32", "int8")]
    assert list(found["query_ms"]) == graphs
    for name, delta in found["difference"].items():
        change = found["ndcg@10"][name] - found["ndcg@10"]["whole, fp32"]
        assert delta["mean"] == pytest.approx(change, abs=1e-9)
        assert delta["low"] <= delta["mean"] <= delta["high"]
    pages, _ = as_shown("pruning", found, tmp_path)
    table = pages["pruning"]
    first = next(line for line in table.splitlines() if line.startswith("| whole, fp32 |"))
    assert "+0.000 [+0.000, +0.000]" in first and first.count("| 1.00 |") == 2


def test_pruning_is_judged_beside_fewer_layers() -> None:
    # name: times faster for a query and for documents, nDCG@10
    graphs = {
        f"{WHOLE}, fp32": (1.0, 1.0, 0.80),
        "heads, fp32": (1.25, 1.0, 0.77),  # a fifth of the time: between five layers and four
        "zeros, fp32": (1.01, 0.99, 0.80),
        "5 of 6 layers, fp32": (1.1, 1.1, 0.79),
        "4 of 6 layers, fp32": (1.5, 1.5, 0.71),
        "3 of 6 layers, fp32": (2.0, 1.9, 0.20),
    }
    names = ("query_times_faster", "document_times_faster", "ndcg@10")
    columns = zip(*graphs.values(), strict=True)
    found = {
        name: dict(zip(graphs, column, strict=True))
        for name, column in zip(names, columns, strict=True)
    }
    text = verdict(found)
    assert "| heads, fp32 | 0.030 | 1.25 | 0.046 | 1.00 | - | yes |" in text
    assert "| zeros, fp32 | 0.000 | 1.01 | - | 0.99 | - | no |" in text
    assert text.endswith("at their speed: heads, fp32.") and not any(cut in text for cut in FEWER)
    found["ndcg@10"]["heads, fp32"] = 0.75
    assert "| heads, fp32 | 0.050 | 1.25 | 0.046 | 1.00 | - | no |" in verdict(found)
    assert "None is 1.05 times as fast" in verdict(found)
    page = Path(__file__).parent.parent / "docs" / "decisions.md"
    assert text in fill_marked(page.read_text(encoding="utf-8"), "pruning", text)
