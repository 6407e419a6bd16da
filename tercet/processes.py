"""The launch: how many processes work together and which one this is, whoever started them.

Every function here but `process_index`, `process_count`, `one_process` and `launch` is a meeting:
each process of the launch has to call it, in the same order. All see one disk. One process alone
meets itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

from tercet.errors import UserError

PATIENCE = timedelta(hours=24)  # the others wait while one process encodes a shard more, or writes
Found = TypeVar("Found")


def process_index() -> int:
    """Number of this process, from 0, which is the main one."""
    return launch().process_index


def process_count() -> int:
    """How many processes the launch has; 1 without a launcher."""
    return launch().num_processes


def one_process(what: str) -> None:
    """Raise UserError under a launcher, as `what` works in one process.

    Every process has to ask: the first call joins the launch, and none joins alone.
    """
    if process_count() > 1:
        raise UserError(f"{what}: works in one process; start it without a launcher")


def wait_for_everyone() -> None:
    """Return when every process has come here."""
    launch().wait_for_everyone()


@contextmanager
def share_mistakes() -> Iterator[None]:
    """Wait for everyone after the block; a UserError of any process is then raised on all.

    Without it the others would wait for a process that has gone, and its message would be lost
    unless it is the main one's.
    """
    mistake: str | None = None
    try:
        yield
    except UserError as error:
        if process_count() == 1:
            raise
        mistake = str(error)
    if process_count() > 1:
        found: list[Any] = gather_object([mistake])
        first = next((text for text in found if text is not None), None)
        if first is not None:
            raise UserError(first)


def on_main(work: Callable[[], Found]) -> Found:
    """What `work` returns on the main process, given to all (pickled); the others wait for it."""
    answer: list[Any] = [None]
    with share_mistakes():
        if process_index() == 0:
            answer[0] = work()
    if process_count() > 1:
        broadcast_object_list(answer)
    return answer[0]


def on_any(so: bool) -> bool:
    """Whether it is so on one process at least."""
    return any(gather_object([so])) if process_count() > 1 else so


def launch() -> PartialState:
    """What Accelerate knows of it. The first call joins; an Accelerator shares it."""
    unwanted = parse_flag_from_env("ACCELERATE_USE_CPU")
    absent = torch.accelerator.current_accelerator(check_available=True) is None
    return PartialState(cpu=unwanted or absent, timeout=PATIENCE)
