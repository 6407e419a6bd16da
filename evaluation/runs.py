"""Runs on disk: TREC's run file, and the predictions that MTEB writes."""

import json
import re
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
from pyarrow import csv

from tercet.data.rows import RetrievalTask
from tercet.errors import UserError
from tercet.evaluation.metrics import Run
from tercet.evaluation.ranking import Ranking, in_trec_order, run_rows
from tercet.files import whole_file

COLUMNS = ("query", "Q0", "document", "rank", "score", "name")
QUERIES = 512  # written at a time: bounds the table
FORM = csv.WriteOptions(
    include_header=False, batch_size=1 << 16, delimiter=" ", quoting_style="none"
)


def write_run(task: RetrievalTask, found: Ranking, path: Path, name: str = "tercet") -> None:
    """TREC's run file: `query Q0 document rank score name`, best first, ties by id descending.

    The format parts its columns by white space, so white space, quotes and % in an id are written
    percent-encoded (`a b` as `a%20b`); `read_run` decodes them. A score is the shortest number
    that reads back as the same float32.
    """
    found = in_trec_order(found, task.documents.ids)
    queries, documents = (_encoded(side.ids) for side in (task.queries, task.documents))
    tag = re.sub(r'[\s"]+', "_", name) or "tercet"
    with whole_file(path) as partial, partial.open("wb") as file:
        for start in range(0, len(task.queries), QUERIES):
            positions = found.positions[start : start + QUERIES]
            row, column = np.nonzero(positions >= 0)
            cells = (
                queries.take(pa.array(row + start)),
                pa.repeat("Q0", len(row)),
                documents.take(pa.array(positions[row, column])),
                pa.array(column + 1),
                pa.array(found.scores[start : start + QUERIES][row, column]),
                pa.repeat(tag, len(row)),
            )
            csv.write_csv(pa.table(dict(zip(COLUMNS, cells, strict=True))), file, FORM)


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


def write_predictions(task: RetrievalTask, found: Ranking, path: Path, model: str) -> None:
    """What was found as MTEB keeps predictions: subset -> split -> query -> document -> score."""
    meta = {"model_name": model, "revision": None}
    head = json.dumps({"mteb_model_meta": meta}, ensure_ascii=False)[:-1]
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(f'{head}, "default": {{{json.dumps(task.split)}: {{')
        for number, (query, documents) in enumerate(run_rows(task, found)):
            answer = json.dumps(documents, ensure_ascii=False)
            key = json.dumps(query, ensure_ascii=False)
            file.write(f"{', ' if number else ''}{key}: {answer}")
        file.write("}}}\n")


def _encoded(ids: list[str]) -> pa.Array:
    safe = [re.sub(r'[\s%"]', lambda found: quote(found[0], safe=""), id_) for id_ in ids]
    return pa.array(safe, type=pa.string())
