"""SIGTERM and SIGINT: a step is finished and saved before the run ends."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tercet.progress import say

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME = 1.0  # seconds: a terminal and a launcher that pass on the same Ctrl-C are one asking


@contextmanager
def politely() -> Iterator[Callable[[], bool]]:
    """In the block SIGTERM and SIGINT are only noted; gives what tells whether one has come.

    A second one, at least a second later, does what it does elsewhere: it ends the process at
    once. Outside the main thread, where Python takes no signals, nothing is changed.
    """
    asked: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not asked:
            asked.append(now)
            name = signal.Signals(number).name
            say(f"{name}: stopping after this step, once it is saved; a second one stops at once")
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
        for number, handler in before.items():
            signal.signal(number, handler)
