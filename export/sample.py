"""The texts on which an export is compared with its checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tercet.data.code import docstring_task
from tercet.data.rows import RetrievalTask
from tercet.errors import UserError
from tercet.models import Role

EDGE_TEXTS = (  # and one longer than the maximum length: `edge_texts`
    "",  # no token but the special ones
    " \t\n\u200b",  # nothing once it is cleaned
    "a",
    "I",
    ".",
    "naïve café, Grüße aus Köln",
    "Съешь ещё этих мягких французских булок",
    "日本語のテキストと中文",
    "नमस्ते दुनिया",
    "שלום ومرحبا",
    "สวัสดีชาวโลก",
    "🙂🙃 👩\u200d🚀 🏳️\u200d🌈",
    "e\u0301 is not é",
    "def f(x):\n\treturn x ** 2  # squares",
    "https://example.org/a?b=c&d=%20",
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 20,
)
LONGEST = 8_192  # tokens: attention written out takes the square of it in memory
LEAST = 1_000  # texts beside the edge ones
STDLIB, STDLIB_PAIRS = "stdlib", 500


def edge_texts(length: int) -> list[str]:
    """The awkward texts, the last longer than `length` tokens, of which 8,192 are asked for."""
    return [*EDGE_TEXTS, "word " * (min(length, LONGEST) + 1)]


@dataclass(frozen=True)
class Sample:
    """Retrieval tasks, whose texts are compared too, and more texts."""

    tasks: tuple[RetrievalTask, ...]
    texts: tuple[str, ...]

    @property
    def parts(self) -> list[tuple[Role, Sequence[str]]]:
        """What is to be encoded: queries and documents of each task, then the texts twice."""
        parts: list[tuple[Role, Sequence[str]]] = []
        for task in self.tasks:
            parts.append(("query", task.queries.texts))
            parts.append(("document", task.documents.texts))
        return [*parts, ("query", self.texts), ("document", self.texts)]

    @property
    def size(self) -> int:
        """Number of texts, each counted in one role."""
        return len(self.texts) + sum(len(t.queries) + len(t.documents) for t in self.tasks)


def make_sample(tasks: Sequence[RetrievalTask], texts: Sequence[str], length: int) -> Sample:
    """At least 1,000 real texts and the awkward ones, for a model that reads `length` tokens.

    Without `tasks`: 500 docstrings of Python's standard library and their code, a task for any
    model, which also fills up where `tasks` and `texts` are too few.
    """
    chosen = spread(texts, LEAST)
    given = Sample(tuple(tasks), tuple(chosen))
    if not tasks or given.size < LEAST:
        if any(task.name == STDLIB for task in tasks):
            raise UserError(
                f"--data: too few texts, and the docstrings that fill up are called {STDLIB!r} as "
                "a folder is; rename it"
            )
        tasks = [*tasks, docstring_task(STDLIB, STDLIB_PAIRS)]
    return Sample(tuple(tasks), (*edge_texts(length), *chosen))


def spread(texts: Sequence[str], count: int) -> list[str]:
    """`count` of the texts, evenly over their lengths from the shortest to the longest.

    >>> spread(["ccc", "a", "eeeee", "bb", "dddd"], 3)
    ['a', 'ccc', 'eeeee']
    """
    ordered = sorted(dict.fromkeys(texts), key=len)
    if len(ordered) <= count:
        return ordered
    return [ordered[i] for i in np.linspace(0, len(ordered) - 1, count).round().astype(int)]
