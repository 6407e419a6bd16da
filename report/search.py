"""The page of `tercet serve`: a search box and what one or two models find."""

from collections.abc import Mapping, Sequence
from typing import Any

from tercet.report.pages import page, script

TEMPLATE = "search.html.j2"
SHOWN = 400  # characters of a document; the rest unfolds
SCRIPT, DIGEST = script("search.js")
SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; "
    f"base-uri 'none'; frame-ancestors 'none'; script-src 'sha256-{DIGEST}'"
)


def search_page(
    *,
    collection: str,
    documents: int,
    models: Sequence[str],
    examples: Sequence[str],
    found: Mapping[str, Any] | None,
) -> str:
    """The page as HTML, every text escaped. `found` is what `/search.json` answers, or None."""
    return page(
        TEMPLATE,
        collection=collection,
        documents=f"{documents:,}",
        models=models,
        examples=examples,
        found=found,
        shown=SHOWN,
        script=SCRIPT,
    )
