"""Files of rows, one at a time: (line or row number, {column: value}) whatever the format.

Numbers are what an editor shows: lines from 1 in JSONL and CSV (the CSV header is line 1), rows
from 1 in Parquet and saved datasets.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tercet.data.complain import Complain, refuse
from tercet.errors import UserError
from tercet.files import refuse_outside
from tercet.progress import Advance, progress

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row]]

ENDINGS = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".parquet": "parquet",
}
SET_FORMAT = "or set the source's format: jsonl, csv, parquet, dataset or beir"
LARGE = 64 << 20  # bytes; smaller files are read before a progress bar is of use
MANY = 100_000  # rows; likewise
BATCH = 1024  # rows of a table made into Python objects at once
csv.field_size_limit(2**31 - 1)  # a document may be longer than the default of 131,072 characters


def format_of(path: Path, complain: Complain = refuse, *, advice: str = SET_FORMAT) -> str | None:
    """jsonl, csv, parquet, dataset or beir, by the name's ending or by what a folder holds.

    `advice` ends the complaint about a path that does not tell: what its giver can do instead.
    """
    if path.is_dir():
        if (path / "qrels").exists() or any(path.glob("corpus.jsonl*")):
            return "beir"
        if (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
            return "dataset"
        complain(
            "unknown format",
            f"{path}: neither a BEIR folder (corpus.jsonl, queries.jsonl, qrels/) nor a saved "
            f"dataset; name a file in it, {advice}",
        )
        return None
    if _is_missing(path, complain):
        return None
    for ending, format_ in ENDINGS.items():
        if path.name.lower().endswith(ending):
            return format_
    complain(
        "unknown format",
        f"{path}: the name does not tell the format; end it in {', '.join(ENDINGS)}, {advice}",
    )
    return None


def place(path: Path, format_: str, number: int) -> str:
    """Where a complaint points: `pairs.jsonl, line 3`."""
    return f"{path}, {'row' if format_ in ('parquet', 'dataset') else 'line'} {number}"


def read_rows(
    path: Path,
    format_: str,
    *,
    split: str = "train",
    skip: Collection[str] = (),
    complain: Complain = refuse,
) -> Rows:
    """Every row of a file in its order.

    `split` picks a part of a saved DatasetDict; columns in `skip` need not be read. Complains
    about a file that is missing, unreadable, damaged or without rows.
    """
    if _is_missing(path, complain):
        return
    if format_ == "jsonl":
        rows = _json_rows(path, complain)
    elif format_ == "csv":
        rows = _csv_rows(path, complain)
    elif format_ == "parquet":
        rows = _parquet_rows(path, skip, complain)
    else:
        rows = _dataset_rows(path, split, skip, complain)
    number = 0
    for number, row in rows:
        yield number, row
    if not number:
        complain("no rows", f"{path}: holds no rows; leave it out or fill it")


def text_lines(path: Path, complain: Complain = refuse) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 text file, unzipped if its name ends in .gz; line ends are kept."""
    if _is_missing(path, complain):
        return
    try:
        size = path.stat().st_size
        bar = _bar(f"read {path.name} (MB)", size >> 20, LARGE >> 20)
        with path.open("rb") as raw, bar as advance:
            told = 0
            unzipped = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            for number, line in enumerate(unzipped, 1):
                if number % 4096 == 0:
                    advance((raw.tell() >> 20) - told)
                    told = raw.tell() >> 20
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    complain(
                        "not UTF-8",
                        f"{path}, line {number}: byte {error.start + 1} is not UTF-8 text; "
                        "convert the file to UTF-8",
                    )
                    continue
                yield number, text
    except (OSError, EOFError, zlib.error) as error:
        complain("unreadable file", f"{path}: cannot be read ({_one_line(error)}); copy it again")


def _is_missing(path: Path, complain: Complain) -> bool:
    """Whether nothing is there, which is complained about."""
    if path.exists():
        return False
    complain("missing file", f"{path}: no such file or folder; check the path")
    return True


def _bar(title: str, total: int, least: int) -> AbstractContextManager[Advance]:
    """Progress over what takes more than a few seconds, silence over the rest."""
    return progress(title, total) if total > least else nullcontext(lambda done=1, note="": None)


def _json_rows(path: Path, complain: Complain) -> Rows:
    for number, text in text_lines(path, complain):
        if not text.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            complain(
                "malformed JSON",
                f"{where}: not valid JSON ({error.msg} at character {error.pos + 1}); "
                "write one object per line",
            )
            continue
        except (ValueError, RecursionError) as error:
            complain("malformed JSON", f"{where}: not readable JSON ({_one_line(error)})")
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            complain(
                "malformed JSON",
                f"{where}: holds {kind_of(value)}, not an object; "
                'write one {"column": value} object per line',
            )


def _csv_rows(path: Path, complain: Complain) -> Rows:
    """A quoted cell may hold line breaks; a row's number is that of its first line."""
    at = 0

    def lines() -> Iterator[str]:
        nonlocal at
        for number, text in text_lines(path, complain):
            at = number
            yield text

    reader = csv.reader(lines(), strict=True)
    header: list[str] | None = None
    while True:
        start = at + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # what follows cannot be trusted
            return complain(
                "damaged CSV", f"{path}, line {start}: damaged CSV ({error}); check its quotes"
            )
        if not cells:
            continue
        if header is None:
            header = cells
            doubled = sorted({name for name in header if header.count(name) > 1})
            if doubled:
                return complain("damaged CSV", f"{path}, line {start}: two columns {doubled[0]!r}")
        elif len(cells) != len(header):
            complain(
                "damaged CSV",
                f"{path}, line {start}: {len(cells)} cells under a header of {len(header)}; "
                "quote the cells that hold commas or line breaks",
            )
        else:
            yield start, dict(zip(header, cells, strict=True))


def _parquet_rows(path: Path, skip: Collection[str], complain: Complain) -> Rows:
    number = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            columns = [name for name in file.schema_arrow.names if name not in skip]
            with _bar(f"read {path.name}", file.metadata.num_rows, MANY) as advance:
                for batch in file.iter_batches(BATCH, columns=columns):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
                    advance(len(batch))
    except (OSError, ValueError, pa.ArrowException) as error:
        complain(
            "unreadable file",
            f"{path}: not readable as Parquet after row {number} ({_one_line(error)}); "
            "write it again",
        )


def _dataset_rows(path: Path, split: str, skip: Collection[str], complain: Complain) -> Rows:
    import datasets  # takes a second to import, and few readers need it

    number = 0
    try:
        _check_files(path)
        table = datasets.load_from_disk(str(path))
        if isinstance(table, datasets.DatasetDict):
            if split not in table:
                return complain(
                    "missing split",
                    f"{path}: no split {split!r}; it has {', '.join(map(repr, table))}: "
                    f"name the folder of one, such as {path / str(next(iter(table), split))}, or "
                    "set the source's split",
                )
            table = table[split]
        table.data.validate(full=True)  # Arrow reads what a damaged file says, and crashes
        table = table.with_format(None)
        table = table.remove_columns([name for name in table.column_names if name in skip])
        with _bar(f"read {path.name}", len(table), MANY) as advance:
            for batch in table.iter(BATCH):
                columns: dict[str, list[Any]] = dict(batch)
                start = number
                for values in zip(*columns.values(), strict=True):
                    number += 1
                    yield number, dict(zip(columns, values, strict=True))
                advance(number - start)
    except UserError:
        raise
    except Exception as error:  # the library checks nothing: it raises where its files lead it
        complain(
            "unreadable file",
            f"{path}: not readable as a saved dataset after row {number} ({_one_line(error)}); "
            "save it again",
        )


def _check_files(saved: Path) -> None:
    """Raise ValueError if a saved dataset names splits or files outside its folder."""
    listed, splits = saved / "dataset_dict.json", list[str]()
    if listed.is_file():
        splits = json.loads(listed.read_text(encoding="utf-8"))["splits"]
        refuse_outside(splits, listed.name)
    for folder in (saved, *(saved / split for split in splits)):
        if (state := folder / "state.json").is_file():
            files = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
            refuse_outside((file["filename"] for file in files), state.name)


def kind_of(value: object) -> str:
    """A value's type as its writer would call it.

    >>> kind_of([1]), kind_of(None), kind_of(2.5)
    ('a list', 'null', 'the number 2.5')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    names = {dict: "an object", list: "a list", str: "a text"}
    return names.get(type(value), f"a {type(value).__name__}")


def is_unicode(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_id(item: object) -> str | None:
    """An id as text: a text that is not empty, or a whole number; else None."""
    if isinstance(item, int) and not isinstance(item, bool):
        return str(item)
    return item if isinstance(item, str) and item.strip() and is_unicode(item) else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
