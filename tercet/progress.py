"""Progress on standard error: a bar on a terminal, plain lines elsewhere, main process only."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tercet.secret import masked

_CONSOLE = Console(stderr=True, highlight=False)  # one, so that lines and nested bars agree
PLAIN_EVERY = 15.0  # seconds between plain lines: enough to see life, few enough to read a log

_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


class Advance(Protocol):
    """Report that `done` more units are finished, with an optional short note."""

    def __call__(self, done: int = 1, note: str = "") -> None: ...


def is_main_process() -> bool:
    """Whether this process may print (launchers set RANK; a lone process has none)."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str) -> None:
    """One plain line for the person at the terminal, from the main process only."""
    if is_main_process():
        _CONSOLE.print(masked(text), markup=False, soft_wrap=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Let `progress` show nothing within the block: for what is timed, or done in a moment, often.

    In this thread; others that the block starts show what they do.
    """
    before = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(before)


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """Show how far work of `total` units has come.

    with progress("encode", len(texts)) as advance: ... advance(32)
    """
    if _QUIET.get() or not is_main_process():
        yield lambda done=1, note="": None
    elif _CONSOLE.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=_CONSOLE) as bar:
            task = bar.add_task(title, total=total, note="")
            yield lambda done=1, note="": bar.update(task, advance=done, note=note)
    else:
        yield _PlainLines(title, total)


class _PlainLines:
    """The same report for logs and pipes: a line now and then, and one at the end."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done = title, total, 0
        self.started = self.said = time.monotonic()

    def __call__(self, done: int = 1, note: str = "") -> None:
        self.done += done
        now = time.monotonic()
        if now - self.said >= PLAIN_EVERY or (
            self.done >= self.total and now - self.started >= PLAIN_EVERY
        ):
            self.said = now
            say(f"{self.title}: {self.done}/{self.total} in {now - self.started:.0f} s  {note}")
