"""What a student was cut from, and what is left."""

from tercet.models import Size

ROWS = {  # field of a size -> heading and format
    "parameters": ("parameters", "{:,}"),
    "megabytes": ("megabytes", "{:,.1f}"),
    "layers": ("transformer layers", "{}"),
    "tokens": ("tokens in the vocabulary", "{:,}"),
    "dims": ("dimensions of a vector", "{}"),
}


def size_line(before: Size, after: Size) -> str:
    """What was cut, in a line.

    >>> size_line(Size(4, 16.0, 6, 9, 8), Size(2, 8.0, 3, 9, 8))
    '2 of 4 parameters, 8.0 of 16.0 megabytes, 3 of 6 transformer layers'
    """
    parts = []
    for field, (heading, style) in ROWS.items():
        old, new = getattr(before, field), getattr(after, field)
        if new != old:
            parts.append(f"{style.format(new)} of {style.format(old)} {heading}")
    return ", ".join(parts) or "nothing is cut"


def size_table(before: Size, after: Size) -> list[dict[str, str]]:
    """A row for each measure: before, after, and what share is left.

    >>> size_table(Size(4, 16.0, 6, 9, 8), Size(2, 8.0, 3, 9, 8))[0]
    {'Size': 'parameters', 'Before': '4', 'After': '2', 'Left': '50 %'}
    """
    rows = []
    for field, (heading, style) in ROWS.items():
        old, new = getattr(before, field), getattr(after, field)
        left = f"{100 * new / old:.0f} %" if old else ""
        row = {"Size": heading, "Before": style.format(old), "After": style.format(new)}
        rows.append(row | {"Left": left})
    return rows
