"""The reports of `tercet.data.check` as tables for a terminal."""

from collections.abc import Iterable, Iterator

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tercet.data.check import FolderReport, Lengths, Overlap, Report, Split
from tercet.data.complain import Problem


def render(report: Report | FolderReport) -> Group:
    """All tables of a report, problems last, where the eye ends up."""
    return Group(*_parts(report))


def _parts(report: Report | FolderReport) -> Iterator[Table | Text]:
    yield _table("Texts", ("", "count"), _counts(report))
    if isinstance(report, FolderReport):
        yield from _splits(report.splits)
    yield from _lengths(report.lengths)
    yield from _overlaps(report.overlaps)
    yield from _problems(report.problems)


def _counts(report: Report | FolderReport) -> Iterator[tuple[str, str]]:
    names = ("rows", "queries", "documents", "positives", "negatives")
    names += ("duplicate_rows", "equal_queries", "equal_documents")
    notes = {
        "duplicate_rows": "duplicate rows",
        "equal_queries": "queries equal to another but for case and spaces",
        "equal_documents": "documents equal to another but for case and spaces",
    }
    for name in names:
        if hasattr(report, name):
            yield notes.get(name, name), f"{getattr(report, name):,}"


def _splits(splits: dict[str, Split]) -> Iterator[Table]:
    rows = [
        (name, f"{split.judgements:,}", f"{split.queries:,}", f"{split.unanswered:,}")
        for name, split in splits.items()
    ]
    if rows:
        header = ("split", "judgements", "queries", "without an answer")
        yield _table("Judgements", header, rows)


def _lengths(lengths: dict[str, Lengths]) -> Iterator[Table]:
    rows = [
        (role, *(f"{n:,}" for n in (found.p50, found.p90, found.p99, found.longest)))
        + (f"{found.too_long:,}",)
        for role, found in lengths.items()
    ]
    if rows:
        limit = next(iter(lengths.values())).max_length
        header = ("", "p50", "p90", "p99", "longest", f"over {limit:,}: will be cut")
        yield _table("Tokens", header, rows)


def _overlaps(overlaps: Iterable[Overlap]) -> Iterator[Table]:
    rows = [
        (
            found.task,
            _share(found.queries, found.of_queries),
            _share(found.documents, found.of_documents),
        )
        for found in overlaps
    ]
    if rows:
        yield _table("Held-out texts that are trained on", ("task", "queries", "answers"), rows)


def _problems(problems: Iterable[Problem]) -> Iterator[Table | Text]:
    rows = [(problem.kind, f"{problem.count:,}", problem.first) for problem in problems]
    if rows:
        table = _table("Problems", ("kind", "count", "the first"), rows)
        table.columns[-1].justify = "left"
        table.columns[-1].overflow = "fold"
        yield table
    else:
        yield Text("No problems found.")


def _table(title: str, header: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        # Text, not str: square brackets in a file's name or a text are no markup
        table.add_row(*(Text(cell) for cell in row))
    return table


def _share(found: int, total: int) -> str:
    return f"{found:,} of {total:,} ({found / total:.2%})" if total else "none"
