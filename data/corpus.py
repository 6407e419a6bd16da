"""Texts alone: unlabelled files to count tokens in, or to take a PCA of."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tercet.data.records import format_of, place, read_rows, text_lines
from tercet.errors import UserError


def read_corpus(paths: Sequence[str | Path]) -> list[str]:
    """Every text of the files, in order; empty ones are left out.

    `.txt` and `.txt.gz` hold a text a line. JSONL, CSV, Parquet and saved datasets hold one in
    column `text`, after `title` if there is one, as BEIR writes documents; a BEIR folder stands
    for its corpus. Raises UserError if a file cannot be read or none holds a text.
    """
    texts = [text for path in paths for text in _texts(Path(path)) if text.strip()]
    if not texts:
        raise UserError(f"{', '.join(map(str, paths))}: no text in it; name other files")
    return texts


def _texts(path: Path) -> Iterator[str]:
    if path.name.lower().endswith((".txt", ".txt.gz")):
        for _, line in text_lines(path):
            yield line.rstrip("\r\n")
        return
    form = format_of(path) or ""
    if form == "beir":
        whole, form = path / "corpus.jsonl", "jsonl"
        path = whole if whole.exists() else path / "corpus.jsonl.gz"
    for number, row in read_rows(path, form):
        if not isinstance(row.get("text"), str):
            raise UserError(
                f"{place(path, form, number)}: no text in a column 'text'; its columns are "
                f"{', '.join(map(repr, row))}"
            )
        title = row.get("title")
        yield f"{title} {row['text']}" if title else row["text"]
