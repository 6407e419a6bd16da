"""BEIR folders: corpus.jsonl, queries.jsonl (or .gz) and qrels/<split>.tsv, read and written."""

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tercet.data.complain import Complain, refuse
from tercet.data.records import Row, as_id, is_unicode, kind_of, read_rows, text_lines
from tercet.data.rows import RetrievalTask, Texts, normalise
from tercet.errors import UserError
from tercet.files import whole_folder
from tercet.progress import say

HEADER = ("query-id", "corpus-id", "score")
Qrels = dict[str, dict[str, int]]  # query id -> document id -> grade


@dataclass(frozen=True)
class Folder:
    """The texts of a BEIR folder by id."""

    path: Path
    documents: dict[str, str]
    queries: dict[str, str]


def read_task(path: str | Path, split: str = "test", complain: Complain = refuse) -> RetrievalTask:
    """One split of a BEIR folder: its whole corpus, and the queries that have an answer in it.

    Queries without a document of grade > 0 are left out, documents without title and text are kept
    as empty texts, and the number of both is said; grades below 0 count as 0. Documents stand by
    id, highest first, whatever their order in the file. Raises UserError at the first mistake
    unless `complain` says otherwise.
    """
    return read_tasks(path, [split], complain)[0]


def read_tasks(
    path: str | Path, names: Sequence[str], complain: Complain = refuse
) -> list[RetrievalTask]:
    """Several splits of a folder as `read_task` gives them, over the same documents.

    It is the first of them that has to have an answer.
    """
    path = Path(path)
    folder = read_folder(path, complain, empty_documents=True) or Folder(path, {}, {})
    ids = sorted(folder.documents, reverse=True)
    documents = Texts(ids, [folder.documents[id_] for id_ in ids])
    tasks = [_task(folder, documents, split, complain) for split in names]
    if not tasks[0].qrels:
        missing = f"{path}: no query of split {names[0]!r} has a document of grade 1 or more; "
        missing += f"mend qrels/{names[0]}.tsv or choose another"
        complain("no query", missing)
    return tasks


def _task(folder: Folder, documents: Texts, split: str, complain: Complain) -> RetrievalTask:
    path, judged = folder.path, read_qrels(folder, split, complain) or {}
    qrels = {query: grades for query, grades in judged.items() if max(grades.values()) > 0}
    if 0 < len(qrels) < len(judged):
        say(f"{path}: {len(judged) - len(qrels)} queries of {split} have no answer; left out")
    queries = {id_: text for id_, text in folder.queries.items() if id_ in qrels}
    return RetrievalTask(
        name_of(path),
        split,
        documents,
        Texts(list(queries), list(queries.values())),
        {query: qrels[query] for query in queries},
        unjudged=len(folder.queries) - len(judged),
        answerless=len(judged) - len(qrels),
    )


def write_task(task: RetrievalTask, path: str | Path) -> None:
    """Write a task as a BEIR folder, whole or not at all.

    Replaces an earlier BEIR folder; UserError if `path` holds anything else.
    """
    path = Path(path)
    if path.exists() and not (path / "corpus.jsonl").exists() and _holds_something(path):
        raise UserError(f"{path}: exists and is no BEIR folder; choose another place to write to")
    for id_ in (*task.queries.ids, *task.documents.ids):
        if any(character in id_ for character in "\t\r\n"):
            raise UserError(f"{path}: id {id_!r} holds a tab or a line break; qrels cannot hold it")
    with whole_folder(path) as partial:
        write_files(task, partial)


def write_files(task: RetrievalTask, folder: Path) -> None:
    """The three files of a BEIR folder, into a folder that exists."""
    for name, texts in (("corpus.jsonl", task.documents), ("queries.jsonl", task.queries)):
        title = {"title": ""} if name == "corpus.jsonl" else {}
        with (folder / name).open("w", encoding="utf-8") as file:
            for id_, text in zip(texts.ids, texts.texts, strict=True):
                line = {"_id": id_, **title, "text": text}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    (folder / "qrels").mkdir()
    with (folder / "qrels" / f"{task.split}.tsv").open("w", encoding="utf-8") as file:
        file.write("\t".join(HEADER) + "\n")
        for query, grades in task.qrels.items():
            file.writelines(f"{query}\t{document}\t{grade}\n" for document, grade in grades.items())


def _holds_something(path: Path) -> bool:
    return not path.is_dir() or any(path.iterdir())


def splits(path: Path) -> list[str]:
    """Names of the splits a folder has judgements for."""
    return sorted(file.stem for file in (path / "qrels").glob("*.tsv"))


def name_of(path: Path) -> str:
    """The folder's own name, also of `.`"""
    return path.resolve().name


def read_folder(
    path: Path, complain: Complain = refuse, *, empty_documents: bool = False
) -> Folder | None:
    """Corpus and queries, checked: every id has one text, and no text is empty.

    With `empty_documents` a document may be, as in FiQA: what is searched is what the source
    gives, as MTEB searches it. How many are empty is then said.
    """
    if not path.is_dir():
        complain(
            "missing file",
            f"{path}: no such folder; a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/",
        )
        return None
    corpus = _find(path, "corpus.jsonl", complain)
    queries = _find(path, "queries.jsonl", complain)
    documents = _texts(corpus, ("title", "text"), complain, empty_documents) if corpus else {}
    empty = sum(not text for text in documents.values())
    if empty:
        say(f"{path}: {empty} documents without title and text are kept, as empty texts")
    return Folder(path, documents, _texts(queries, ("text",), complain) if queries else {})


def _find(path: Path, name: str, complain: Complain) -> Path | None:
    for file in (path / name, path / f"{name}.gz"):
        if file.exists():
            return file
    complain("missing file", f"{path}: no {name} or {name}.gz; a BEIR folder needs it")
    return None


def _texts(
    path: Path, columns: Sequence[str], complain: Complain, empty: bool = False
) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, row in read_rows(path, "jsonl", complain=complain):
        where = f"{path}, line {number}"
        id_, text = as_id(row.get("_id")), _text(row, columns, where, complain, empty)
        if id_ is None:
            complain("bad id", f"{where}: no '_id' that is a text or a whole number; give it one")
        elif text is None:
            continue
        elif texts.setdefault(id_, text) != text and normalise(texts[id_]) != normalise(text):
            complain(
                "duplicate id",
                f"{where}: _id {id_!r} already names a different text; give each text its own",
            )
    return texts


def _text(
    row: Row, columns: Sequence[str], where: str, complain: Complain, empty: bool
) -> str | None:
    """`title + " " + text`, as BEIR encodes documents; a query is its text alone."""
    parts = []
    for column in columns:
        part = row.get(column)
        if part is not None and not isinstance(part, str):
            complain("not a text", f"{where}: {column!r} holds {kind_of(part)}; write it as a text")
            return None
        parts.append(part or "")
    text = " ".join(parts).strip()
    if not text and "text" not in row:
        near = difflib.get_close_matches("text", map(str, row), n=1)
        hint = f"rename {near[0]!r}" if near else "add it"
        complain("missing column", f"{where}: no 'text'; {hint}")
    elif not text and not empty:
        complain("empty text", f"{where}: the text is empty; fill it or remove the line")
    elif not is_unicode(text):
        complain("not a text", f"{where}: half of a surrogate pair, which is not text; mend it")
    else:
        return text
    return None


def read_qrels(folder: Folder, split: str, complain: Complain = refuse) -> Qrels | None:
    """The judgements of a split between texts that exist; grades below 0 become 0."""
    path = folder.path / "qrels" / f"{split}.tsv"
    if not path.exists():
        listed = ", ".join(splits(folder.path)) or "none"
        complain("missing split", f"{path}: no such file; the folder's splits: {listed}")
        return None
    qrels: Qrels = {}
    dangling: dict[str, list[tuple[int, str]]] = {"query": [], "corpus": []}
    for number, query, document, grade in _judgements(path, complain):
        if query not in folder.queries:
            dangling["query"].append((number, query))
        elif document not in folder.documents:
            dangling["corpus"].append((number, document))
        elif qrels.setdefault(query, {}).setdefault(document, grade) != grade:
            complain(
                "contradiction",
                f"{path}, line {number}: query {query!r} and document {document!r} were judged "
                f"{qrels[query][document]} above and {grade} here; keep one",
            )
    for kind, found in dangling.items():
        if found:
            number, id_ = found[0]
            complain(
                f"dangling {kind} id",
                f"{path}, line {number}: {kind}-id {id_!r} is in no text file "
                f"({len(found)} such lines); add the text or remove the lines",
                len(found),
            )
    return qrels


def _judgements(path: Path, complain: Complain) -> Iterator[tuple[int, str, str, int]]:
    found = False
    for number, text in text_lines(path, complain):
        cells = text.rstrip("\r\n").split("\t")
        if not text.strip() or (number == 1 and _is_header(cells)):
            continue
        found = True
        if number == 1:
            trec = len(cells) != len(HEADER) and len(text.split()) == len(HEADER) + 1
            complain(
                "malformed judgement",
                f"{path}, line 1: a judgement where the header belongs; put "
                f"{'<tab>'.join(HEADER)} above it"
                + ", and make them of TREC's four columns by leaving the second out"
                * trec,
            )
        if len(cells) != len(HEADER):
            complain(
                "malformed judgement",
                f"{path}, line {number}: {len(cells)} cells between tabs; write the three of "
                f"{'<tab>'.join(HEADER)}",
            )
        elif not _is_grade(cells[2]):
            complain(
                "malformed judgement",
                f"{path}, line {number}: grade {cells[2][:20]!r} is not a whole number of at most "
                "nine digits; write one",
            )
        else:
            yield number, cells[0], cells[1], max(0, int(cells[2]))
    if not found:
        complain("no rows", f"{path}: holds no judgement; fill it or remove it")


def _is_header(cells: Sequence[str]) -> bool:
    return not any(character.isdigit() for character in cells[-1])


def _is_grade(cell: str) -> bool:
    digits = cell.strip().removeprefix("-")
    return digits.isascii() and digits.isdecimal() and len(digits) <= 9
