"""Tables of results: one set of rows, shown as Markdown or on the console."""

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from tercet.errors import UserError
from tercet.evaluation.retrieval import MAIN_METRIC, Result
from tercet.evaluation.significance import Delta

Row = dict[str, str]  # column -> what stands in it

_FAMILIES = {"ndcg": "nDCG", "mrr": "MRR", "map": "MAP", "precision": "P", "hit_rate": "Hit rate"}


def heading_of(metric: str) -> str:
    """How tables call a metric of retrieval.

    >>> heading_of("map"), heading_of("hit_rate@10"), heading_of("recall@1000")
    ('MAP', 'Hit rate@10', 'Recall@1000')
    """
    family, at, cut = metric.partition("@")
    return _FAMILIES.get(family, family.capitalize()) + at + cut


SHOWN = ("ndcg@10", "mrr@10", "map", "recall@100", "precision@10")  # of METRICS, the usual ones
HEADINGS = {metric: heading_of(metric) for metric in SHOWN}
STS_HEADINGS = {"spearman": "Spearman", "pearson": "Pearson"}


def model_table(results: Sequence[Result]) -> list[Row]:
    """A row per result, in the order given; its main metric with its 95 % interval.

    A task column is added when the results are of more than one task or split.
    """
    several = len({(result.task, result.split) for result in results}) > 1
    return [_row(result, several) for result in results]


def _row(result: Result, with_task: bool) -> Row:
    row = {"Model": result.model}
    if with_task:
        row["Task"] = f"{result.task} ({result.split})"
    for metric, heading in (HEADINGS | STS_HEADINGS).items():
        mean = result.means.get(metric)
        if mean is None:  # another kind of task, or a run that was not deep enough
            continue
        if metric == result.main:
            several = result.counts.get("queries") != 1  # of one, nothing is known of chance
            interval = f" [{mean.low:.3f}, {mean.high:.3f}]" if several else ""
            row[f"{heading} [95 % interval]"] = f"{mean.mean:.3f}{interval}"
        else:
            row[heading] = f"{mean.mean:.3f}"
    return row


def delta_line(
    base: str, new: str, delta: Delta, metric: str = MAIN_METRIC, holm: float | None = None
) -> str:
    """One sentence about a difference, with all that is needed to believe it.

    `holm` is p adjusted for the number of tasks; d the mean in standard deviations. One query has
    no interval.

    >>> delta_line("base", "tuned", Delta(0.0123, -0.001, 0.0256, 0.0712, 300))
    'tuned - base: nDCG@10 +0.012 [-0.001, +0.026], p = 0.071, 300 queries'
    """
    adjusted = (
        "" if holm is None else f" (Holm {p_value(holm).removeprefix('p ').removeprefix('= ')})"
    )
    effect = "" if delta.effect is None else f", d = {delta.effect:+.2f}"
    heading = (HEADINGS | STS_HEADINGS).get(metric, metric)
    interval = "" if delta.queries == 1 else f" [{delta.low:+.3f}, {delta.high:+.3f}]"
    counted = "pairs" if metric in STS_HEADINGS else "queries"
    return (
        f"{new} - {base}: {heading} {delta.mean:+.3f}{interval}, {p_value(delta.p)}{adjusted}"
        f"{effect}, {'1 query' if delta.queries == 1 else f'{delta.queries} {counted}'}"
    )


def leak_line(result: Result) -> str:
    """What of a task was seen in training, and the main metric without the queries concerned."""
    leak = result.leakage
    if leak is None:
        return f"{result.task}: not compared with training texts"
    seen = (
        f"{result.task}: seen in training, word for word / mostly: "
        f"{leak.queries_by_hash:,} / {len(leak.queries):,} of {leak.of_queries:,} queries, "
        f"{leak.documents_by_hash:,} / {len(leak.documents):,} of {leak.of_documents:,} answers"
    )
    if not leak.touched:
        return seen
    touched = set(leak.touched)
    clean = [score for query, score in result.scores[result.main].items() if query not in touched]
    rest = f"{sum(clean) / len(clean):.3f}" if clean else "no query is left"
    return (
        f"{seen}; {result.model} without the {len(touched):,} queries concerned: "
        f"{HEADINGS.get(result.main, result.main)} {rest}"
    )


def prompt_lines(prompts: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    """What is put before the texts of each model, by role; nothing of models without prompts.

    >>> prompt_lines({"a": {"query": "query: ", "document": ""}, "b": {"query": ""}})
    ["a puts before each query 'query: '"]
    """
    told = {
        model: [f"{role} {prompt!r}" for role, prompt in of_model.items() if prompt]
        for model, of_model in prompts.items()
    }
    return [f"{model} puts before each {', '.join(one)}" for model, one in told.items() if one]


def p_value(value: float) -> str:
    """As tables and lines show it.

    >>> p_value(0.0123), p_value(0.0)
    ('p = 0.012', 'p < 0.001')
    """
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def percent(share: float | None) -> str:
    """A share as tables show it; nothing for none.

    >>> percent(0.9912)
    '99.1%'
    """
    return "" if share is None else f"{share:.1%}"


def markdown_table(rows: Sequence[Mapping[str, str]], columns: Sequence[str] | None = None) -> str:
    """A Markdown table; the first column stands left, the others right. A missing cell is empty.

    >>> print(markdown_table([{"Model": "a|b", "MAP": "0.5"}]))
    | Model | MAP |
    | :-- | --: |
    | a\\|b | 0.5 |
    """
    columns = list(columns or _columns(rows))
    lines = [columns, [":--", *["--:"] * (len(columns) - 1)]]
    lines += [[_cell(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def console_table(
    rows: Sequence[Mapping[str, str]], columns: Sequence[str] | None = None, title: str = ""
) -> Table:
    """The same rows for `rich.print`; names and headings may be folded, numbers are not."""
    columns = list(columns or _columns(rows))
    table = Table(title=title or None)
    for number, column in enumerate(columns):
        widest = max((len(row.get(column, "")) for row in rows), default=0)
        table.add_column(
            escape(column),
            justify="right" if number else "left",
            overflow="fold",
            min_width=widest if number else None,
        )
    for row in rows:
        table.add_row(*(escape(row.get(column, "")) for column in columns))
    return table


def fill_marked(text: str, name: str, table: str) -> str:
    """`text` with what stands between `<!-- name:begin -->` and `<!-- name:end -->` replaced.

    Raises UserError unless each mark is there exactly once, in this order.

    >>> fill_marked("a\\n<!-- t:begin -->\\nold\\n<!-- t:end -->\\nb", "t", "new").splitlines()
    ['a', '<!-- t:begin -->', 'new', '<!-- t:end -->', 'b']
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    for mark in (begin, end):
        if text.count(mark) != 1:
            raise UserError(f"mark {mark} stands {text.count(mark)} times in the text; once needed")
    before, rest = text.split(begin)
    if end not in rest:
        raise UserError(f"mark {end} stands before {begin}; put it after")
    after = rest.split(end)[1]
    return f"{before}{begin}\n{table}\n{end}{after}"


def _columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Every column of any row, in the order first met."""
    return list(dict.fromkeys(column for row in rows for column in row))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
