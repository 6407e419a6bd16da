"""The exceptions that mean: no fault of the program, here is what to do."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

SAVED = 75  # EX_TEMPFAIL of sysexits.h: stopped when asked, all saved; the same command goes on
LOST = 69  # EX_UNAVAILABLE: another process of the launch has gone


class UserError(Exception):
    """A mistake in what the user gave: one line saying what, where, and what to do.

    The command line prints it and exits with status 2; from Python it is an ordinary exception.
    """


@contextmanager
def about(key: str) -> Iterator[None]:
    """Put the config key that a mistake in the block comes from before its message."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def did_you_mean(name: str, names: Iterable[str], otherwise: str, cutoff: float = 0.6) -> str:
    """The end of a complaint about a misspelt `name`: the nearest of `names`, or `otherwise`.

    >>> did_you_mean("train.epoch", ["train.epochs", "batch.size"], "give a key")
    "did you mean 'train.epochs'?"
    """
    near = difflib.get_close_matches(name, sorted(names), n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else otherwise


class Stopped(Exception):
    """A run that ended before its last step, and can be gone on with by the same command.

    The command line prints it and exits with `status`: `SAVED` or `LOST`.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
