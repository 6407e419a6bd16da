"""Mined negatives join the rows they were mined for."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tercet.data.build import RaggedBuilder
from tercet.data.records import kind_of, read_rows
from tercet.data.rows import TrainingSet
from tercet.errors import UserError
from tercet.progress import say

COLUMNS = ("query_id", "negative_ids")


def with_mined(rows: TrainingSet, path: str | Path) -> TrainingSet:
    """Append to each row's negatives those a mined set (Parquet) holds for its query.

    Columns read: query_id (text) and negative_ids (list of texts). Queries without mined
    negatives keep their own; negatives since known as positives are left out; both are counted
    and said. UserError for a document that is not in `rows`: another corpus was mined.
    """
    path = Path(path)
    mined = dict[int, list[int]]()
    for number, query_id, negatives in _mined_rows(path):
        query = rows.queries.index.get(query_id)
        if query is not None:
            mined.setdefault(query, []).extend(_positions(rows, negatives, path, number))
    if not mined:
        raise UserError(f"{path}: none of its queries is in the training data; mine again")
    built, answering = RaggedBuilder(), 0
    for row, query in enumerate(rows.row_query.tolist()):
        own = rows.negatives[row].tolist()
        known = set(rows.known_positives[query].tolist())
        found = mined.get(query, [])
        kept = [document for document in found if document not in known]
        answering += len(found) - len(kept)
        built.append(dict.fromkeys(own + kept))
    asked = set(rows.row_query.tolist())
    alone = len(asked - mined.keys())
    if alone:
        say(f"{path}: {alone} of {len(asked)} queries have no mined negatives")
    if answering:
        say(f"{path}: {answering} mined negatives are known positives by now; left out")
    return replace(rows, negatives=built.build())


def _mined_rows(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    for number, row in read_rows(path, "parquet"):
        missing = [name for name in COLUMNS if name not in row]
        if missing:
            raise UserError(
                f"{path}: no column {missing[0]!r}, so this is no mined set; data.mined takes "
                "what `tercet mine` wrote"
            )
        query, negatives = row["query_id"], row["negative_ids"]
        if not isinstance(query, str):
            raise UserError(
                f"{path}, row {number}, column 'query_id': {kind_of(query)}, not a text"
            )
        if not isinstance(negatives, list) or not all(isinstance(n, str) for n in negatives):
            raise UserError(f"{path}, row {number}, column 'negative_ids': not a list of texts")
        yield number, query, negatives


def _positions(rows: TrainingSet, ids: list[str], path: Path, number: int) -> list[int]:
    try:
        return [rows.documents.index[id_] for id_ in ids]
    except KeyError as error:
        raise UserError(
            f"{path}, row {number}: document {error} is not in the training data, so another "
            "corpus was mined; mine again"
        ) from None
