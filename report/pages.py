"""Pages from the templates and scripts beside this file."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

NONE: Mapping[str, Callable[..., str]] = {}


def page(template: str, filters: Mapping[str, Callable[..., str]] = NONE, **values: Any) -> str:
    """The template filled in: every text escaped, a name that is missing an error."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= filters
    return environment.from_string(_text(template)).render(**values)


def script(name: str) -> tuple[str, str]:
    """A script, and its SHA-256 in base64 as a content security policy names it."""
    text = _text(name)
    return text, base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _text(name: str) -> str:
    return (resources.files("tercet.report") / name).read_text(encoding="utf-8")
