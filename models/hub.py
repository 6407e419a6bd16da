"""Names that are no folder: on the hub, misspelt, or out of reach."""

import difflib
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from tercet.errors import UserError
from tercet.progress import say

PATIENCE = 5.0  # seconds for the hub to answer
KNOWN = (
    "embedded",
    "answerdotai/ModernBERT-base",
    "BAAI/bge-base-en-v1.5",
    "BAAI/bge-m3",
    "BAAI/bge-small-en-v1.5",
    "cross-encoder/ms-marco-MiniLM-L6-v2",
    "distilbert/distilbert-base-uncased",
    "FacebookAI/roberta-base",
    "google-bert/bert-base-uncased",
    "intfloat/e5-base-v2",
    "intfloat/e5-small-v2",
    "intfloat/multilingual-e5-small",
    "microsoft/MiniLM-L12-H384-uncased",
    "nomic-ai/nomic-embed-text-v1.5",
    "sentence-transformers/all-MiniLM-L6-v2",
    "sentence-transformers/all-MiniLM-L12-v2",
    "sentence-transformers/all-mpnet-base-v2",
    "sentence-transformers/multi-qa-MiniLM-L6-cos-v1",
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
    "Snowflake/snowflake-arctic-embed-m-v1.5",
    "Snowflake/snowflake-arctic-embed-xs",
    "thenlper/gte-base",
    "thenlper/gte-small",
)


def find_on_hub(name: str, where: str) -> None:
    """Raise UserError, within seconds, unless `name` is in the hub's cache here or on the hub.

    If it is cached and the hub cannot be reached, this process asks the hub nothing any more: each
    file of the model would wait again.
    """
    cached = cached_folder(name) is not None
    if cached and constants.HF_HUB_OFFLINE:
        return
    near = nearest_to(name)
    known = near is None or near == name
    hint = "give a model folder or 'embedded'" if known else f"did you mean {near!r}?"
    try:
        HfApi().model_info(name, timeout=PATIENCE)
    except (RepositoryNotFoundError, HFValidationError):
        if cached:
            return
        raise UserError(f"{where}: {name} is neither a folder nor on the hub; {hint}") from None
    except UNREACHABLE:
        if cached:
            say(f"{name}: the hub does not answer; the cached files are used")
            constants.HF_HUB_OFFLINE = True
            return
        raise UserError(
            f"{where}: {name} is no folder, not in the hub's cache, and the hub cannot be reached; "
            f"{hint}"
        ) from None


def cached_folder(name: str) -> Path | None:
    """Where the hub's cache holds a model of this name, if it does."""
    try:
        found = (try_to_load_from_cache(name, file) for file in FILES)
        return next((Path(file).parent for file in found if isinstance(file, str)), None)
    except HFValidationError:  # no name of a hub
        return None


def nearest_to(name: str) -> str | None:
    """The known name, cached model or folder nearby that `name` may be a misspelling of."""
    names = {known: known for known in (*KNOWN, *_cached(), *_beside(name))}
    names |= {known.split("/")[-1]: known for known in names}
    lower = {key.lower(): value for key, value in names.items()}
    found = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.75)
    return lower[found[0]] if found else None


def _cached() -> list[str]:
    folder = Path(constants.HF_HUB_CACHE)
    found = folder.glob("models--*") if folder.is_dir() else ()
    return [path.name.removeprefix("models--").replace("--", "/") for path in found]


def _beside(name: str) -> list[str]:
    parent = Path(name).expanduser().parent
    models = parent.glob("*/*config.json") if parent.is_dir() else ()
    return sorted({str(model.parent) for model in models})


FILES = ("modules.json", "config.json")
# The error of whichever HTTP client the hub's library uses, and OSError: the offline mode is one.
UNREACHABLE: tuple[type[Exception], ...] = HfHubHTTPError.__bases__  # type: ignore[assignment]
