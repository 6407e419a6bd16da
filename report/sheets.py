"""Tables of a comparison's page, made from its `results.json`: collections, models, quality."""

from collections.abc import Sequence

from tercet.evaluation.metrics import METRICS
from tercet.report.cells import Cell, Json, Sheet, interval, name, number, p_value, value_at
from tercet.report.table import HEADINGS, heading_of

LEAK_NOTE = (
    "Seen: in the training texts named, word for word or for the most part; answers are documents "
    "judged relevant. Queries concerned were seen, or one of their answers was."
)
NO_LEAK_NOTE = "Not compared with what the models were trained on: name it with --trained-on."


def collection_sheets(found: Json) -> list[Sheet]:
    """What was compared on, and what of it was seen in training."""
    columns = {
        "Queries": ("queries",),
        "Documents": ("documents",),
        "Queries without judgement": ("without_judgement",),
        "without answer": ("without_answer",),
    }
    if leaks := all(task["leakage"] for task in found["tasks"]):
        columns |= {
            "Queries seen": ("leakage", "seen", "queries"),
            "Answers seen": ("leakage", "seen", "documents"),
            "of answers": ("leakage", "of_documents"),
            "Queries concerned": ("leakage", "seen", "touched"),
        }
    rows = tuple(
        (name(task_name(task)), *(number(found, ("tasks", t, *at)) for at in columns.values()))
        for t, task in enumerate(found["tasks"])
    )
    note = LEAK_NOTE if leaks else NO_LEAK_NOTE
    sheets = [Sheet("What was asked", ("Collection", *columns), rows, note)]
    return [*sheets, *_clean_sheets(found)] if leaks else sheets


def _clean_sheets(found: Json) -> list[Sheet]:
    """Each task's scores without the queries that training concerns."""
    metric = HEADINGS[found["metric"]]
    sheets = []
    for t, task in enumerate(found["tasks"]):
        at = ("tasks", t, "leakage", "without")
        rows = tuple(
            (
                name(row["model"]),
                interval(found, ("tasks", t, "quality", r, "means", found["metric"])),
                interval(found, (*at, r)),
            )
            for r, row in enumerate(task["leakage"]["without"])
        )
        columns = ("Model", f"{metric}, all queries", "without those concerned")
        if rows:
            sheets.append(Sheet(task_name(task), columns, rows))
    return sheets


def models_sheets(found: Json) -> list[Sheet]:
    """Size and speed."""
    columns = {
        "Dimensions": ("dimensions", "{:,}", 1.0),
        "Parameters, M": ("parameters", "{:.1f}", 1e-6),
        "MB": ("megabytes", "{:.1f}", 1),
        "Load, s": ("load_seconds", "{:.2f}", 1),
        "Documents/s": ("documents_per_second", "{:,.1f}", 1),
        "Slowest pass": ("slowest_pass", "{:,.1f}", 1),
        "Fastest pass": ("fastest_pass", "{:,.1f}", 1),
        "Query p50, ms": ("latency_p50_ms", "{:.1f}", 1),
        "Query p95, ms": ("latency_p95_ms", "{:.1f}", 1),
        "Peak memory, MB": ("peak_memory_mb", "{:,.0f}", 1),
        "of it libraries, MB": ("base_memory_mb", "{:,.0f}", 1),
    }
    rows = []
    for place, model in enumerate(found["models"]):
        at = ("models", place, "efficiency")
        cells = (number(found, (*at, key), style, by) for key, style, by in columns.values())
        rows.append((name(model["name"]), *cells))
    note = (
        "Each model in a process of its own, on the machine named below. Load: the second time, "
        "when its files and libraries have been read. Documents/s: median of several passes. "
        "MB are 10⁶ bytes: of the parameters, and of the process at its peak."
    )
    return [Sheet("Size and speed", ("Model", *columns), tuple(rows), note)]


def quality_sheets(found: Json) -> list[Sheet]:
    """Over all tasks, then of each."""
    metric, base = HEADINGS[found["metric"]], found["baseline"]
    heading, tests = f"{metric} [95 % interval]", (f"Against {base}", "d", "p")
    rows = tuple(
        (
            name(row["model"]),
            interval(found, ("overall", place)),
            *_tested(found, ("overall", place, "delta")),
        )
        for place, row in enumerate(found["overall"])
    )
    note = (
        "Mean of the collections, each weighing the same; 95 % intervals and tests over queries, "
        "drawn within each collection. d: difference in its standard deviations. p: paired "
        "randomisation test."
    )
    several = len(found["tasks"]) > 1
    sheets = [Sheet("All collections", ("Model", heading, *tests), rows, note)] if several else []
    tests = (*tests, "p, Holm", "Wins", "Losses")
    rows_of_all = [row["means"] for task in found["tasks"] for row in task["quality"]]
    metrics = [m for m in METRICS if m != found["metric"] and all(m in r for r in rows_of_all)]
    usual = [m for m in metrics if m in HEADINGS]
    for place, task in enumerate(found["tasks"]):
        columns = ("Model", heading, *tests, *map(heading_of, usual))
        body = tuple(
            (
                name(row["model"]),
                interval(found, ("tasks", place, "quality", r, "means", found["metric"])),
                *_against(found, place, row["model"]),
                *_others(found, ("tasks", place, "quality", r, "means"), usual),
            )
            for r, row in enumerate(task["quality"])
        )
        note = (
            f"p: paired randomisation test over queries against {base}; Holm: adjusted for the "
            "number of collections. d: mean difference in standard deviations of the differences. "
            "In brackets 95 % intervals."
        )
        sheets.append(Sheet(task_name(task), columns, body, note))
        sheets.append(_more_metrics(found, place, [m for m in metrics if m not in HEADINGS]))
    return sheets


def _more_metrics(found: Json, place: int, metrics: Sequence[str]) -> Sheet:
    """Those metrics of a task that the table above it has no room for."""
    task = found["tasks"][place]
    rows = tuple(
        (name(row["model"]), *_others(found, ("tasks", place, "quality", r, "means"), metrics))
        for r, row in enumerate(task["quality"])
    )
    columns = ("Model", *map(heading_of, metrics))
    caption = f"{task_name(task)}: more metrics [95 % interval]"
    return Sheet(caption, columns, rows, folded=True)


def contrast_sheets(found: Json) -> list[Sheet]:
    """Scores of pairs."""
    sheets = []
    for place, task in enumerate(found["tasks"]):
        rows = []
        for m, model in enumerate(found["models"]):
            at = ("tasks", place, "contrast", m)
            rows.append(
                (
                    name(model["name"]),
                    interval(found, (*at, "contrast")),
                    number(found, (*at, "similar", "mean"), "{:.3f}"),
                    number(found, (*at, "dissimilar", "mean"), "{:.3f}"),
                    number(found, (*at, "separation"), "{:.4f}"),
                    number(found, (*at, "similar", "pairs")),
                    number(found, (*at, "dissimilar", "pairs")),
                )
            )
        columns = (
            "Model",
            "Contrast [95 % interval]",
            "Similar",
            "Dissimilar",
            "Separation",
            "Similar pairs",
            "Dissimilar pairs",
        )
        note = (
            "Contrast: mean score of pairs judged relevant minus that of sampled others. "
            "Separation: share of (similar, dissimilar) pairs of a query that stand in this order."
        )
        sheets.append(Sheet(task_name(task), columns, tuple(rows), note))
    return sheets


def _against(found: Json, place: int, model: str) -> tuple[Cell, ...]:
    """How a model differs from the baseline; empty cells for the baseline itself."""
    for d, delta in enumerate(found["tasks"][place]["deltas"]):
        if delta["model"] == model:
            at = ("tasks", place, "deltas", d)
            return (
                *_tested(found, at),
                p_value(found, (*at, "p_holm")),
                number(found, (*at, "wins")),
                number(found, (*at, "losses")),
            )
    return (Cell(""),) * 6


def _tested(found: Json, at: tuple[str | int, ...]) -> tuple[Cell, ...]:
    """A difference with its interval, effect size and p; empty cells where there is none."""
    if value_at(found, at) is None:
        return (Cell(""),) * 3
    effect = number(found, (*at, "effect"), "{:+.2f}")
    return interval(found, at, "{:+.3f}"), effect, p_value(found, (*at, "p"))


def _others(found: Json, at: tuple[str | int, ...], metrics: Sequence[str]) -> tuple[Cell, ...]:
    return tuple(interval(found, (*at, metric)) for metric in metrics)


def task_name(task: Json) -> str:
    """How a table names a task."""
    return f"{task['name']} ({task['split']})"
