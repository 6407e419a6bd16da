"""Recomputing a graph is keeping it: the same bits, dropout and all.

In one process; in several and in shards it is shown in test_parity.py.
"""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tercet.configs import load
from tercet.train import finetune, loop
from tercet.train.loop import Run, gradient_of, plan_of
from tercet.train.rows import read_rows
from tercet.train.setup import Read, _set_up

pytestmark = pytest.mark.usefixtures("one_thread")


def run_of(tiny_model: Path, pairs: Path, out: Path, keep: int, *more: str) -> Run:
    where = [f"output={out}", f"model.path={tiny_model}", f"data.train={pairs}"]
    options = ["train.dropout=0.3", "batch.size=16", "batch.micro_tokens=60", *more]
    config = load("tiny", [*where, *options, f"batch.keep_tokens={keep}"])
    out.mkdir(exist_ok=True)
    rows = read_rows(config.data)
    return _set_up(config, Accelerator(cpu=True), config.model, Read(rows, rows, {}))


def gradients(run: Run, step: int) -> tuple[list[torch.Tensor], float]:
    run.step = step
    run.model.train()
    batch = run.batches(step)
    outcome = gradient_of(run, batch, plan_of(run, batch))
    found = [p.grad.clone() for p in run.model.parameters() if p.grad is not None]
    run.optimizer.zero_grad(set_to_none=True)
    return found, outcome.recomputed


def test_kept_and_recomputed_gradients_are_the_same_bits(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    kept, some, none = (
        gradients(run_of(tiny_model, pairs, tmp_path / f"{keep}", keep), 1)
        for keep in (10**6, 150, 0)
    )
    assert kept[1] == 0 < some[1] < 1 == none[1]
    for a, b, c in zip(kept[0], some[0], none[0], strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.slow
def test_a_compiled_model_draws_the_same_dropout_again(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    """The forward with a graph and the one without are two compiled programs."""
    kept, none = (
        gradients(run_of(tiny_model, pairs, tmp_path / f"{keep}", keep, "train.compile=true"), 1)
        for keep in (10**6, 0)
    )
    assert (kept[1], none[1]) == (0, 1)
    for a, b in zip(kept[0], none[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_dropout_is_drawn_anew_each_step(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    run = run_of(tiny_model, pairs, tmp_path / "run", 10**6)
    batch = run.batches(0)
    cut = plan_of(run, batch)

    def grad_at(step: int) -> torch.Tensor:
        run.step = step
        run.model.train()
        gradient_of(run, batch, cut)
        found = next(p.grad.clone() for p in run.model.parameters() if p.grad is not None)
        run.optimizer.zero_grad(set_to_none=True)
        return found

    assert torch.equal(grad_at(0), grad_at(0))
    assert not torch.equal(grad_at(0), grad_at(1))


def test_whole_runs_end_in_the_same_bits(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    ends = []
    for keep in (10**6, 0):
        where = [f"output={tmp_path / str(keep)}", f"model.path={tiny_model}"]
        more = [f"data.train={pairs}", "train.dropout=0.3", f"batch.keep_tokens={keep}"]
        ends.append(finetune(load("tiny", [*where, *more])).encoder.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_loss_scale_reaches_every_gradient_alike(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    """fp16 scales the loss up and unscales all gradients, the temperature's own included."""
    plain, scaled = (
        run_of(tiny_model, pairs, tmp_path / name, 0, "loss.learn_temperature=true")
        for name in ("plain", "scaled")
    )
    scaled.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for run in (plain, scaled):
        run.model.train()
        batch = run.batches(0)
        gradient_of(run, batch, plan_of(run, batch))
        loop.clip(run)
    assert plain.log_temperature is not None and scaled.log_temperature is not None
    torch.testing.assert_close(scaled.log_temperature.grad, plain.log_temperature.grad)
    for a, b in zip(plain.model.parameters(), scaled.model.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_the_hardest_negative_is_a_cosine_whatever_the_hardness() -> None:
    from tercet.losses import Relations, info_nce

    q = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    d = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    none = torch.zeros(0, 2, dtype=torch.int64)
    relations = Relations(torch.arange(6).repeat(2, 1).T, none, none)
    want = (q @ d.T - 9 * torch.eye(6)).amax(dim=1)
    for hardness in (0.0, 5.0):
        got = info_nce(q, d, relations, 0.05, hardness=hardness).hardest
        torch.testing.assert_close(got, want)
    assert got.tolist() == pytest.approx(want.tolist(), abs=1e-5)
