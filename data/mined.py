"""What was mined joins the rows it was mined for."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tercet.data.build import RaggedBuilder
from tercet.data.records import Row, kind_of, read_rows
from tercet.data.rows import TrainingSet
from tercet.data.scores import PairScores
from tercet.errors import UserError
from tercet.progress import say

COLUMNS = ("query_id", "negative_ids")
SIDES = ("positive", "negative", "own", "relabelled")
SCORED = {f"{side}_ids": f"{side}_rescores" for side in SIDES}
DROPPED = "dropped"  # the outcome of a query that is not to be trained on


@dataclass
class _Mined:
    """What a mined set says of one query; documents are positions in the training set."""

    negatives: list[int]
    positives: list[int]
    dropped: bool
    scores: list[tuple[int, float]]  # of documents, by a cross-encoder


def with_mined(rows: TrainingSet, path: str | Path, *, some: bool = False) -> TrainingSet:
    """Append to each row what a mined set (Parquet) holds for its query.

    Columns read: query_id (text) and negative_ids (list of texts); where they are there, also
    relabelled_ids, documents that were found to answer the query and become positives of its rows,
    outcome: the rows of a query whose outcome is "dropped" are left out, and a cross-encoder's
    scores of positives, negatives, mined or the rows' own, and relabelled documents, which join
    `scores`. Queries without mined negatives keep their own; negatives since known as positives are
    left out; all of this is counted and said, the first not where `some` queries were mined for on
    purpose. UserError for a document that is not in `rows` (another corpus was mined), for an id
    that named another text when it was mined (columns query_hash, negative_hashes, ...:
    `text_key`), and for scores that are not finite or not as many as their documents.
    """
    path = Path(path)
    _refuse_other_files(path)
    mined = dict[int, _Mined]()
    for query, found in _mined_rows(path, rows):
        earlier = mined.setdefault(query, found)
        if earlier is not found:
            earlier.negatives += found.negatives
            earlier.positives += found.positives
            earlier.dropped |= found.dropped
            earlier.scores += found.scores
    if not mined:
        raise UserError(f"{path}: none of its queries is in the training data; mine again")
    scored = PairScores.of((q, d, s) for q, found in mined.items() for d, s in found.scores)
    rows = rows.replaced(scores=rows.scores.and_also(scored))
    rows = _with_positives(_without_dropped(rows, mined, path), mined, path)
    return _with_negatives(rows, mined, path, some)


def _refuse_other_files(path: Path) -> None:
    if path.is_dir():
        inside = path / "mined.parquet"
        hint = f"say {inside}" if inside.exists() else "name the file in it"
        raise UserError(f"data.mined: {path} is a folder; {hint}")
    if not path.exists():
        raise UserError(f"data.mined: {path}: no such file; `tercet mine` writes one")
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            raise UserError(
                f"data.mined: {path} is no mined set, which is a Parquet file that `tercet mine` "
                "writes; rows with negatives of their own belong in data.train, with "
                "columns: {negative: NAME}"
            )


def _without_dropped(rows: TrainingSet, mined: dict[int, _Mined], path: Path) -> TrainingSet:
    dropped = [query for query, found in mined.items() if found.dropped]
    left = np.flatnonzero(~np.isin(rows.row_query, dropped))
    if len(left) == len(rows):
        return rows
    if not len(left):
        raise UserError(
            f"{path}: every query was dropped, so nothing is left to train on; mine again with "
            "other rules, or with mining.too_few=keep"
        )
    say(f"{path}: {len(rows) - len(left)} of {len(rows)} rows are dropped: too few negatives")
    return replace(
        rows,
        row_query=rows.row_query[left],
        positives=rows.positives.pick(left),
        negatives=rows.negatives.pick(left),
        source_offsets=np.unique(np.searchsorted(left, rows.source_offsets)),
    )


def _with_positives(rows: TrainingSet, mined: dict[int, _Mined], path: Path) -> TrainingSet:
    new = {query: found.positives for query, found in mined.items() if found.positives}
    if not new:
        return rows
    say(f"{path}: {sum(map(len, new.values()))} relabelled documents become positives")
    built = RaggedBuilder()
    for row, query in enumerate(rows.row_query.tolist()):
        built.append(dict.fromkeys(rows.positives[row].tolist() + new.get(query, [])))
    return replace(rows, positives=built.build())


def _with_negatives(
    rows: TrainingSet, mined: dict[int, _Mined], path: Path, some: bool
) -> TrainingSet:
    built, answering = RaggedBuilder(), 0
    for row, query in enumerate(rows.row_query.tolist()):
        known = set(rows.known_positives[query].tolist())
        found = mined[query].negatives if query in mined else []
        kept = [document for document in found if document not in known]
        answering += len(found) - len(kept)
        built.append(dict.fromkeys(rows.negatives[row].tolist() + kept))
    asked = set(rows.row_query.tolist())
    alone = len(asked - {query for query, found in mined.items() if found.negatives})
    if alone and not some:
        say(f"{path}: {alone} of {len(asked)} queries have no mined negatives")
    if answering:
        say(f"{path}: {answering} mined negatives are known positives by now; left out")
    return rows.replaced(negatives=built.build())


def _mined_rows(path: Path, rows: TrainingSet) -> Iterator[tuple[int, _Mined]]:
    for number, row in read_rows(path, "parquet"):
        missing = [name for name in COLUMNS if name not in row]
        if missing:
            raise UserError(
                f"{path}: no column {missing[0]!r}, so this is no mined set; data.mined takes "
                "what `tercet mine` wrote"
            )
        query = row["query_id"]
        if not isinstance(query, str):
            raise UserError(
                f"{path}, row {number}, column 'query_id': {kind_of(query)}, not a text"
            )
        if query in rows.queries.index:  # others may have been mined for as well
            _refuse_other_texts(rows, row, path, number)
            negatives = _positions(rows, row, "negative_ids", path, number)
            positives = _positions(rows, row, "relabelled_ids", path, number)
            yield (
                rows.queries.index[query],
                _Mined(
                    negatives,
                    positives,
                    row.get("outcome") == DROPPED,
                    list(_scores(rows, row, path, number)),
                ),
            )


def _refuse_other_texts(rows: TrainingSet, row: Row, path: Path, number: int) -> None:
    """Raise UserError if an id names another text than was mined; older sets do not tell.

    BEIR ids mean something in their own folder only, and which of two folders keeps its ids
    depends on their order in data.train.
    """
    told = [("query", rows.queries, [row["query_id"]], [row.get("query_hash")])]
    for side in SIDES:
        ids, keys = row.get(f"{side}_ids") or [], row.get(f"{side}_hashes") or []
        told.append((side, rows.documents, ids, keys))
    for what, texts, ids, keys in told:
        for id_, key in zip(ids, keys, strict=False):
            at = texts.index.get(id_)
            if at is not None and key is not None and int(texts.keys[at]) != key:
                raise UserError(
                    f"{path}, row {number}: {what} {id_!r} was another text when this was mined; "
                    "mine again, or name the sources of data.train in the order of then"
                )


def _scores(rows: TrainingSet, row: Row, path: Path, number: int) -> Iterator[tuple[int, float]]:
    """The cross-encoder's score of each document that it was asked about."""
    for ids, column in SCORED.items():
        scores = row.get(column)
        if scores is None:  # nothing was asked
            continue
        given = row.get(ids) or []
        if not isinstance(scores, list) or len(scores) != len(given):
            raise UserError(
                f"{path}, row {number}, column {column!r}: not one score for each of the "
                f"{len(given)} in {ids!r}; mine again"
            )
        for id_, score in zip(given, scores, strict=True):
            if not isinstance(score, float) or not math.isfinite(score):
                raise UserError(
                    f"{path}, row {number}, column {column!r}: {score!r} is not a finite number; "
                    "mine again with a sound cross-encoder"
                )
            if id_ in rows.documents.index:  # known positives of other files may not be
                yield rows.documents.index[id_], score


def _positions(rows: TrainingSet, row: Row, column: str, path: Path, number: int) -> list[int]:
    ids = row.get(column, [])
    if not isinstance(ids, list) or not all(isinstance(id_, str) for id_ in ids):
        raise UserError(f"{path}, row {number}, column {column!r}: not a list of texts")
    try:
        return [rows.documents.index[id_] for id_ in ids]
    except KeyError as error:
        raise UserError(
            f"{path}, row {number}: document {error} is not in the training data, so another "
            "corpus was mined; mine again"
        ) from None
