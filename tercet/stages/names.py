"""What models are called, and folders that must not be there."""

from collections.abc import Sequence
from pathlib import Path

from tercet.errors import UserError
from tercet.evaluation import safe_name
from tercet.evaluation.bm25 import NAME as BM25
from tercet.evaluation.compression import DIMS
from tercet.evaluation.results import COMPARISONS
from tercet.models import EMBEDDED

RESULTS = "results.json"  # of `tercet compare`
LIVES = {  # a file -> what a folder holds in which it lies
    "corpus.jsonl": "a BEIR folder",
    "corpus.jsonl.gz": "a BEIR folder",
    "modules.json": "a model",
    RESULTS: "a comparison of `tercet compare`",
    COMPARISONS: "results of `tercet evaluate`",
}


def refuse_mixed(out: Path, own: str) -> None:
    """Raise UserError if `out` holds something else than what the file `own` stands for."""
    for file, what in LIVES.items():
        if file != own and (out / file).exists():
            raise UserError(f"{out}: holds {what} ({file}); choose another --out")


def name_of(path: str) -> str:
    """What a model is called in tables: its folder, and for `<run>/model` the run."""
    if path == EMBEDDED:
        return "all-MiniLM-L6-v2"
    folder = Path(path).resolve() if Path(path).exists() else Path(path)
    return folder.parent.name if folder.name == "model" else folder.name


def refuse_twice(what: str, names: Sequence[str]) -> None:
    """Results are filed by name, so two of one name would overwrite each other."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two {what} are called {twice[0]!r}; rename a folder or evaluate apart")


def refuse_models(paths: Sequence[str], beside: Sequence[str] = ()) -> None:
    """Raise UserError for a model given twice, and for two rows that would be filed as one.

    `beside`: the rows that no path stands for, such as BM25 and what a reranker makes of a model.
    """
    if BM25 in beside and BM25 in paths and not Path(BM25).exists():
        raise UserError(f"{BM25}: is no model; it stands beside the others anyway, so leave it out")
    places = [str(Path(path).resolve()) if Path(path).exists() else path for path in paths]
    for place, path in enumerate(paths):
        if places[place] in places[:place]:
            raise UserError(f"{path}: given twice; name each model once")
    refuse_twice("models", [safe_name(name) for name in (*map(name_of, paths), *beside)])


def refuse_wide(asked: Sequence[int], width: int) -> None:
    """Raise UserError if one of the lengths asked for, the usual ones aside, shortens no vector."""
    if too_long := [length for length in asked if length >= width and length not in DIMS]:
        raise UserError(f"--dims: {too_long[0]} shortens nothing; give less than {width}")


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise UserError if something is there that was not to be replaced."""
    if path.exists() and not overwrite:
        raise UserError(f"output: {path} exists; choose another folder or say overwrite")
