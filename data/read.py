"""Training pairs in any of our formats -> one `TrainingSet`."""

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tercet.configs import Source
from tercet.data.beir import name_of, read_folder, read_qrels, splits
from tercet.data.build import Builder, Pool
from tercet.data.complain import Complain, refuse
from tercet.data.records import Row, as_id, format_of, is_unicode, kind_of, place, read_rows
from tercet.data.rows import TrainingSet, text_hash, text_key
from tercet.errors import UserError
from tercet.progress import say


def read_training(sources: Sequence[Source], complain: Complain = refuse) -> TrainingSet:
    """All rows of all sources, in order: one per line of a file, one per query of a BEIR folder.

    A text's id is what its column says, else the hash of its normalised text. Texts with the same
    id are one text. A BEIR folder also gives its documents without a query, for mining, except
    those that answer queries of its other splits only (unless the source has `other_splits`); they
    are counted. What those splits know of the documents that stay is `elsewhere`. Raises UserError
    at the first mistake unless `complain` says otherwise.
    """
    if not sources:
        raise UserError("data.train names no file to train on; add one: data.train=pairs.jsonl")
    builder = Builder()
    for source in sources:
        path = Path(source.path)
        form = format_of(path, complain) if source.format == "auto" else source.format
        if form == "beir":
            _add_beir(builder, path, source, complain)
        elif form:
            _Table(builder, path, form, source, complain).add()
        builder.end_source()
    return builder.build()


def _add_beir(builder: Builder, path: Path, source: Source, complain: Complain) -> None:
    folder, split = read_folder(path, complain), source.split
    if folder is None:
        return
    qrels = read_qrels(folder, split, complain)
    if qrels is None:
        return
    answers = {q: [d for d, grade in judged.items() if grade > 0] for q, judged in qrels.items()}
    wanted = {d for documents in answers.values() for d in documents}
    answered = [
        (query, document)
        for other in splits(path)
        if other != split
        for query, grades in (read_qrels(folder, other, complain) or {}).items()
        for document, grade in grades.items()
        if grade > 0
    ]
    unseen = set() if source.other_splits else {document for _, document in answered}
    texts = {text_hash(folder.documents[d]) for d in unseen - wanted}  # under whichever id
    kept = {
        d: t
        for d, t in folder.documents.items()
        if d in wanted or not texts or text_hash(t) not in texts
    }
    builder.left_out += len(folder.documents) - len(kept)
    asked = {q: t for q, t in folder.queries.items() if answers.get(q)}
    documents = _add_scoped(builder.documents, kept, path, complain)
    queries = _add_scoped(builder.queries, asked, path, complain)
    builder.elsewhere += [
        (text_key(folder.queries[q]), documents[d]) for q, d in answered if d in documents
    ]
    if 0 < len(asked) < len(qrels):
        say(f"{path}: {len(qrels) - len(asked)} queries of {split} have no answer; left out")
    if not asked:
        complain("no rows", f"{path}: no query of split {split!r} has an answer; choose another")
    for query_id, query in queries.items():
        positives = [documents[d] for d in answers[query_id] if d in documents]
        if positives:
            builder.add_row(query, positives)


def _add_scoped(
    pool: Pool, texts: dict[str, str], path: Path, complain: Complain
) -> dict[str, int]:
    """Position of each text. BEIR ids mean something in their own folder only ("1", "2", ...).

    An id that an earlier source gave to another text is therefore read as "folder/id".
    """
    found, renamed = {}, 0
    for id_, text in texts.items():
        at = pool.add(id_, text)
        if at is None:
            renamed += 1
            at = pool.add(f"{name_of(path)}/{id_}", text)
        if at is None:
            complain(
                "duplicate id",
                f"{path}: id {id_!r} names another text in an earlier source; rename the folder",
            )
        else:
            found[id_] = at
    if renamed:
        say(f"{path}: {renamed} ids name other texts in an earlier source; read as folder/id")
    return found


class _Table:
    """Rows of one file whose columns play roles."""

    def __init__(
        self, builder: Builder, path: Path, form: str, source: Source, complain: Complain
    ) -> None:
        self.builder, self.path, self.form, self.source = builder, path, form, source
        self.complain = complain
        columns = source.columns
        self.roles = {role: name for role, name in columns.model_dump().items() if name is not None}
        self.cells = {
            role: _Cells(name, self, role != "query")
            for role, name in self.roles.items()
            if role in ("query", "positive", "negative")
        }

    def add(self) -> None:
        """Read the file into the builder."""
        used = set(self.roles.values())
        skip = set(self.source.ignore) - used
        rows = read_rows(
            self.path, self.form, split=self.source.split, skip=skip, complain=self.complain
        )
        fitting = None
        for number, row in rows:
            where = place(self.path, self.form, number)
            if row.keys() != fitting:
                if not self._fits(row, used, skip, where):
                    continue
                fitting = row.keys()
            self._add_row(row, where)
        for cells in self.cells.values():
            cells.close()

    def _fits(self, row: Row, used: set[str], skip: set[str], where: str) -> bool:
        for role, name in self.roles.items():
            if name not in row:
                self.complain("missing column", f"{where}: {_missing(role, name, row)}")
                return False
        strange = sorted(row.keys() - used - skip)
        if strange:
            self.complain(
                "unknown column",
                f"{where}: column {strange[0]!r} has no role; add it to data.train.ignore, "
                "or name its role in data.train.columns",
            )
        return not strange

    def _add_row(self, row: Row, where: str) -> None:
        found: dict[str, list[tuple[str, str]]] = {}
        scores: dict[str, list[float]] = {}
        for role, cells in self.cells.items():
            texts = cells.texts(row[cells.column], where)
            if texts is None:
                return
            ids = self._ids(row, f"{role}_id", texts, where)
            opinions = self._scores(row, f"{role}_score", len(texts), where)
            if ids is None or opinions is None:
                return
            found[role], scores[role] = list(zip(ids, texts, strict=True)), opinions
        if not found["positive"]:
            return self.complain(
                "no positive",
                f"{where}, column {self.roles['positive']!r}: an empty list; "
                "give each row a positive, or remove the row",
            )
        query = self._place(self.builder.queries, found["query"], where, "query")
        positives = self._place(self.builder.documents, found["positive"], where, "positive")
        negatives = self._place(
            self.builder.documents, found.get("negative", []), where, "negative"
        )
        if query is not None and positives is not None and negatives is not None:
            sides = (positives, scores["positive"]), (negatives, scores.get("negative", []))
            scored = [pair for places, values in sides for pair in zip(places, values)]  # noqa: B905
            self.builder.add_row(query[0], positives, negatives, scored)

    def _ids(self, row: Row, role: str, texts: list[str], where: str) -> list[str] | None:
        if role not in self.roles:
            return [text_hash(text) for text in texts]
        column = self.roles[role]
        cell = row[column]
        ids = [as_id(item) for item in (cell if isinstance(cell, list) else [cell])]
        if None in ids:
            return self.complain(
                "bad id", f"{where}, column {column!r}: an id must be a text or a whole number"
            )
        if len(ids) != len(texts):
            return self.complain(
                "lengths differ",
                f"{where}: column {column!r} has {len(ids)} ids for {len(texts)} texts; "
                "give one id for each",
            )
        return [id_ for id_ in ids if id_ is not None]

    def _scores(self, row: Row, role: str, count: int, where: str) -> list[float] | None:
        """A teacher's scores of a row's texts; none without a column of them."""
        if role not in self.roles:
            return []
        column = self.roles[role]
        cell = row[column]
        scores = [_number(item) for item in (cell if isinstance(cell, list) else [cell])]
        if not all(map(math.isfinite, scores)):
            wrong = next(n for n, score in enumerate(scores) if not math.isfinite(score))
            given = cell[wrong] if isinstance(cell, list) else cell
            return self.complain(
                "bad score",
                f"{where}, column {column!r}: {given!r} is not a finite number; score that pair "
                "again or remove the row",
            )
        if len(scores) != count:
            return self.complain(
                "lengths differ",
                f"{where}: column {column!r} has {len(scores)} scores for {count} texts; "
                "give one score for each",
            )
        return scores

    def _place(
        self, pool: Pool, texts: list[tuple[str, str]], where: str, role: str
    ) -> list[int] | None:
        places = []
        for id_, text in texts:
            at = pool.add(id_, text)
            if at is None:
                column = self.roles.get(f"{role}_id", self.roles[role])
                return self.complain(
                    "duplicate id",
                    f"{where}, column {column!r}: id {id_!r} already names a different text; "
                    "give each text its own id, or leave the id column to data.train.ignore",
                )
            places.append(at)
        return places


class _Cells:
    """Texts of one column, checked; knows whether all of it is empty."""

    def __init__(self, column: str, table: _Table, several: bool) -> None:
        self.column, self.several = column, several
        self.complain, self.path = table.complain, table.path
        self.filled = False
        self.empty, self.first_empty = 0, ""  # held back while no cell is filled

    def texts(self, cell: Any, where: str) -> list[str] | None:
        """The cell's texts, or None after a complaint."""
        items = cell if self.several and isinstance(cell, list) else [cell]
        for item in items:
            problem = _problem(item)
            if problem == "empty":
                return self._found_empty(
                    f"{where}, column {self.column!r}: {_empty(item)}; fill it or remove the row"
                )
            if problem:
                message = f"{where}, column {self.column!r}: {problem}"
                return self.complain("not a text", message)
        self.filled = True
        if self.empty:
            self.complain("empty text", self.first_empty, self.empty)
            self.empty = 0
        return items

    def _found_empty(self, message: str) -> None:
        if self.filled:
            self.complain("empty text", message)
        elif not self.empty:
            self.first_empty = message
        self.empty += not self.filled

    def close(self) -> None:
        """At the end of the file: complain about what was held back."""
        if self.empty == 1:
            self.complain("empty text", self.first_empty)
        elif self.empty:
            self.complain(
                "empty column",
                f"{self.path}: column {self.column!r} is empty in all {self.empty} rows; "
                "name another in data.train.columns",
            )


def _number(item: Any) -> float:
    """A number, also one written as text as CSV does; NaN for anything else."""
    try:
        return math.nan if isinstance(item, bool) else float(item)
    except (TypeError, ValueError):
        return math.nan


def _problem(item: Any) -> str | None:
    if item is None or (isinstance(item, str) and not item.strip()):
        return "empty"
    if not isinstance(item, str):
        return f"{kind_of(item)} where a text is needed; write it as a text"
    if not is_unicode(item):
        return "half of a surrogate pair, which is not text; mend the character's escape"
    return None


def _empty(item: str | None) -> str:
    return "null" if item is None else "an empty text"


def _missing(role: str, name: str, row: Row) -> str:
    names = [str(column) for column in row]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"is it {near[0]!r}? " if near else ""
    listed = ", ".join(map(repr, names)) or "none"
    return (
        f"no column {name!r}; the columns are {listed}; {hint}name it in data.train.columns.{role}"
    )
