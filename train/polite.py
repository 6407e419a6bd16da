"""SIGTERM and SIGINT: a step is finished and saved before the run ends."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from tercet.errors import SAVED, Stopped
from tercet.progress import is_main_process

SIGNALS = (signal.SIGTERM, signal.SIGINT)
WHAT_NOW = "stopping after this step, once it is saved; a second one stops at once"
SAME = 1.0  # seconds: a terminal and a launcher that pass on the same Ctrl-C are one asking


@contextmanager
def politely() -> Iterator[Callable[[], bool]]:
    """In the block SIGTERM and SIGINT are only noted; gives what tells whether one has come.

    A second one, at least a second later, does what it does elsewhere: it ends the process at
    once, or, in a collective or a library's call, when that returns: only then does Python run.
    Outside the main thread, where Python takes no signals, nothing is changed.
    """
    asked: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not asked:
            asked.append(now)
            if is_main_process():
                _say_at_once(f"\n{signal.Signals(number).name}: {WHAT_NOW}\n")
        elif now - asked[0] >= SAME:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    before: dict[int, Any] = {}
    try:
        for number in SIGNALS:
            before[number] = signal.signal(number, note)
    except ValueError:
        pass
    try:
        yield lambda: bool(asked)
    finally:
        if asked:  # the same asking may still be on its way a second time
            time.sleep(max(0.0, asked[0] + SAME - time.monotonic()))
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped(step: int, steps: int) -> Stopped:
    """What ends a run that was asked to stop, once its last step, if it had any, is saved."""
    when = f"after step {step} of {steps}, which is saved" if step else "before the first step"
    return Stopped(f"stopped as asked {when}; run the same command again to go on", SAVED)


def _say_at_once(text: str) -> None:
    """Past every buffer and lock: the signal may have come while one of them was held."""
    with suppress(OSError, ValueError):  # nobody to tell
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
