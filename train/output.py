"""The output folder of a run: refused if it holds other work, claimed when training can begin."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tercet.cache import Held, locked
from tercet.configs import Config, load, save
from tercet.errors import UserError, did_you_mean
from tercet.files import writable_folder
from tercet.processes import on_main
from tercet.train.checkpoint import checkpoints_in
from tercet.train.tracking import WANDB_ID

CONFIG = "config.yaml"
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
OURS = ("checkpoints", "mined", "model", "run.jsonl", "summary.json", WANDB_ID, CONFIG)


@contextmanager
def one_run_in(folder: Path) -> Iterator[None]:
    """Hold the output folder for the block; the lock dies with the main process, which has it.

    Raises UserError, on all processes, if another run of this or another machine holds it or if it
    cannot be written; where the file system has no locks, nobody is kept out. A meeting of all.
    """
    with ExitStack() as held:

        def take() -> None:
            if held.enter_context(locked(writable_folder(folder), wait=False)) is Held.NO:
                raise UserError(
                    f"output: another run is at work in {folder}; wait until it has ended, or "
                    "choose another folder"
                )

        on_main(take)
        yield


def refuse_other_run(config: Config, allowed: Sequence[str] = ()) -> None:
    """Raise UserError if the folder cannot be written, or holds a finished or a different run.

    An unfinished run of the same config is no obstacle: it goes on, with `overwrite` or without.
    Keys and sections in `allowed` may differ.
    """
    folder = writable_folder(Path(config.output))
    if config.overwrite:
        return
    if _finished(folder):
        raise UserError(
            f"output: {folder} already holds a finished run; choose another or say overwrite=true"
        )
    refuse_changes(config, "config", _changed(folder, config, allowed))


def clear_output(config: Config, allowed: Sequence[str] = ()) -> None:
    """With `overwrite` remove what a finished or a different run left, and nothing else."""
    folder = Path(config.output)
    if config.overwrite and (_finished(folder) or _changed(folder, config, allowed)):
        remove_run(folder)


def remove_run(folder: Path) -> None:
    """Delete what runs write into their output folder."""
    for path in (*(folder / name for name in OURS), *folder.glob("nonfinite-step-*.json")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def claim_output(config: Config) -> None:
    """Write the resolved config, which a run that goes on is compared with."""
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


def _finished(folder: Path) -> bool:
    return (folder / "model").exists()


def _changed(folder: Path, config: Config, allowed: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Keys in which an unfinished run in `folder` differs; none if no run has got anywhere."""
    if not (folder / CONFIG).exists() or not checkpoints_in(folder / "checkpoints"):
        return {}
    was, now = (c.model_dump(mode="json") for c in (load(folder / CONFIG), config))
    found = differences(was, now, allowed)
    return {key: values for key, values in found.items() if not key.startswith(HARMLESS)}


def _within(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _flat(value: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, item in value.items():
        found |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return found
