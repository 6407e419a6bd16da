"""A comparison as one self-contained HTML page, made from its `results.json`."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tercet.report.cells import Cell, Json, interval, number, p_value, pointer
from tercet.report.pages import page, script
from tercet.report.sheets import (
    collection_sheets,
    contrast_sheets,
    models_sheets,
    quality_sheets,
)
from tercet.report.table import HEADINGS
from tercet.report.vector_sheets import compression_sheets, index_sheets, reduction_sheets

if TYPE_CHECKING:
    from tercet.report.plots import Plot  # it imports matplotlib, which takes a while

FORMAT = 2  # of results.json; raised when a reader of today could not read it
TEMPLATE = "comparison.html.j2"
SCRIPT = "comparison.js"


def comparison_page(found: Json, plots: "Sequence[Plot]") -> str:
    """The page as HTML: nothing is requested, every text escaped, every number points into JSON.

    `found` is what `results.json` holds. The one script sorts tables and says where a number
    stands; its hash is in the page's content security policy, which allows no other.
    """
    text, digest = script(SCRIPT)
    sections = [
        ("Collections", collection_sheets(found), ()),
        ("Models", models_sheets(found), ("size_speed",)),
        ("Retrieval quality", quality_sheets(found), ("quality_cost", "wins")),
        ("Similar and dissimilar pairs", contrast_sheets(found), ("scores",)),
        ("Shorter vectors", compression_sheets(found), ("quality_bytes",)),
        ("Indexes", index_sheets(found), ("indexes",)),
        ("Fewer dimensions", reduction_sheets(found), ()),
    ]
    drawn = {plot.name: plot for plot in plots}
    return page(
        TEMPLATE,
        found=found,
        script=text,
        digest=digest,
        data_uri=_data_uri,
        sections=[
            {"title": title, "sheets": sheets, "plots": [drawn[p] for p in wanted if p in drawn]}
            for title, sheets, wanted in sections
            if sheets
        ],
        facts=list(facts(found)),
    )


def summary_rows(found: Json) -> list[dict[str, str]]:
    """A row for each model and BM25, as the console shows it."""
    heading = f"{HEADINGS[found['metric']]} [95 % interval]"
    rows = []
    for place, mean in enumerate(found["overall"]):
        at = ("overall", place)
        row = {"Model": mean["model"], heading: interval(found, at).text}
        if mean["delta"] is not None:
            row[f"Against {found['baseline']}"] = interval(found, (*at, "delta"), "{:+.3f}").text
            row["p"] = p_value(found, (*at, "delta", "p")).text
            row["d"] = number(found, (*at, "delta", "effect"), "{:+.2f}").text
        if place < len(found["models"]):
            speed = found["models"][place]["efficiency"]
            row["MB"] = f"{speed['megabytes']:.1f}"
            row["Documents/s"] = f"{speed['documents_per_second']:,.1f}"
            row["Query p50, ms"] = f"{speed['latency_p50_ms']:.1f}"
        rows.append(row)
    return rows


def leak_lines(found: Json) -> Iterator[str]:
    """What of each collection was seen in training, where that was asked for."""
    for task in found["tasks"]:
        if leak := task["leakage"]:
            seen = leak["seen"]
            yield (
                f"{task['name']}: seen in training: {seen['queries']:,} of {leak['of_queries']:,} "
                f"queries, {seen['documents']:,} of {leak['of_documents']:,} answers; queries "
                f"concerned: {seen['touched']:,}"
            )


def facts(found: Json) -> Iterator[tuple[str, Cell]]:
    """What the figures depend on: its name, and the text with the place it was read from."""
    yield "written", Cell(found["created"], pointer=pointer(("created",)))
    yield "it took", number(found, ("seconds", "total"), "{:,.0f} s")
    for key, value in found["environment"].items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{package} {version}" for package, version in value.items())
        yield key, Cell(str(value), pointer=pointer(("environment", key)))
    for place, model in enumerate(found["models"]):
        prompts = ", ".join(f"{role} {prompt!r}" for role, prompt in model["prompts"].items())
        stored = ", ".join(map(str, model["calibrated"])) or "none: calibrated on each collection"
        text = (
            f"{model['path']}; fingerprint {model['fingerprint']}; at most {model['max_length']} "
            f"tokens; prompts {prompts}; int8 ranges stored for widths: {stored}; on "
            f"{model['efficiency']['device']} with {model['efficiency']['threads']} threads"
        )
        yield model["name"], Cell(text, pointer=pointer(("models", place)))


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
