"""What goes wrong, at a chosen step of a chosen rank, in a process of its own."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tercet import cli, peers
from tercet.stages import mining, training
from tercet.train import loop, tracking

PLACES = {  # parts of a command, and the function that each of them is
    "command": (cli, "main"),
    "encoding": (mining, "space_of"),  # the first half of a round of mining
    "mining": (mining, "mine_asked"),  # the second
    "evaluation": (loop, "_evaluate"),
    "export": (training, "export_run"),
}
EXPECTED: list[subprocess.Popen[bytes]] = []  # who is to send this process a signal
FILES = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}


def die(step: int, number: int = signal.SIGKILL) -> None:
    """A signal in the middle of the step after `step`: the gradient is there, not yet applied."""
    _after_gradient(step, lambda: os.kill(os.getpid(), number))


def inject(rank: int, kind: str, step: int = 0, at: int | None = None, **how: Any) -> None:
    """Fault `kind`; `at` is the rank that it happens to, None for all.

    In the step after `step`, except where `how` says when.
    """
    if kind == "stuck":  # the others; one rank dies
        peers.GRACE = how.get("grace", 2.0)
        other = lambda: time.sleep(600)  # noqa: E731
        return _after_gradient(step, lambda: os.kill(os.getpid(), 9) if rank == at else other())
    if at not in (None, rank):
        peers.GRACE = 2.0
        return None
    if kind == "ports":
        os.environ[peers.PORTS] = "one"
        return None
    if kind == "writing":
        return die_writing(step, how["point"])
    if kind == "inside":
        return signal_inside(**how)
    if kind == "late":
        tracking.Tracker.finish = lambda self: _wait_for("error: ", Path(how["heard"]))
        return _after_gradient(step, _fail)
    if kind == "clock":
        loop.SAVE_SECONDS = 0.0
        return None
    if kind == "signal":
        return die(step, how["number"])
    if kind == "signals":
        return _after_gradient(step, lambda: _twice(how["number"]))
    if kind == "error":
        return _after_gradient(step, _fail)
    if kind == "memory":
        return limit_memory(step, **how)
    if kind == "nan":
        return spoil_vectors(step)
    if kind == "full disk":
        return _after_gradient(step, lambda: _no_file_beyond(how["size"]))
    if kind == "tracker":
        return use_tracker(FailingTracker())
    if kind == "no wandb":
        sys.modules["wandb"] = None  # type: ignore[assignment]
        return None
    raise ValueError(kind)


def die_writing(step: int, point: int) -> None:
    """Kill -9 at so many operations on files after the first one on the checkpoint of `step`.

    They are all that Python does with files: those inside saving a model, the syncing, the renaming
    and the deletion of old checkpoints, for which nothing in the program is changed.
    """
    name, seen = f"step-{step:08d}", [0]

    def count(event: str, given: tuple[Any, ...]) -> None:
        if event in FILES and (seen[0] or any(name in str(part) for part in given)):
            seen[0] += 1
            if seen[0] == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def note_times(path: Path) -> None:
    """One line for each call of PLACES: which place, and the seconds it took."""
    for place, (owner, name) in PLACES.items():

        def timed(*given: Any, _place: str, _plain: Callable[..., Any], **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return _plain(*given, **named)
            finally:
                with path.open("a", encoding="utf-8") as file:
                    file.write(f"{_place} {time.perf_counter() - started}\n")

        setattr(owner, name, partial(timed, _place=place, _plain=getattr(owner, name)))


def signal_inside(
    place: str, call: int, share: float = 0.0, times: str = "", number: int = signal.SIGKILL
) -> None:
    """A signal in call `call` (from 0) of a place, from outside, when a share of it has passed.

    As long as the call is by `times`, a file that `note_times` wrote in a run without faults. 0 is
    the call's very beginning. A process that would end earlier waits for its kill (`outlast`).
    """
    owner, name = PLACES[place]
    plain, calls = getattr(owner, name), count()

    def signalled(*given: Any, **named: Any) -> Any:
        if next(calls) == call:
            if share == 0:
                os.kill(os.getpid(), number)
            else:
                lines = [line.split() for line in _text(Path(times)).splitlines()]
                seconds = [float(took) for where, took in lines if where == place]
                _signal_later(share * seconds[call], number)
        return plain(*given, **named)

    setattr(owner, name, signalled)


def _signal_later(seconds: float, number: int) -> None:
    """By a program of its own, since a fork would keep this process's locks and connections."""
    victim = os.getpid()
    told = f"time.sleep({seconds}); os.getppid() == {victim} and os.kill({victim}, {number})"
    EXPECTED.append(subprocess.Popen([sys.executable, "-SEc", f"import os, time; {told}"]))


def outlast() -> None:
    """Wait for a kill that is still to come: it then hits the very end of the command."""
    for sender in EXPECTED:
        sender.wait()


def slow_down(seconds: float) -> None:
    """Let every step last longer, so that chosen moments fall into it."""
    plain = loop.gradient_of

    def slow(*given: Any) -> Any:
        time.sleep(seconds)
        return plain(*given)

    loop.gradient_of = slow


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def limit_memory(step: int, tokens: int, phase: str = "forward") -> None:
    """Micro-batches of more than so many padded tokens do not fit, from the step after `step` on.

    phase: of what fails, the `forward` without a graph, the `loss`, the `backward`'s second
    forward, or the `reduction`, which the last micro-batch's backward is.
    """
    plain, plain_objective = loop.forward, loop.objective
    seen: dict[str, Any] = {"over": False}

    def forward(run: loop.Run, batch: Any, micro: Any) -> Any:
        cost = loop.plan_of(run, batch).cost(micro)
        graph = torch.is_grad_enabled()
        over = run.step >= step and cost > tokens
        seen["over"] |= over
        if over and ((phase == "forward" and not graph) or (phase == "backward" and graph)):
            raise torch.OutOfMemoryError("CUDA out of memory")
        vectors = plain(run, batch, micro)
        if phase == "reduction" and run.step >= step and graph:
            mine = loop.plan_of(run, batch).ranks[run.accelerator.process_index]
            if np.array_equal(micro, mine[-1]):
                vectors.register_hook(full)
        return vectors

    def full(gradient: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def objective(*given: Any) -> Any:
        made = plain_objective(*given)

        def loss(*vectors: Any) -> Any:
            over, seen["over"] = seen["over"], False
            if over and phase == "loss":
                raise torch.OutOfMemoryError("CUDA out of memory")
            return made(*vectors)

        return loss

    loop.forward, loop.objective = forward, objective


def spoil_vectors(step: int) -> None:
    """The vectors of the step after `step` are NaN, and with them all that comes of them."""
    plain = loop.forward

    def forward(run: loop.Run, batch: Any, micro: Any) -> Any:
        found = plain(run, batch, micro)
        return found * float("nan") if run.step == step else found

    loop.forward = forward


class FailingTracker:
    """As Weights & Biases is when it can be reached no more."""

    name = "wandb"

    def log(self, *_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    def finish(self) -> None:
        raise ConnectionError("no route to host")


def use_tracker(tracker: Any) -> None:
    """Instead of Weights & Biases, where a run asks for that."""

    def start(self: tracking.Tracker, config: Any) -> None:
        self.accelerator.trackers = [tracker]

    tracking.Tracker._start_wandb = start


def _no_file_beyond(size: int) -> None:
    """As a full disk: the kernel refuses more bytes in one file."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def _after_gradient(step: int, act: Callable[[], object]) -> None:
    plain = loop.gradient_of

    def faulty(run: loop.Run, batch: Any, cut: Any) -> Any:
        found = plain(run, batch, cut)
        if run.step == step:
            act()
        return found

    loop.gradient_of = faulty


def _wait_for(text: str, path: Path) -> None:
    """Return once `text` stands in the file; a minute at most."""
    for _ in range(600):
        if text in _text(path):
            return
        time.sleep(0.1)


def _twice(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(1.2)
    os.kill(os.getpid(), number)
    time.sleep(60)


def _fail() -> None:
    raise ValueError("a strange thing happened")
