"""Texts alone: unlabelled files to count tokens in, to take a PCA of, or to index."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from tercet.data.records import as_id, format_of, place, read_rows, text_lines
from tercet.data.rows import Texts
from tercet.errors import UserError

Part = Literal["corpus", "queries"]  # of a BEIR folder
A_TEXT_A_LINE = "or give a .txt file with a text a line"
Found = tuple[str, object, str]  # where it stands, its id if it has one, the text


def read_corpus(paths: Sequence[str | Path], part: Part = "corpus") -> list[str]:
    """Every text of the files, in order; empty ones are left out.

    `.txt` and `.txt.gz` hold a text a line. JSONL, CSV, Parquet and saved datasets hold one in
    column `text`, after `title` if there is one, as BEIR writes documents; a BEIR folder stands
    for its corpus, or its queries of all splits. Raises UserError if a file cannot be read or none
    holds a text.
    """
    return [text for _, _, text in _all(paths, part)]


def read_documents(paths: Sequence[str | Path]) -> Texts:
    """What `read_corpus` reads, each text with its id: column `_id` or `id`, else its number.

    Numbers count the texts of all files from 1. Raises UserError as `read_corpus` does, and for
    an id that comes twice or is neither a text nor a whole number.
    """
    ids: dict[str, str] = {}
    texts = []
    for number, (where, given, text) in enumerate(_all(paths), start=1):
        id_ = str(number) if given is None else as_id(given)
        if id_ is None:
            raise UserError(f"{where}: id {given!r} is neither a text nor a whole number")
        if id_ in ids:
            raise UserError(f"{where}: id {id_!r} already stands in {ids[id_]}; make ids distinct")
        ids[id_] = where
        texts.append(text)
    return Texts(list(ids), texts)


def _all(paths: Sequence[str | Path], part: Part = "corpus") -> list[Found]:
    found = [row for path in paths for row in _texts(Path(path), part) if row[2].strip()]
    if not found:
        raise UserError(f"{', '.join(map(str, paths))}: no text in it; name other files")
    return found


def _texts(path: Path, part: Part) -> Iterator[Found]:
    if path.name.lower().endswith((".txt", ".txt.gz")):
        for number, line in text_lines(path):
            yield f"{path}, line {number}", None, line.rstrip("\r\n")
        return
    form = format_of(path, advice=A_TEXT_A_LINE) or ""
    if form == "beir":
        whole, form = path / f"{part}.jsonl", "jsonl"
        path = whole if whole.exists() else path / f"{part}.jsonl.gz"
    for number, row in read_rows(path, form):
        where = place(path, form, number)
        if not isinstance(row.get("text"), str):
            raise UserError(
                f"{where}: no text in a column 'text'; its columns are {', '.join(map(repr, row))}"
            )
        title = row.get("title")
        yield (
            where,
            row.get("_id", row.get("id")),
            f"{title} {row['text']}" if title else row["text"],
        )
