"""Which checkpoint a run goes on from, and whether it may: same rows, same code, or said so."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from tercet.configs import Config
from tercet.data import TrainingSet
from tercet.errors import UserError
from tercet.files import fingerprint, sha256
from tercet.models import resolve
from tercet.models.hub import cached_folder
from tercet.models.store import tokenizer_fingerprint
from tercet.processes import on_main, share_mistakes
from tercet.progress import say
from tercet.train.checkpoint import drop_unfinished, newest, set_aside
from tercet.train.inputs import model_paths
from tercet.train.output import (
    SUMMARY,
    clear_output,
    config_changes,
    differences,
    finished_in,
    refuse_changes,
    remove_run,
)
from tercet.train.rows import read_data
from tercet.train.state import read_state
from tercet.versions import code_version

PARTS = {  # of what a run began with, as a complaint calls them
    "config": "config",
    "beside": "dev set, held-out set, set of known answers or precision",
    "data": "set of rows",
    "models": "teacher, guide, cross-encoder, model to mine with or tokenizer",
    "code": "version of the code",
}
BY_KEY = ("config", "beside")  # what --allow-changed takes key by key, the others as a whole
# Of the files of a model those that decide its vectors.
DECIDING = (".safetensors", ".bin", ".json", ".txt", ".model", ".py")
# What a finished run need not share, or what cannot be told before its model is loaded.
FREE = ("config.output", "config.overwrite", "models.tokenizer")


def what_begins(
    config: Config, data: TrainingSet, beside: dict[str, Any], encoder: SentenceTransformer
) -> dict[str, Any]:
    """What a checkpoint remembers of config, rows, models and code, as this process reads them.

    `beside`: by config key, what its value leaves open: the contents of a path, say. Models other
    than the trained one are read by the main process alone. A meeting of all.
    """
    tokenizer = {"tokenizer": tokenizer_fingerprint(encoder.tokenizer)}
    return {
        "config": config.model_dump(mode="json"),
        "beside": beside,
        "data": _counted(data),
        "models": tokenizer | on_main(partial(_models, config)),
        "code": code_version(),
    }


def _counted(data: TrainingSet) -> dict[str, Any]:
    return {
        "rows": len(data),
        "queries": len(data.queries),
        "documents": len(data.documents),
        "negatives": len(data.negatives.values),
        "fingerprint": data.fingerprint,
    }


def _models(config: Config) -> dict[str, Any]:
    """Fingerprints of the models that steer the run, since a path may come to hold another.

    Of the trained model itself only the tokenizer is told: its weights are in the checkpoint.
    """
    anew, found = config.mining.refresh_every is not None, dict[str, list[str]]()
    for key, path in model_paths(config):
        if key != "model.path" and (anew or not key.startswith("mining.")):
            found.setdefault(key, []).append(_files(path, key))
    return found


def _files(path: str, where: str) -> str:
    """Hash of a model folder's weights, settings, vocabulary and code."""
    found = resolve(path, where)
    folder = Path(found) if Path(found).is_dir() else cached_folder(found)
    if folder is None:  # fetched only when it is used
        return found
    files = sorted(f for f in folder.rglob("*") if f.suffix in DECIDING)
    return fingerprint(part for f in files for part in (str(f.relative_to(folder)), sha256(f)))


def is_finished(config: Config) -> bool:
    """Whether the output folder holds this very run, finished, and it is not to be overwritten.

    Its summary remembers config, code, models and rows; if one is another, that is said. Reads the
    rows.
    """
    folder = Path(config.output)
    if config.overwrite or not finished_in(folder):
        return False
    now: dict[str, Callable[[], Any]] = {  # the quick ones first
        "config": partial(config.model_dump, mode="json"),
        "code": code_version,
        "models": partial(_models, config),
        "data": lambda: _counted(read_data(config)[1]),
    }
    begun = _begun(folder / SUMMARY)
    for part, found in now.items():
        if differences({part: begun.get(part)}, {part: found()}, FREE):
            say(f"output: the finished run in {folder} had another {PARTS[part]}")
            return False
    return True


def _begun(summary: Path) -> dict[str, Any]:
    """What the run of a summary began with; nothing if it does not say."""
    try:
        begun = json.loads(summary.read_text(encoding="utf-8"))["begun"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return begun if isinstance(begun, dict) else {}


def to_resume(config: Config, begun: dict[str, Any], allowed: Sequence[str] = ()) -> Path | None:
    """The newest sound checkpoint of the output folder, if there is one.

    With `overwrite`, what another run left there is removed first, and checkpoints of which none
    is sound are set aside. Raises UserError, with the difference, if the checkpoint is of another
    config, other rows, other teachers or other code and `allowed` does not name that. A meeting of
    all processes.
    """

    def choose() -> Path | None:
        folder = Path(config.output)
        clear_output(config)
        found = _newest(config)
        if found is not None and (changes := _changes(found, config, begun, allowed)):
            if not config.overwrite:
                words = [w for p in changes for w in (changes[p] if p in BY_KEY else [p])]
                every = {key: values for part in changes.values() for key, values in part.items()}
                refuse_changes(config, " and ".join(PARTS[p] for p in changes), every, words)
            say(f"{folder}: holds a run with other {' and '.join(changes)}, which is removed")
            remove_run(config)
            found = None
        drop_unfinished(folder / "checkpoints")
        set_aside(folder / "checkpoints", after=found)
        return found

    found = on_main(choose)
    with share_mistakes():
        if found is not None and not found.is_dir():
            raise UserError(
                f"output: a process of this launch does not see {found}; put the output folder on "
                "a disk that all of them share"
            )
    return found


def _newest(config: Config) -> Path | None:
    try:
        return newest(Path(config.output) / "checkpoints")
    except UserError:
        if not config.overwrite:
            raise
        say(f"{config.output}: no checkpoint is sound; they are set aside and the run begins anew")
        return None


def _changes(
    checkpoint: Path, config: Config, begun: dict[str, Any], allowed: Sequence[str]
) -> dict[str, dict[str, tuple[Any, Any]]]:
    """By part what differs from the checkpoint's."""
    state = read_state(checkpoint)
    beside = differences(state["beside"], begun["beside"], allowed)
    found = {"config": config_changes(state["config"], config, allowed), "beside": beside}
    for part in [part for part in PARTS if part not in (*BY_KEY, *allowed)]:
        found[part] = differences({part: state[part]}, {part: begun[part]})
    return {part: changed for part, changed in found.items() if changed}
