"""Runs on disk: TREC's run file, and the predictions that MTEB writes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from tercet.errors import UserError
from tercet.evaluation.metrics import Run
from tercet.files import whole_file

RunRows = Iterator[tuple[str, dict[str, float]]]


def write_run(run: Run | RunRows, path: Path, name: str = "tercet") -> None:
    """TREC's run file: `query Q0 document rank score name`, best first, ties by id descending.

    The format parts its columns by white space, so white space and % in an id are written
    percent-encoded (`a b` as `a%20b`); `read_run` decodes them.
    """
    tag = re.sub(r"\s+", "_", name) or "tercet"
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for query, documents in _rows(run):
            start = f"{_encoded(query)} Q0 "
            ranked = sorted(documents.items(), key=lambda item: (item[1], item[0]), reverse=True)
            file.writelines(
                f"{start}{_encoded(document)} {rank} {float(score)!r} {tag}\n"
                for rank, (document, score) in enumerate(ranked, start=1)
            )


def read_run(path: Path) -> Run:
    """Read a TREC run file: query -> document -> score, in the file's order.

    Ids are percent-decoded, as `write_run` encodes them. Raises UserError naming a line that has
    not six columns.
    """
    run: Run = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            query, _, document, _, score, _ = line.split()
            run.setdefault(unquote(query), {})[unquote(document)] = float(score)
        except ValueError:
            raise UserError(
                f"{path}, line {number}: not `query Q0 document rank score name`"
            ) from None
    return run


def write_predictions(run: Run | RunRows, path: Path, *, model: str, split: str) -> None:
    """The run as MTEB keeps predictions: subset -> split -> query -> document -> score."""
    meta = {"model_name": model, "revision": None}
    head = json.dumps({"mteb_model_meta": meta}, ensure_ascii=False)[:-1]
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(f'{head}, "default": {{{json.dumps(split)}: {{')
        for number, (query, documents) in enumerate(_rows(run)):
            answer = json.dumps(documents, ensure_ascii=False)
            key = json.dumps(query, ensure_ascii=False)
            file.write(f"{', ' if number else ''}{key}: {answer}")
        file.write("}}}\n")


def _rows(run: Run | RunRows) -> RunRows:
    return iter(run.items()) if isinstance(run, dict) else run


def _encoded(id_: str) -> str:
    return re.sub(r"[\s%]", lambda found: quote(found[0], safe=""), id_)
