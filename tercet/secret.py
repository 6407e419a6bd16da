"""Keys and tokens: never in a config, a message, a card or a checkpoint."""

import functools
import netrc
import os
import re
from pathlib import Path

# What holds a secret, by the names that tools of the field read.
NAMES = re.compile(
    r"WANDB_API_KEY|MILVUS_TOKEN|(HF|HUGGING_?FACE\w*|GITHUB)_TOKEN|AWS_(SECRET\w*|SESSION_TOKEN)"
)
SHAPES = re.compile(
    r"hf_[A-Za-z0-9]{20,}|wandb_v\d_[A-Za-z0-9_]{20,}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|AKIA[0-9A-Z]{16}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
LEAST = 8  # characters; anything shorter stands in ordinary words


def masked(text: str) -> str:
    """`text` with `***` for every secret known here and for what has a secret's shape.

    Known are those of the environment, of ~/.netrc, where W&B keeps its key, and the hub's token.

    >>> masked("hf_" + "a" * 30 + " was refused")
    '*** was refused'
    """
    for value in _known():
        text = text.replace(value, "***")
    return SHAPES.sub("***", text)


def holds_secret(text: str) -> bool:
    """Whether `masked` would change it."""
    return masked(text) != text


def _known() -> list[str]:
    values = [value for name, value in os.environ.items() if NAMES.fullmatch(name)]
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    hub = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    values += _passwords(Path(os.environ.get("NETRC") or "~/.netrc").expanduser())
    values += _token(Path(os.environ.get("HF_TOKEN_PATH") or f"{hub}/token").expanduser())
    return sorted((v for v in values if len(v) >= LEAST), key=len, reverse=True)


@functools.cache
def _passwords(path: Path) -> list[str]:
    try:
        return [password or "" for _, _, password in netrc.netrc(path).hosts.values()]
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return []


@functools.cache
def _token(path: Path) -> list[str]:
    try:
        return [path.read_text(encoding="utf-8").strip()]
    except (OSError, UnicodeDecodeError):
        return []
