"""What a search over a task is told, and what is looked at in the task before it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tercet.configs import Source, load
from tercet.configs.load import recipes
from tercet.configs.schema import Config
from tercet.data import Leakage, RetrievalTask, leakage, read_training, with_mined
from tercet.data.leaks import trained_texts
from tercet.errors import UserError, about
from tercet.evaluation import DEPTH, MAIN_METRIC, cut_of
from tercet.mining.search import MEMORY, least_bytes
from tercet.progress import say
from tercet.train.rows import read_rows


@dataclass(frozen=True)
class Search:
    """How documents are looked for, and what is kept of them."""

    depth: int = DEPTH  # documents a query
    skip_self: bool = False  # leave out the document that has the query's own id
    memory: int = MEMORY  # bytes for the candidates of the queries under way
    predictions: bool = False  # also write them as MTEB does
    rerank: str | None = None  # a cross-encoder that reads the first documents again
    rerank_depth: int = 100  # how many of them

    def __post_init__(self) -> None:
        if self.depth < cut_of(MAIN_METRIC):
            raise UserError(
                f"--depth: {self.depth} documents a query do not tell {MAIN_METRIC}; look at "
                f"{cut_of(MAIN_METRIC)} or more"
            )


PLAIN = Search()


def check(task: RetrievalTask, how: Search = PLAIN) -> None:
    """Say which queries are not scored; refuse what cannot be done as `how` asks.

    That is to leave out a document that is an answer, and to search in less memory than one block
    of queries takes.
    """
    if task.unjudged:
        total = len(task.queries) + task.unjudged + task.answerless
        say(
            f"{task.name}: {task.unjudged:,} of {total:,} queries have no judgement in split "
            f"{task.split!r} and are not scored"
        )
    if len(task.queries) == 1:
        say(f"{task.name}: 1 query is scored; chance cannot be told from it, nor an interval given")
    own = [query for query, grades in task.qrels.items() if grades.get(query, 0) > 0]
    if how.skip_self and own:
        raise UserError(
            f"{task.name}: document {own[0]!r} answers the query of the same id ({len(own)} such "
            "queries); --skip-self would leave the answer out, so do without it"
        )
    least = least_bytes(len(task.queries), len(task.documents), how.depth + how.skip_self)
    if how.memory < least:
        needed = math.ceil(least / 1e6)
        raise UserError(
            f"--search-memory: {how.memory / 1e6:,.3g} MB do not hold one block of queries of "
            f"{task.name} at --depth {how.depth:,}; give {needed}MB or a lower depth"
        )


def suited(how: Search, task: RetrievalTask) -> Search:
    """`how` for this task: without `skip_self` where no document has a query's id."""
    if how.skip_self and not set(task.queries.ids) & task.documents.index.keys():
        say(f"{task.name}: no document has the id of a query; --skip-self leaves nothing out")
        return replace(how, skip_self=False)
    return how


def leaks(tasks: Sequence[RetrievalTask], trained_on: Sequence[str]) -> dict[str, Leakage]:
    """What of each task, by name, is in the training data; empty if none is named."""
    if not trained_on:
        return {}
    texts = training_texts(trained_on)
    return {task.name: leakage(texts, task) for task in tasks}


def training_texts(trained_on: Sequence[str]) -> list[str]:
    """Every text of training data: files and BEIR folders, and what configs or recipes train on.

    A config stands for data.train with data.mined, and for all texts of data.train and data.corpus
    where vectors are learnt from texts alone. Raises UserError for data that cannot be read.
    """
    files = [path for path in trained_on if not _is_config(path)]
    with about("--trained-on"):
        texts = trained_texts(read_training([Source(path=path) for path in files])) if files else []
        for path in trained_on:
            if _is_config(path):
                texts += _texts_of(load(path), path)
    return texts


def _is_config(path: str) -> bool:
    return path.endswith((".yaml", ".yml")) or (path in recipes() and not Path(path).exists())


def _texts_of(config: Config, path: str) -> list[str]:
    data = config.data
    if not data.train and not data.corpus:
        raise UserError(
            f"{path}: this config names neither data.train nor data.corpus; name another file"
        )
    rows = read_rows(data)
    if data.mined is not None:
        rows = with_mined(rows, data.mined)
    if config.distil.needs_pairs:
        return trained_texts(rows)
    return [*rows.queries.texts, *rows.documents.texts]
