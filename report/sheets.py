"""The tables of a comparison's page, made from its `results.json`."""

from collections.abc import Sequence

from tercet.report.cells import (
    INDEX_NAMES,
    Cell,
    Json,
    Sheet,
    interval,
    name,
    number,
    p_value,
    value_at,
)
from tercet.report.table import HEADINGS

FORM = ("Dimensions", "Precision", "Rescored", "Bytes", "+ for rescoring", "Score", "Kept")
REDUCTION_NOTE = (
    "Vectors are unit vectors before and after. Distance ratio: squared distance after the "
    "reduction / before, mean over sampled pairs; largest error: of any of them from 1. The bound "
    "is the epsilon that the Johnson-Lindenstrauss lemma promises for so many points and "
    "dimensions; empty where it promises none below 1, or nothing for the method."
)


def models_sheets(found: Json) -> list[Sheet]:
    """Size and speed."""
    columns = {
        "Dimensions": ("dimensions", "{:,}", 1.0),
        "Parameters, M": ("parameters", "{:.1f}", 1e-6),
        "MB": ("megabytes", "{:.1f}", 1),
        "Load, s": ("load_seconds", "{:.2f}", 1),
        "Documents/s": ("documents_per_second", "{:,.1f}", 1),
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
        "Each model in a process of its own, on the machine named below. MB are 10⁶ bytes: of the "
        "parameters, and of the process at its peak."
    )
    return [Sheet("Size and speed", ("Model", *columns), tuple(rows), note)]


def quality_sheets(found: Json) -> list[Sheet]:
    """Over all tasks, then of each."""
    metric, base = HEADINGS[found["metric"]], found["baseline"]
    rows = tuple(
        (name(row["model"]), interval(found, ("overall", place)))
        for place, row in enumerate(found["overall"])
    )
    tasks = len(found["tasks"])
    note = f"Mean of {tasks} collections, each weighing the same; 95 % intervals over queries."
    heading = f"{metric} [95 % interval]"
    sheets = [Sheet("All collections", ("Model", heading), rows, note)] if tasks > 1 else []
    against = (f"Against {base}", "p", "p, Holm", "Wins", "Losses")
    rows_of_all = [row["means"] for task in found["tasks"] for row in task["quality"]]
    metrics = [m for m in HEADINGS if m != found["metric"] and all(m in r for r in rows_of_all)]
    for place, task in enumerate(found["tasks"]):
        columns = ("Model", heading, *against, *(HEADINGS[m] for m in metrics))
        body = tuple(
            (
                name(row["model"]),
                interval(found, ("tasks", place, "quality", r, "means", found["metric"])),
                *_against(found, place, row["model"]),
                *_others(found, ("tasks", place, "quality", r, "means"), metrics),
            )
            for r, row in enumerate(task["quality"])
        )
        note = (
            f"{task['queries']:,} queries, {task['documents']:,} documents. p: paired "
            f"randomisation test over queries against {base}; Holm: adjusted for all "
            "comparisons on this page."
        )
        sheets.append(Sheet(_task(task), columns, body, note))
    return sheets


def contrast_sheets(found: Json) -> list[Sheet]:
    """Scores of pairs."""
    sheets = []
    for place, task in enumerate(found["tasks"]):
        rows = []
        for m, model in enumerate(found["models"]):
            at = ("tasks", place, "contrast", m)
            low, high = (task["contrast"][m][side] for side in ("low", "high"))
            value = number(found, (*at, "contrast"), "{:.3f}")
            rows.append(
                (
                    name(model["name"]),
                    Cell(f"{value.text} [{low:.3f}, {high:.3f}]", value.order, value.pointer),
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
        sheets.append(Sheet(_task(task), columns, tuple(rows), note))
    return sheets


def compression_sheets(found: Json) -> list[Sheet]:
    """Means over tasks, then each task."""
    mean_columns = ("Model", *FORM, "Least kept of a collection")
    rows = [
        (
            name(model["name"]),
            *_form(found, ("compression", m, f)),
            number(found, ("compression", m, f, "kept_least"), "{:.1f} %", 100),
        )
        for m, model in enumerate(found["models"])
        for f in range(len(found["compression"][m]))
    ]
    note = (
        "Kept: share of the full float32 vectors' score. Rescored: the first 100 documents of the "
        "compact search are scored again, the float32 query against full int8 vectors, which may "
        "stay on a disk (the second column of bytes)."
    )
    title = f"Mean of {len(found['tasks'])} collections" if len(found["tasks"]) > 1 else "Mean"
    sheets = [Sheet(title, mean_columns, tuple(rows), note)]
    for place, task in enumerate(found["tasks"]):
        body = []
        for m, model in enumerate(found["models"]):
            for f in range(len(task["compression"][m])):
                at = ("tasks", place, "compression", m, f)
                delta = interval(found, (*at, "delta"), "{:+.3f}")
                p = p_value(found, (*at, "delta", "p"))
                body.append((name(model["name"]), *_form(found, at), delta, p))
        columns = ("Model", *FORM, "Against full float32 [95 %]", "p")
        sheets.append(Sheet(_task(task), columns, tuple(body)))
    return sheets


def _form(found: Json, at: tuple[str | int, ...]) -> tuple[Cell, ...]:
    """The cells that name a form of vectors and say how good it is."""
    form = value_at(found, at)
    return (
        number(found, (*at, "dims")),
        name(form["precision"]),
        name("yes" if form["rescored"] else "no"),
        number(found, (*at, "bytes")),
        number(found, (*at, "rescoring_bytes")),
        number(found, (*at, "mean"), "{:.3f}"),
        number(found, (*at, "kept"), "{:.1f} %", 100),
    )


def index_sheets(found: Json) -> list[Sheet]:
    """The index study of each task that has one, and what memory it would take at scale."""
    sheets = []
    for place, task in enumerate(found["tasks"]):
        if "indexes" not in task:
            continue
        rows, scaled = [], []
        for m, model in enumerate(found["models"]):
            for i, index in enumerate(task["indexes"][m]):
                at = ("tasks", place, "indexes", m, i)
                named = name(f"{INDEX_NAMES[index['kind']]} ({index['name']})")
                rows.append((name(model["name"]), named, *_index(found, at)))
                sizes = (
                    _size(found, (*at, "projected", count), index["projected"][count])
                    for count in index["projected"]
                )
                scaled.append((name(model["name"]), named, *sizes))
        columns = ("Model", "Index", "Recall@10", "Score", "Kept", "Build, s", "Queries/s")
        columns = (*columns, "Bytes per vector", "+ for rescoring")
        sheets.append(Sheet(_task(task), columns, tuple(rows)))
        counts = (f"{int(count):,}" for count in task["indexes"][0][0]["projected"])
        note = "Memory of the index for so many vectors, computed from what one takes."
        title = f"Projected from {_task(task)}"
        sheets.append(Sheet(title, ("Model", "Index", *counts), tuple(scaled), note))
    return sheets


def reduction_sheets(found: Json) -> list[Sheet]:
    """Truncation, PCA and random projection of each task that has an index study."""
    sheets = []
    for place, task in enumerate(found["tasks"]):
        rows = []
        for m, model in enumerate(found["models"]) if "reductions" in task else ():
            for r, way in enumerate(task["reductions"][m]):
                at = ("tasks", place, "reductions", m, r)
                cells = (
                    number(found, (*at, "dims")),
                    number(found, (*at, "recall"), "{:.3f}"),
                    number(found, (*at, "mean"), "{:.3f}"),
                    number(found, (*at, "kept"), "{:.1f} %", 100),
                    number(found, (*at, "distortion", "mean"), "{:.3f}"),
                    number(found, (*at, "distortion", "largest"), "{:.3f}"),
                    number(found, (*at, "bound"), "{:.3f}"),
                )
                rows.append((name(model["name"]), name(way["method"]), *cells))
        if rows:
            columns = ("Model", "Method", "Dimensions", "Recall@10", "Score", "Kept")
            columns = (*columns, "Distance ratio", "Largest error", "Lemma's bound")
            sheets.append(Sheet(_task(task), columns, tuple(rows), REDUCTION_NOTE))
    return sheets


def _index(found: Json, at: tuple[str | int, ...]) -> tuple[Cell, ...]:
    return (
        number(found, (*at, "recall"), "{:.3f}"),
        number(found, (*at, "mean"), "{:.3f}"),
        number(found, (*at, "kept"), "{:.1f} %", 100),
        number(found, (*at, "build_seconds"), "{:.2f}"),
        number(found, (*at, "queries_per_second"), "{:,.0f}"),
        number(found, (*at, "bytes_per_vector"), "{:,.1f}"),
        number(found, (*at, "rescoring_bytes")),
    )


def _size(found: Json, at: tuple[str | int, ...], size: float) -> Cell:
    """Bytes in the unit that leaves one to three digits before the point."""
    power = next((p for p in (12, 9, 6) if size >= 10**p), 3)
    unit = {12: "TB", 9: "GB", 6: "MB", 3: "kB"}[power]
    cell = number(found, at, "{:.2f} " + unit, 10.0**-power)
    return Cell(cell.text, size, cell.pointer)


def _against(found: Json, place: int, model: str) -> tuple[Cell, ...]:
    """How a model differs from the baseline; empty cells for the baseline itself."""
    for d, delta in enumerate(found["tasks"][place]["deltas"]):
        if delta["model"] == model:
            at = ("tasks", place, "deltas", d)
            return (
                interval(found, at, "{:+.3f}"),
                p_value(found, (*at, "p")),
                p_value(found, (*at, "p_holm")),
                number(found, (*at, "wins")),
                number(found, (*at, "losses")),
            )
    return (Cell(""),) * 5


def _others(found: Json, at: tuple[str | int, ...], metrics: Sequence[str]) -> tuple[Cell, ...]:
    return tuple(number(found, (*at, metric, "mean"), "{:.3f}") for metric in metrics)


def _task(task: Json) -> str:
    return f"{task['name']} ({task['split']})"
