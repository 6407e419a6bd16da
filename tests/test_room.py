"""Out of memory: smaller micro-batches, the same step again, the bits of a step begun like that."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tercet.configs import ModelConfig, load
from tercet.errors import UserError
from tercet.memory import is_out_of_memory
from tercet.models import encode, load_encoder
from tercet.train import finetune, loop, sizing, step
from tercet.train.tracking import read_log
from tests.conftest import answer, question, weights
from tests.workers import faults
from tests.workers.launch import ROOT, run_jobs

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = 60  # padded tokens that fit from step 3 on; the recipe says 120


def options(tiny_model: Path, pairs: Path, *more: str) -> list[str]:
    where = [f"model.path={tiny_model}", f"data.train={pairs}", "train.learning_rate=0.001"]
    sizes = ["batch.micro_tokens=120", "batch.keep_tokens=0", "batch.size=16", "train.steps=4"]
    return [*where, *sizes, "train.dropout=0.2", "loss.learn_temperature=true", *more]


@pytest.fixture
def small_from_step_3(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = loop.gradient_in_room

    def smaller(run: loop.Run, batch: Any) -> Any:
        if run.step == 2:
            run.micro_tokens = SMALL
        return plain(run, batch)

    monkeypatch.setattr(loop, "gradient_in_room", smaller)


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What faults replace comes back after the test."""
    for name in ("forward", "objective"):
        monkeypatch.setattr(loop, name, getattr(loop, name))


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("phase", ["forward", "loss", "backward"])
def test_the_step_is_replayed_bit_for_bit(
    phase: str,
    tiny_model: Path,
    pairs: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = options(tiny_model, pairs)
    faults.limit_memory(2, SMALL, phase)
    short = finetune(load("tiny", [f"output={tmp_path / 'short'}", *words]))
    assert "step 3: out of memory; once more with micro-batches of 60" in capsys.readouterr().err
    lines = read_log(tmp_path / "short" / "run.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 3, 4]
    assert lines[2] == {"step": 3, "out_of_memory": True, "micro_tokens": 60, "keep_tokens": 0}
    request.getfixturevalue("small_from_step_3")
    small = finetune(load("tiny", [f"output={tmp_path / 'small'}", *words]))
    a, b = weights(short.last), weights(small.last)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert lines[-1]["loss"] == read_log(tmp_path / "small" / "run.jsonl")[-1]["loss"]


@pytest.mark.usefixtures("restored")
def test_what_never_fits_is_given_up(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    faults.limit_memory(1, 0)
    with pytest.raises(UserError, match="step 2 does not fit into memory.*of 7 tokens either"):
        finetune(load("tiny", [f"output={tmp_path}", *options(tiny_model, pairs)]))


def test_one_process_without_room_makes_all_replay(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    """The other one has room, and would wait for ever in a collective."""

    def job(
        name: str, at: int | None, sharded: bool = False, ends: bool = False, **how: Any
    ) -> dict[str, Any]:
        return {
            "world": 2,
            "recipe": str(ROOT / "configs" / "tiny.yaml"),
            "set": [f"output={tmp_path / name}", *options(tiny_model, pairs)],
            "fault": {"kind": "memory", "step": 2, "at": at, **how},
            "said": str(tmp_path / f"{name}."),
            "sharded": sharded,
            "command": ends,
            "may_fail": ends,
        }

    phases = ("forward", "loss", "backward")
    both = [job("both", None, tokens=SMALL)]
    one = [job(phase, 1, tokens=SMALL, phase=phase) for phase in phases]
    sharded = job("sharded", 1, sharded=True, ends=True, tokens=SMALL)
    reduced = job("reduced", 1, ends=True, tokens=SMALL, phase="reduction")
    *_, first, second = run_jobs([*both, *one, sharded, reduced], tmp_path)
    expected = weights(tmp_path / "both" / "checkpoints" / "step-00000004")
    for phase in phases:
        found = weights(tmp_path / phase / "checkpoints" / "step-00000004")
        assert all(torch.equal(expected[name], found[name]) for name in expected), phase
    for name, ended in (("sharded", first), ("reduced", second)):
        assert 0 not in ended
        said = (tmp_path / f"{name}.0").read_text()
        assert "process 1 is out of memory where the others cannot wait" in said


def test_a_run_goes_on_with_what_was_left_of_its_sizes(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    """Out of memory in step 3, killed in step 5: the process that goes on has all the room."""

    def job(name: str, kill: int | None = None, full: bool = True) -> dict[str, Any]:
        more = ["batch.keep_tokens=200", "train.steps=6", "train.save_every=1"]
        return {
            "world": 1,
            "recipe": str(ROOT / "configs" / "tiny.yaml"),
            "set": [f"output={tmp_path / name}", *options(tiny_model, pairs), *more],
            "fault": {"kind": "memory", "step": 2, "tokens": SMALL} if full else None,
            "kill_after": kill,
        }

    run_jobs([job("whole"), job("killed", kill=4), job("killed", full=False)], tmp_path)
    last = [tmp_path / name / "checkpoints" / "step-00000006" for name in ("whole", "killed")]
    a, b = map(weights, last)
    assert all(torch.equal(a[name], b[name]) for name in a)
    for path in last:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        assert (state["micro_tokens"], state["keep_tokens"]) == (60, 100)


def test_a_batch_of_texts_is_halved_until_it_fits(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_encoder(ModelConfig(path=str(tiny_model)))
    texts = [f"{question(n)} {answer(n)}" for n in range(24)]
    expected = encode(model, texts, "query")
    plain, seen = model.forward, []

    def small(features: dict[str, Any], *given: Any, **named: Any) -> Any:
        seen.append(features["input_ids"].numel())
        if seen[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(features, *given, **named)

    monkeypatch.setattr(model, "forward", small)
    most = 100
    np.testing.assert_allclose(encode(model, texts, "query"), expected, atol=1e-6)
    assert max(seen) > most and sum(size <= most for size in seen) >= 4
    most = 3
    with pytest.raises(UserError, match="a text of .* tokens does not fit.*model.max_length"):
        encode(model, texts, "query")


def test_what_cannot_fit_is_not_tried(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    plain = sizing._speed

    def speed(*given: Any) -> float:
        tried.append(given[-1])
        return plain(*given) * 10 ** len(tried)  # so that going on always pays

    monkeypatch.setattr(sizing, "_speed", speed)
    monkeypatch.setitem(sizing.SMALLEST, "cpu", 64)
    each = 20_000.0
    monkeypatch.setattr(sizing, "bytes_per_token", lambda *_: each)
    monkeypatch.setattr(sizing, "free_bytes", lambda *_: int(300 * each * sizing.SPARE))
    words = options(tiny_model, pairs, "batch.micro_tokens=auto", "train.steps=1")
    finetune(load("tiny", [f"output={tmp_path}", *words]))
    assert tried == [64, 128, 256]


@pytest.mark.parametrize("place", ["objective", "gather"])
def test_one_process_replays_whatever_had_no_room(
    place: str, tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors of a guide that are moved to the device, or what is allocated between two phases."""
    owner, name = {"objective": (loop, "objective"), "gather": (step, "_gather")}[place]
    plain, failed = getattr(owner, name), []

    def once(*given: Any) -> Any:
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(*given)

    monkeypatch.setattr(owner, name, once)
    finetune(load("tiny", [f"output={tmp_path}", *options(tiny_model, pairs)]))
    assert [line["step"] for line in read_log(tmp_path / "run.jsonl")] == [1, 1, 2, 3, 4]


def test_no_size_beyond_the_batch_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would all do the same work, and noise would choose among them."""
    tried: list[int] = []
    monkeypatch.setattr(
        sizing, "_speed", lambda *given: tried.append(given[-1]) or 10 ** len(tried)
    )
    monkeypatch.setitem(sizing.SMALLEST, "cpu", 64)
    layer, lengths = torch.nn.Linear(8, 8), np.full(32, 8)

    def forward(micro: Any) -> torch.Tensor:
        return layer(torch.ones(len(micro), 8))

    assert sizing.choose_micro_tokens(Accelerator(cpu=True), layer, forward, lengths) == 256
    assert tried == [64, 128, 256]


def test_a_graph_is_measured_at_a_size_that_fits() -> None:
    layer, tried = torch.nn.Linear(32, 32), []
    lengths = np.full(64, 8)

    def forward(micro: Any) -> torch.Tensor:
        tried.append(len(micro) * 8)
        if tried[-1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return layer(torch.ones(tried[-1], 32)).tanh().view(len(micro), -1)

    each = sizing.bytes_per_token(Accelerator(cpu=True), layer, forward, lengths, 512)
    assert tried == [512, 256, 128, 64] and each == 2 * 32 * 4  # tanh's result and the input


def test_errors_that_mean_full_memory() -> None:
    full = "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: not enough memory"
    assert is_out_of_memory(RuntimeError(full)) and is_out_of_memory(MemoryError())
    elsewhere = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    assert is_out_of_memory(RuntimeError(elsewhere))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
