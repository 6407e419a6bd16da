"""Tables of a comparison's page, made from its `results.json`: shorter vectors and indexes."""

from tercet.report.cells import INDEX_NAMES, Cell, Json, Sheet, interval, name, number, value_at
from tercet.report.sheets import task_name

FORM = ("Dimensions", "Precision", "Rescored", "Bytes", "+ for rescoring", "Score", "Kept")
REDUCTION_NOTE = (
    "Vectors are unit vectors before and after. Distance ratio: squared distance after the "
    "reduction / before, mean over sampled pairs; largest error: of any of them from 1. The bound "
    "is the epsilon that the Johnson-Lindenstrauss lemma promises for so many points and "
    "dimensions, and beside it stand the dimensions it needs to promise the largest error found; "
    "empty where it promises none below 1, or nothing for the method."
)

PROJECTION_NOTE = (
    "Memory of an index of so many vectors, computed from its parts with the settings for that "
    "many: lists grow in number with the collection. Bits: without the int8 vectors that rescoring "
    "reads, a byte for each dimension of each vector, which may stay on a disk."
)


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
    sheets = [Sheet("All collections", mean_columns, tuple(rows), note)]
    for place, task in enumerate(found["tasks"]):
        body = []
        for m, model in enumerate(found["models"]):
            for f in range(len(task["compression"][m])):
                at = ("tasks", place, "compression", m, f)
                delta = interval(found, (*at, "delta"), "{:+.3f}")
                body.append((name(model["name"]), *_form(found, at), delta))
        columns = ("Model", *FORM, "Against full float32 [95 %]")
        sheets.append(Sheet(task_name(task), columns, tuple(body)))
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
                kind = INDEX_NAMES[index["kind"]]
                named = name(f"{kind} ({index['name']})")
                rows.append((name(model["name"]), named, *_index(found, at)))
                sizes = (
                    _size(found, (*at, "projected", count), index["projected"][count])
                    for count in index["projected"]
                )
                scaled.append((name(model["name"]), name(kind), *sizes))
        columns = ("Model", "Index", "Recall@10", "Score", "Kept", "Build, s", "Queries/s")
        columns = (*columns, "Bytes per vector", "+ for rescoring")
        sheets.append(Sheet(task_name(task), columns, tuple(rows)))
        counts = (f"{int(count):,}" for count in task["indexes"][0][0]["projected"])
        title = f"Projected from {task_name(task)}"
        columns = ("Model", "Index", *counts)
        sheets.append(Sheet(title, columns, tuple(scaled), PROJECTION_NOTE))
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
                    number(found, (*at, "needed")),
                )
                rows.append((name(model["name"]), name(way["method"]), *cells))
        if rows:
            columns = ("Model", "Method", "Dimensions", "Recall@10", "Score", "Kept")
            columns = (*columns, "Distance ratio", "Largest error", "Lemma's bound")
            columns = (*columns, "Lemma needs")
            sheets.append(Sheet(task_name(task), columns, tuple(rows), REDUCTION_NOTE))
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
