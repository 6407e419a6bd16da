"""What 8 bits are made of: a scale for each output, and 7 bits where products would overflow."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tercet.configs import ModelConfig
from tercet.export import cpu, variants
from tercet.export.onnx_card import onnx_section
from tercet.export.runtime import OnnxEncoder
from tercet.models import load_encoder
from tests.conftest import answer, question

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")
PROCESSORS = {  # flags in /proc/cpuinfo, machine -> VNNI, and whether sums overflow
    "old x86": ("fpu avx avx2 avx512f", "x86_64", False, True),
    "Cascade Lake": ("fpu avx2 avx512f avx512_vnni", "x86_64", True, False),
    "Alder Lake": ("fpu avx2 avx_vnni", "AMD64", True, False),
    "no list of flags": ("", "x86_64", False, True),
    "ARM": ("", "aarch64", False, False),
}


def processor(monkeypatch: pytest.MonkeyPatch, flags: str, machine: str) -> None:
    monkeypatch.setattr(cpu, "cpu_field", lambda name: flags if name == "flags" else "A CPU")
    monkeypatch.setattr(cpu.platform, "machine", lambda: machine)


@pytest.mark.parametrize("kind", PROCESSORS)
def test_which_processors_overflow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags, machine, vnni, overflows = PROCESSORS[kind]
    processor(monkeypatch, flags, machine)
    assert (cpu.has_vnni(), cpu.int8_saturates()) == (vnni, overflows)


def products(path: Path) -> list[tuple[Any, Any]]:
    """Weights (in, out) of every product in an int8 graph, and their scales."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    weights = [n.input[1] for n in graph.node if n.op_type in ("MatMulInteger", "QLinearMatMul")]
    scales = [tensors.get(name.replace("_quantized", "_scale")) for name in weights]
    return [(tensors.get(name), scale) for name, scale in zip(weights, scales, strict=True)]


@pytest.mark.parametrize("kind", ["old x86", "Cascade Lake"])
def test_bits_and_scales(
    kind: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, machine, _, overflows = PROCESSORS[kind]
    processor(monkeypatch, flags, machine)
    model = load_encoder(ModelConfig(path=str(tiny_model)))
    model.save(str(tmp_path), create_model_card=False)
    variants.write_onnx(model, tmp_path, int8=True)
    found = [(w, s) for w, s in products(tmp_path / variants.INT8) if w is not None]
    assert len(found) == 2 * 6  # two layers of query, key, value, output and two of the MLP
    for weight, scale in found:
        assert weight.dtype == np.int8 and scale.shape == (weight.shape[1],)
        assert len(np.unique(scale)) > 1  # a scale for each output
        assert np.abs(weight.astype(int)).max() in ((63, 64) if overflows else (127, 128))
    small = OnnxEncoder(tmp_path, variants.INT8)
    whole = OnnxEncoder(tmp_path)
    texts = [*map(question, range(8)), *map(answer, range(8))]
    a, b = whole(texts, "document"), small(texts, "document")
    assert (a * b).sum(axis=1).mean() > 0.98


def test_the_card_warns_of_eight_bits() -> None:
    quality = {"mean": 0.5, "low": 0.4, "high": 0.6}
    measured = {
        "cosine": {"min": 1.0, "mean": 1.0},
        "max_difference": 0.0,
        "tasks": {"t": {"before": quality, "after": quality, "difference": quality}},
        "megabytes": 1.0,
        "load_seconds": 1.0,
        "latency_ms": {"p50": 1.0, "p95": 1.0},
        "texts_per_second": 1.0,
        "kept": True,
    }

    def card(reduce_range: bool, quantisation: str) -> str:
        machine = {"processor": "A CPU", "threads": 1, "cores": 1, "vnni": True}
        parity = {
            "opset": 17,
            "inputs": ["input_ids"],
            "outputs": ["token_embeddings", "sentence_embedding"],
            "dimensions": 8,
            "texts": {"compared": 1},
            "machine": machine | {"reduce_range": reduce_range},
            "variants": {variants.INT8: measured | {"quantisation": quantisation}},
        }
        return onnx_section(parity)

    assert "without VNNI sums of such products overflow" in card(False, "dynamic")
    assert "overflow" not in card(True, "dynamic")
    assert "overflow" not in card(False, "rows")  # a table has no products
    assert "pools `token_embeddings`" in card(True, "rows")
