"""A comparison as one self-contained HTML page, made from its `results.json`."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from tercet.report.cells import Json, interval
from tercet.report.sheets import (
    compression_sheets,
    contrast_sheets,
    index_sheets,
    models_sheets,
    quality_sheets,
    reduction_sheets,
)
from tercet.report.table import HEADINGS

if TYPE_CHECKING:
    from tercet.report.plots import Plot  # it imports matplotlib, which takes a while

FORMAT = 1  # of results.json; raised when a reader of today could not read it
TEMPLATE = "comparison.html.j2"
SORT_SCRIPT = "sort.js"


def comparison_page(found: Json, plots: "Sequence[Plot]") -> str:
    """The page as HTML: nothing is requested, every text escaped, every number points into JSON.

    `found` is what `results.json` holds. The one script sorts tables; its hash is in the page's
    content security policy, which allows no other.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    script = _file(SORT_SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    sections = [
        ("Models", models_sheets(found), ("size_speed",)),
        ("Retrieval quality", quality_sheets(found), ("quality_cost", "wins")),
        ("Similar and dissimilar pairs", contrast_sheets(found), ("scores",)),
        ("Shorter vectors", compression_sheets(found), ("quality_bytes",)),
        ("Indexes", index_sheets(found), ("indexes",)),
        ("Fewer dimensions", reduction_sheets(found), ()),
    ]
    drawn = {plot.name: plot for plot in plots}
    return environment.from_string(_file(TEMPLATE)).render(
        found=found,
        script=script,
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
        row = {"Model": mean["model"], heading: interval(found, ("overall", place)).text}
        if place < len(found["models"]):
            at = found["models"][place]["efficiency"]
            row["MB"] = f"{at['megabytes']:.1f}"
            row["Documents/s"] = f"{at['documents_per_second']:,.1f}"
            row["Query p50, ms"] = f"{at['latency_p50_ms']:.1f}"
        rows.append(row)
    return rows


def facts(found: Json) -> Any:
    """What the figures depend on, as pairs of texts."""
    yield "written", found["created"]
    for key, value in found["environment"].items():
        if isinstance(value, Mapping):
            yield key, ", ".join(f"{package} {version}" for package, version in value.items())
        else:
            yield key, value
    for model in found["models"]:
        prompts = ", ".join(f"{role} {prompt!r}" for role, prompt in model["prompts"].items())
        stored = ", ".join(map(str, model["calibrated"])) or "none: calibrated on each collection"
        yield (
            model["name"],
            f"{model['path']}; fingerprint {model['fingerprint']}; at most {model['max_length']} "
            f"tokens; prompts {prompts}; int8 ranges stored for widths: {stored}; on "
            f"{model['efficiency']['device']} with {model['efficiency']['threads']} threads",
        )


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _file(name: str) -> str:
    return (resources.files("tercet.report") / name).read_text(encoding="utf-8")
