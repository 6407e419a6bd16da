"""The page of `tercet serve`: a search box and what one or two models find."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

TEMPLATE = "search.html.j2"
SHOWN = 400  # characters of a document; the rest unfolds
SCRIPT = (resources.files("tercet.report") / "search.js").read_text(encoding="utf-8")
DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
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
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    text = (resources.files("tercet.report") / TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(text).render(
        collection=collection,
        documents=f"{documents:,}",
        models=models,
        examples=examples,
        found=found,
        shown=SHOWN,
        script=SCRIPT,
    )
