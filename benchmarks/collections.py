"""BEIR folders made out of others."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tercet.data import RetrievalTask, Texts, read_task
from tercet.data.beir import HEADER, splits, write_files
from tercet.files import fingerprint, sha256, whole_folder
from tercet.versions import source_version

Grades = Mapping[str, Mapping[str, int]]  # query -> document -> grade
EVERY = 10  # of so many answered documents one is for choosing, with the queries that ask for it


def cut_by(*how: object) -> str:
    """12 hex digits that change with how collections are cut, and with the code that does it.

    For the name of the folder that they are in: what is made of them names them by their path.
    """
    code = (source_version(("data",)), Path(__file__).read_bytes())
    return fingerprint([*code, *map(repr, how)])[:12]


def contents(*paths: Path) -> str:
    """12 hex digits that change with any of these files, and with any file of these folders."""
    files = [f for path in paths for f in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return fingerprint(f"{file.name} {sha256(file)}" for file in files if file.is_file())[:12]


def write_collection(
    folder: Path, corpus: Mapping[str, str], queries: Mapping[str, str], qrels: Mapping[str, Grades]
) -> None:
    """A BEIR folder with the judgements of several splits, whole or not at all."""
    first, *others = qrels
    documents = Texts(list(corpus), list(corpus.values()))
    asked = Texts(list(queries), list(queries.values()))
    grades = {query: dict(judged) for query, judged in qrels[first].items()}
    with whole_folder(folder) as partial:
        write_files(RetrievalTask(folder.name, first, documents, asked, grades), partial)
        for split in others:
            lines = [f"{q}\t{d}\t{g}\n" for q, row in qrels[split].items() for d, g in row.items()]
            header = "\t".join(HEADER) + "\n"
            path = partial / "qrels" / f"{split}.tsv"
            path.write_text(header + "".join(lines), encoding="utf-8")


def write_with_dev(source: Path, folder: Path, small: int | None = None) -> None:
    """`source` with a part of its training queries as a dev split; the test split stays.

    Every tenth answered document and the queries that ask for nothing else are dev; queries that
    ask for both kinds are in neither, so that no answer is in two parts. `small`: so many queries
    of each split, and their documents.
    """
    train, test = read_task(source, "train"), read_task(source, "test")
    answered = sorted({d for judged in train.qrels.values() for d in judged})
    dev_documents = set(answered[::EVERY])
    splits: dict[str, dict[str, dict[str, int]]] = {"train": {}, "dev": {}, "test": test.qrels}
    for query, judged in train.qrels.items():
        inside = [d in dev_documents for d in judged]
        if all(inside) or not any(inside):
            splits["dev" if inside[0] else "train"][query] = judged
    if small is not None:
        splits = {split: dict(list(rows.items())[:small]) for split, rows in splits.items()}
    texts = {
        id_: text
        for side in (train, test)
        for id_, text in zip(side.queries.ids, side.queries.texts, strict=True)
    }
    wanted = {d for rows in splits.values() for judged in rows.values() for d in judged}
    corpus = {
        id_: text
        for id_, text in zip(train.documents.ids, train.documents.texts, strict=True)
        if small is None or id_ in wanted
    }
    asked = {q: texts[q] for rows in splits.values() for q in rows}
    write_collection(folder, corpus, asked, splits)


def write_halves(source: Path, folder: Path, documents: int, small: int | None = None) -> None:
    """`<folder>-choose`: what a choice is guarded by; `<folder>-report`: what is reported of it.

    To choose by are as many training queries of `source` as it has test queries, evenly drawn, or
    every other test query if it has no others; their answers have at most so many `documents`
    beside them. To report are the other test queries, with all documents. `small`: so many queries
    of each, and documents beside their answers.
    """
    guard = test = read_task(source, "test")
    every = test.queries.ids
    if "train" in splits(source):
        guard = read_task(source, "train")
        some = guard.queries.ids[:: max(1, len(guard.queries) // len(every))][: len(every)]
    else:
        some, every = every[::2], every[1::2]
    _write_part(folder, "choose", guard, some[:small], small or documents)
    _write_part(folder, "report", test, every[:small], small)


def _write_part(
    folder: Path, part: str, task: RetrievalTask, ids: Sequence[str], limit: int | None
) -> None:
    """Queries of a task, and `limit` documents besides their answers (None: all of them)."""
    corpus, asked = (
        dict(zip(side.ids, side.texts, strict=True)) for side in (task.documents, task.queries)
    )
    grades = {q: task.qrels[q] for q in ids}
    wanted = {d for judged in grades.values() for d in judged}
    others = [d for d in corpus if d not in wanted]
    if limit is not None:
        others = others[:: max(1, len(others) // limit)][:limit]
    kept = wanted.union(others)
    out = folder.with_name(f"{folder.name}-{part}")
    shown = {d: text for d, text in corpus.items() if d in kept}
    write_collection(out, shown, {q: asked[q] for q in ids}, {"test": grades})
