"""What a reader does with a mistake in the data: stop at it, or note it and read on."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from tercet.errors import UserError


class Complain(Protocol):
    """Told of every mistake; if it returns, the reader leaves the faulty piece out and goes on."""

    def __call__(self, kind: str, message: str, count: int = 1) -> None: ...


def refuse(kind: str, message: str, count: int = 1) -> None:
    """Stop at the first mistake: what every reader does unless told otherwise."""
    raise UserError(message)


@dataclass(frozen=True)
class Problem:
    """All mistakes of one kind."""

    kind: str
    count: int
    first: str  # the complaint about the first of them


class Problems:
    """Collect mistakes instead of stopping, so that one reading finds them all.

    >>> problems = Problems()
    >>> problems("empty text", "line 3 is empty"); problems("empty text", "line 9 is empty")
    >>> list(problems)
    [Problem(kind='empty text', count=2, first='line 3 is empty')]
    """

    def __init__(self) -> None:
        self._found: dict[str, Problem] = {}

    def __call__(self, kind: str, message: str, count: int = 1) -> None:
        known = self._found.get(kind, Problem(kind, 0, message))
        self._found[kind] = replace(known, count=known.count + count)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._found.values())
