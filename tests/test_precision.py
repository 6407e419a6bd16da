"""Half precision: what is computed in it, and what never is."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig, load
from tercet.errors import UserError
from tercet.models import encode, load_encoder
from tercet.train import finetune
from tercet.train.loop import Run, gradient_of, plan_of, train
from tercet.train.rows import read_rows
from tercet.train.setup import Read, _set_up
from tercet.train.tracking import read_log
from tests.conftest import question
from tests.workers.launch import ROOT, run_jobs

pytestmark = pytest.mark.usefixtures("one_thread")


def options(tiny_model: Path, pairs: Path, out: Path, *more: str) -> list[str]:
    where = [f"output={out}", f"model.path={tiny_model}", f"data.train={pairs}"]
    return [*where, "train.learning_rate=0.001", "train.dropout=0.0", *more]


def dtypes(checkpoint: Path) -> set[torch.dtype]:
    weights = load_file(checkpoint / "model" / "model.safetensors")
    return {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_log(out / "run.jsonl")]


def test_bf16_computes_in_half_and_keeps_whole_weights(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    for precision in ("no", "bf16"):
        settings = options(tiny_model, pairs, tmp_path / precision, "train.steps=8")
        trained = finetune(load("tiny", [*settings, f"train.mixed_precision={precision}"]))
        assert dtypes(trained.last) == {torch.float32}
        averages = load_file(trained.last / "trainer.safetensors")
        assert {tensor.dtype for tensor in averages.values()} == {torch.float32}
    full, found = losses(tmp_path / "no"), losses(tmp_path / "bf16")
    assert found == pytest.approx(full, rel=0.02)  # bf16 keeps 8 bits
    assert found != pytest.approx(full, rel=1e-6)
    assert found[-1] < found[0]


def test_a_bf16_run_goes_on_where_it_ended(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    """Stopped after step 4, then called again."""
    more = ["train.mixed_precision=bf16", "train.steps=8", "train.eval_every=4"]
    whole = finetune(load("tiny", options(tiny_model, pairs, tmp_path / "whole", *more)))
    more.append("train.save_every=2")
    config = load("tiny", options(tiny_model, pairs, tmp_path / "cut", *more))

    def stop(encoder: SentenceTransformer) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(config, evaluate=stop)
    cut = finetune(config)
    one, other = (load_file(t.last / "model" / "model.safetensors") for t in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_bf16_checkpoint_is_trained_as_float32_unless_told_otherwise(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    saved = SentenceTransformer(str(tiny_model), device="cpu").bfloat16()
    saved.save(str(tmp_path / "half"), create_model_card=False)
    config = json.loads((tmp_path / "half" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "bfloat16"
    settings = options(tmp_path / "half", pairs, tmp_path / "run", "train.steps=2")
    assert dtypes(finetune(load("tiny", settings)).last) == {torch.float32}
    told = [*settings, f"output={tmp_path / 'told'}", "model.dtype=bfloat16"]
    assert dtypes(finetune(load("tiny", told)).last) == {torch.bfloat16}


def test_half_weights_and_mixed_precision_are_not_mixed(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    words = ["model.dtype=bfloat16", "train.mixed_precision=bf16"]
    with pytest.raises(UserError, match=r"bf16 needs weights in float32, model.dtype is bfloat16"):
        finetune(load("tiny", options(tiny_model, pairs, tmp_path / "run", *words)))


def test_what_is_evaluated_is_what_is_saved(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    """In float32, though training computes in bfloat16."""
    seen = []

    def look(encoder: SentenceTransformer) -> dict[str, float]:
        seen.append(encode(encoder, [question(3)], "query"))
        return {"ndcg@10": 0.5}

    words = options(
        tiny_model, pairs, tmp_path / "run", "train.steps=2", "evaluation.metric=ndcg@10"
    )
    trained = finetune(load("tiny", [*words, "train.mixed_precision=bf16"]), evaluate=look)
    saved = load_encoder(ModelConfig(path=str(trained.last / "model")))
    assert np.array_equal(seen[-1], encode(saved, [question(3)], "query"))


def test_sharded_bf16_computes_as_ddp_does(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    """The gradient of many micro-batches, which half precision would add up badly."""

    def job(name: str, precision: str, **how: bool) -> dict[str, Any]:
        many = ["batch.size=48", "batch.micro_tokens=16", "train.steps=1"]
        settings = options(tiny_model, pairs, tmp_path / name, *many)
        settings.append(f"train.mixed_precision={precision}")
        return {"world": 2, "recipe": str(ROOT / "configs" / "tiny.yaml"), "set": settings} | how

    jobs = [job("full", "no"), job("half", "bf16"), job("sharded", "bf16", sharded=True)]
    run_jobs(jobs, tmp_path)
    full, half, sharded = (
        load_file(tmp_path / name / "checkpoints/step-00000001/trainer.safetensors")
        for name in ("full", "half", "sharded")
    )
    # Adam's first average is a tenth of the gradient.
    gradients = [
        torch.cat([found[name].flatten() for name in sorted(full) if name.endswith("/exp_avg")])
        for found in (full, half, sharded)
    ]
    apart = [float((g - gradients[1]).norm() / gradients[1].norm()) for g in gradients]
    assert apart[0] > 1e-3 and apart[2] < 1e-5, apart


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine's device takes fp16")
def test_fp16_is_refused_where_it_would_be_ignored(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    settings = options(tiny_model, pairs, tmp_path / "run", "train.mixed_precision=fp16")
    with pytest.raises(UserError, match=r"train.mixed_precision: fp16 .* cpu"):
        finetune(load("tiny", settings))


def scaled(tiny_model: Path, pairs: Path, out: Path, scale: float | None) -> Run:
    """A run whose gradients pass through torch's scaler, as under fp16; None: without it."""
    more = ["loss.learn_temperature=true", "train.steps=4", "batch.keep_tokens=100"]
    config = load("tiny", options(tiny_model, pairs, out, *more))
    out.mkdir()
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True)
    if scale is not None:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    rows = read_rows(config.data)
    run = _set_up(config, accelerator, config.model, Read(rows, rows, {}))
    if scale is not None:  # from here on it acts as under fp16; the arithmetic stays in float32
        accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
        accelerator.autocast_handler = AutocastKwargs(enabled=False)  # type: ignore[assignment]
    return run


def test_the_scaler_changes_no_step(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    """Loss scaling by a power of two is exact: every gradient is scaled, and unscaled, once."""
    plain = scaled(tiny_model, pairs, tmp_path / "plain", None)
    train(plain)
    other = scaled(tiny_model, pairs, tmp_path / "scaled", 1024.0)
    train(other)
    assert plain.log_temperature is not None and other.log_temperature is not None
    assert plain.log_temperature.item() == other.log_temperature.item()
    for a, b in zip(plain.encoder.parameters(), other.encoder.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_overflow_skips_the_step_and_lowers_the_scale(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    run = scaled(tiny_model, pairs, tmp_path / "run", 1024.0)
    before = [p.detach().clone() for p in run.encoder.parameters()]
    batch = run.batches(0)
    gradient_of(run, batch, plan_of(run, batch))
    trained = next(p for p in run.encoder.parameters() if p.grad is not None)
    trained.grad.fill_(math.inf)  # type: ignore[union-attr]
    run.optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, run.encoder.parameters(), strict=True))
    assert run.accelerator.scaler is not None
    assert run.accelerator.scaler.get_scale() == 512.0
