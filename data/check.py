"""What is in the data and what is wrong with it, before a run is spent on it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tercet.configs import Source
from tercet.data.beir import Folder, Qrels, name_of, read_folder, read_qrels, splits
from tercet.data.complain import Problem, Problems
from tercet.data.leaks import trained_texts
from tercet.data.read import read_training
from tercet.data.rows import RetrievalTask, Texts, TrainingSet, text_hash
from tercet.progress import progress

TRAIN = "train"  # the split of a BEIR folder that is trained on
CHUNK = 1024  # texts tokenised between two steps of the progress bar


@dataclass(frozen=True)
class Lengths:
    """Token counts of the distinct texts of a role, special tokens included."""

    p50: int
    p90: int
    p99: int
    longest: int
    too_long: int  # texts of more than max_length tokens
    max_length: int


@dataclass(frozen=True)
class Overlap:
    """Held-out texts that training reads as a query, a positive or a row's own negative.

    Texts are compared by the hash of their normalised form. Only documents that answer a held-out
    query count: a corpus shared by both splits is no leak, a shared answer is.
    """

    task: str
    queries: int
    documents: int
    of_queries: int
    of_documents: int

    @property
    def share(self) -> float:
        """The larger of the two shares, for comparison with `data.max_overlap`."""
        pairs = ((self.queries, self.of_queries), (self.documents, self.of_documents))
        return max(found / total if total else 0.0 for found, total in pairs)


@dataclass(frozen=True)
class Report:
    """A training set in numbers, and the mistakes found while reading it."""

    rows: int
    queries: int
    documents: int
    positives: int
    negatives: int
    duplicate_rows: int  # same query, positives and negatives as an earlier row
    equal_queries: int  # other ids, same text after `normalise`
    equal_documents: int
    lengths: dict[str, Lengths]  # by role; empty without a tokenizer
    overlaps: tuple[Overlap, ...]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Split:
    """The judgements of one qrels file."""

    judgements: int
    queries: int
    unanswered: int  # queries without a document of grade > 0


@dataclass(frozen=True)
class FolderReport:
    """A BEIR folder in numbers, and the mistakes found while reading it."""

    queries: int
    documents: int
    equal_queries: int
    equal_documents: int
    splits: dict[str, Split]
    overlaps: tuple[Overlap, ...]  # of split train with every other; empty without a train split
    lengths: dict[str, Lengths]
    problems: tuple[Problem, ...]


def check(
    rows: TrainingSet,
    tokenizer: Any = None,
    max_length: int | None = None,
    held_out: Sequence[RetrievalTask] = (),
    problems: Sequence[Problem] = (),
) -> Report:
    """Count what a run would read.

    `tokenizer` is a Hugging Face fast tokenizer; without it or `max_length` there are no lengths.
    """
    return Report(
        rows=len(rows),
        queries=len(rows.queries),
        documents=len(rows.documents),
        positives=len(rows.positives.values),
        negatives=len(rows.negatives.values),
        duplicate_rows=_duplicate_rows(rows),
        equal_queries=_equal(rows.queries),
        equal_documents=_equal(rows.documents),
        lengths=_lengths(rows.queries, rows.documents, tokenizer, max_length),
        overlaps=tuple(overlap(rows, task) for task in held_out),
        problems=tuple(problems),
    )


def check_sources(
    sources: Sequence[Source],
    tokenizer: Any = None,
    max_length: int | None = None,
    held_out: Sequence[RetrievalTask] = (),
) -> Report:
    """Read to the end whatever is wrong, then `check` what is left."""
    problems = Problems()
    rows = read_training(sources, problems)
    return check(rows, tokenizer, max_length, held_out, tuple(problems))


def check_folder(
    path: str | Path, tokenizer: Any = None, max_length: int | None = None
) -> FolderReport:
    """Read a BEIR folder with all its splits to the end, whatever is wrong."""
    problems, path = Problems(), Path(path)
    folder = read_folder(path, problems) or Folder(path, {}, {})
    queries, documents = _texts(folder.queries), _texts(folder.documents)
    if path.is_dir() and not splits(path):
        problems("missing file", f"{path}: no qrels/<split>.tsv; a BEIR folder needs one")
    judged = {split: read_qrels(folder, split, problems) or {} for split in splits(path)}
    return FolderReport(
        queries=len(queries),
        documents=len(documents),
        equal_queries=_equal(queries),
        equal_documents=_equal(documents),
        splits={split: _split(qrels) for split, qrels in judged.items()},
        overlaps=tuple(_split_overlaps(folder, judged)),
        lengths=_lengths(queries, documents, tokenizer, max_length),
        problems=tuple(problems),
    )


def overlap(rows: TrainingSet, task: RetrievalTask) -> Overlap:
    """How many held-out queries, and documents answering them, are among the texts trained on."""
    seen = {text_hash(text) for text in trained_texts(rows)}
    documents = [task.documents.texts[task.documents.index[d]] for d in _answers(task.qrels)]
    return _overlap(seen, f"{task.name}/{task.split}", task.queries.texts, documents)


def token_lengths(texts: Sequence[str], tokenizer: Any, title: str) -> np.ndarray:
    """(N,) tokens of each text before any cutting, special tokens included."""
    lengths: list[int] = []
    with progress(f"tokens of {title}", len(texts)) as advance:
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            encoded = tokenizer(chunk, truncation=False, padding=False, verbose=False)
            lengths.extend(map(len, encoded["input_ids"]))
            advance(len(chunk))
    return np.array(lengths, dtype=np.int64)


def _split(qrels: Qrels) -> Split:
    unanswered = sum(max(grades.values()) <= 0 for grades in qrels.values())
    return Split(sum(map(len, qrels.values())), len(qrels), unanswered)


def _split_overlaps(folder: Folder, judged: dict[str, Qrels]) -> Iterator[Overlap]:
    """What `overlap` finds between training on split train and every other split."""
    read = {split: _read_texts(folder, qrels) for split, qrels in judged.items()}
    if TRAIN not in read:
        return
    seen = {text_hash(text) for texts in read.pop(TRAIN) for text in texts}
    for split, (queries, documents) in read.items():
        yield _overlap(seen, f"{name_of(folder.path)}/{split}", queries, documents)


def _read_texts(folder: Folder, qrels: Qrels) -> tuple[list[str], list[str]]:
    """The queries of a split that have an answer, and the answers."""
    queries = [folder.queries[q] for q, grades in qrels.items() if max(grades.values()) > 0]
    return queries, [folder.documents[d] for d in _answers(qrels)]


def _answers(qrels: Qrels) -> set[str]:
    return {d for grades in qrels.values() for d, grade in grades.items() if grade > 0}


def _overlap(
    seen: set[str], name: str, queries: Sequence[str], documents: Sequence[str]
) -> Overlap:
    return Overlap(
        task=name,
        queries=sum(text_hash(text) in seen for text in queries),
        documents=sum(text_hash(text) in seen for text in documents),
        of_queries=len(queries),
        of_documents=len(documents),
    )


def _lengths(
    queries: Texts, documents: Texts, tokenizer: Any, max_length: int | None
) -> dict[str, Lengths]:
    if tokenizer is None or max_length is None:
        return {}
    found = {}
    for role, texts in (("queries", queries), ("documents", documents)):
        if len(texts):
            counts = token_lengths(texts.texts, tokenizer, role)
            p50, p90, p99 = np.percentile(counts, [50, 90, 99], method="inverted_cdf").tolist()
            too_long = int((counts > max_length).sum())
            found[role] = Lengths(p50, p90, p99, int(counts.max()), too_long, max_length)
    return found


def _duplicate_rows(rows: TrainingSet) -> int:
    queries, documents = rows.queries.same, rows.documents.same
    distinct = {
        (
            int(queries[query]),
            tuple(sorted(documents[rows.positives[row]].tolist())),
            tuple(sorted(documents[rows.negatives[row]].tolist())),
        )
        for row, query in enumerate(rows.row_query)
    }
    return len(rows) - len(distinct)


def _equal(texts: Texts) -> int:
    return int((texts.same != np.arange(len(texts))).sum())


def _texts(by_id: dict[str, str]) -> Texts:
    return Texts(list(by_id), list(by_id.values()))
