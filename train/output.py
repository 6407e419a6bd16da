"""The output folder of a run: refused if it holds other work, claimed when training can begin."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tercet.cache import OUTPUT, Held, locked
from tercet.configs import Config, is_saved, load, save
from tercet.errors import UserError, did_you_mean
from tercet.files import sha256, writable_folder
from tercet.processes import on_main
from tercet.train.checkpoint import MANIFEST, checkpoints_in, verify
from tercet.train.inputs import data_paths, model_paths
from tercet.train.state import STATE, read_state
from tercet.train.tracking import WANDB_ID

CONFIG, SUMMARY = "config.yaml", "summary.json"
HARMLESS = (  # keys that change nothing in the weights
    "output",
    "overwrite",
    "licence",
    "data.corpus_licence",
    "tracking.",
    "evaluation.batch_tokens",
    "batch.keep_tokens",
    "train.log_every",
    "train.save_every",
    "train.keep",
)
CHECKPOINT = re.compile(r"(damaged-)?step-\d{8,}(\.\d+)?|\.step-\d{8,}\..+\.(partial|old)")


@contextmanager
def one_run_in(folder: Path) -> Iterator[None]:
    """Hold the output folder for the block; the lock dies with the main process, which has it.

    Raises UserError, on all processes, if another run of this or another machine holds it or if it
    cannot be written; where the file system has no locks, nobody is kept out. A meeting of all.
    """
    with ExitStack() as held:

        def take() -> None:
            place = writable_folder(folder)
            if held.enter_context(locked(place, wait=False, advice=OUTPUT)) is Held.NO:
                raise UserError(
                    f"output: another run is at work in {folder}; wait until it has ended, or "
                    "choose another folder"
                )

        on_main(take)
        yield


def refuse_other_run(config: Config, allowed: Sequence[str] = ()) -> None:
    """Raise UserError if the folder cannot be written, or holds a finished or a different run.

    Likewise if something else stands in the way, or would have to go that this run reads. An
    unfinished run of the same config is no obstacle: it goes on, with `overwrite` or without.
    Keys and sections in `allowed` may differ.
    """
    folder = writable_folder(Path(config.output))
    _refuse_strangers(folder)
    finished, changed = finished_in(folder), _changed(folder, config, allowed)
    if config.overwrite:
        if finished or changed:
            _refuse_to_lose(config)
    elif finished:
        raise UserError(
            f"output: {folder} already holds a finished run; choose another or say overwrite=true"
        )
    else:
        refuse_changes(config, "config", changed)


def asks_for(saved: Path, config: Config) -> bool:
    """Whether the config in a file, if there is one, is this very config, wherever it writes to."""
    try:
        was, now = (c.model_dump(mode="json") for c in (load(saved), config))
    except UserError:  # missing, or written by another version, which knew other keys
        return False
    return not differences(was, now, ("output", "overwrite"))


def clear_output(config: Config) -> None:
    """With `overwrite` remove what a finished run left, and nothing else."""
    if config.overwrite and finished_in(Path(config.output)):
        remove_run(config)


def remove_run(config: Config) -> None:
    """Delete what runs write into their output folder, but for the config, which is replaced.

    Raises UserError, with nothing deleted, if one of them is what this run begins with.
    """
    _refuse_to_lose(config)
    folder = Path(config.output)
    for path in _left_by_run(folder):
        gone = path.is_dir() and not path.is_symlink()
        shutil.rmtree(path) if gone else path.unlink(missing_ok=True)
    for place in ("checkpoints", "mined"):
        with suppress(OSError):  # something else is in there
            (folder / place).rmdir()


def claim_output(config: Config) -> None:
    """Write the resolved config, once nothing can refuse it any more: for people, and for the card.

    A run that goes on is compared with the config in its checkpoint.
    """
    save(config, Path(config.output) / CONFIG)


def refuse_changes(
    config: Config, what: str, changed: dict[str, tuple[Any, Any]], allow: Sequence[str] = ()
) -> None:
    """Raise UserError with each key, what it was and what it is now, unless there is none.

    allow: what to tell --allow-changed; the keys if nothing else is said.
    """
    if not changed:
        return
    listed = "; ".join(f"{key}: was {was!r}, now {now!r}" for key, (was, now) in changed.items())
    words = " ".join(f"--allow-changed {key}" for key in allow or changed)
    raise UserError(
        f"output: {config.output} holds an unfinished run with another {what} ({listed}); choose "
        f"another folder, say overwrite=true, or go on all the same with {words}"
    )


def differences(
    left: dict[str, Any], right: dict[str, Any], allowed: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both, except those in `allowed` or in its sections."""
    a, b = _flat(left), _flat(right)
    changed = (k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k))
    return {k: (a.get(k), b.get(k)) for k in changed if not _within(k, allowed)}


def check_allowed(allowed: Sequence[str], config: Config) -> None:
    """Raise UserError for a name in `allowed` that is nothing a run could differ in."""
    keys = _flat(config.model_dump(mode="json"))
    sections = {key.rsplit(".", n)[0] for key in keys for n in range(1, key.count(".") + 1)}
    known = {"code", "models", *keys, *sections}
    for name in set(allowed) - known:
        hint = did_you_mean(name, known, "give a key of the config, data, models or code")
        raise UserError(f"--allow-changed: nothing is called {name!r}; {hint}")


def finished_in(folder: Path) -> bool:
    """Whether a run has ended there, with all that it writes."""
    return (folder / "model").exists() and (folder / SUMMARY).exists()  # written in reverse order


def _left_by_run(folder: Path) -> list[Path]:
    """What runs have written, each by a name that nothing else bears; the summary last."""
    names = ("run.jsonl", WANDB_ID, "mined/cache", *(["model"] if finished_in(folder) else []))
    checkpoints = (p for p in folder.glob("checkpoints/*") if CHECKPOINT.fullmatch(p.name))
    found = [*folder.glob("mined/step-*"), *folder.glob("nonfinite-step-*.json")]
    return [*checkpoints, *found, *(folder / name for name in names), folder / SUMMARY]


def _refuse_strangers(folder: Path) -> None:
    """Raise UserError for what a run replaces, if no run has written it."""
    refuse_own_recipe(folder / CONFIG)
    model = folder / "model"
    if model.exists() and not finished_in(folder):
        raise UserError(
            f"output: {model} is not of a run, which would replace it (no {SUMMARY} beside it); "
            "choose another folder"
        )


def refuse_own_recipe(recipe: Path) -> None:
    """Raise UserError for a recipe that a person wrote where a run writes its resolved config."""
    if recipe.exists() and not is_saved(recipe):
        raise UserError(
            f"output: {recipe} is not of a run, which would replace it; choose another folder, "
            "or move it away"
        )


def _refuse_to_lose(config: Config) -> None:
    """Raise UserError if what earlier runs left is among what this one reads."""
    left = [path.resolve() for path in _left_by_run(Path(config.output))]
    for key, name in chain(model_paths(config), data_paths(config)):
        place = Path(name).expanduser().resolve()
        if any(place.is_relative_to(path) for path in left):
            raise UserError(
                f"{key}: overwrite=true would delete {name} before it is read; choose another "
                "output, or move it out of there"
            )


def config_changes(
    was: dict[str, Any], config: Config, allowed: Sequence[str]
) -> dict[str, tuple[Any, Any]]:
    """Keys that matter and differ from what a checkpoint remembers of its config, with both."""
    with suppress(ValidationError):  # keys that are new since have their defaults
        was = Config.model_validate(was).model_dump(mode="json")
    found = differences(was, config.model_dump(mode="json"), allowed)
    return {key: values for key, values in found.items() if not key.startswith(HARMLESS)}


def _changed(folder: Path, config: Config, allowed: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """The same of the newest checkpoint in `folder`; none if no run has got anywhere.

    A damaged one does not count. Its weights, which take long to hash, are looked at only if it is
    of another config.
    """
    for checkpoint in reversed(checkpoints_in(folder / "checkpoints")):
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # it is damaged
            manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
            if manifest["sha256"][STATE] == sha256(checkpoint / STATE):
                changed = config_changes(read_state(checkpoint)["config"], config, allowed)
                if not changed or verify(checkpoint) is None:
                    return changed
    return {}


def _within(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _flat(value: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, item in value.items():
        found |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return found
