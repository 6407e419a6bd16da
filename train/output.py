"""The output folder of a run: refused if it holds other work, claimed when training can begin."""

import shutil
from pathlib import Path

from tercet.configs import Config, load, save
from tercet.errors import UserError
from tercet.files import writable_folder

CONFIG = "config.yaml"
HARMLESS = (  # keys that change nothing in the weights
    "output",
    "overwrite",
    "licence",
    "tracking.",
    "evaluation.batch_tokens",
    "batch.keep_tokens",
    "train.log_every",
    "train.save_every",
)
OURS = ("checkpoints", "model", "run.jsonl", "summary.json", CONFIG)


def refuse_other_run(config: Config) -> None:
    """Raise UserError if the folder cannot be written, or holds a finished or a different run.

    An unfinished run of the same config is no obstacle: it goes on, with `overwrite` or without.
    """
    folder = writable_folder(Path(config.output))
    if config.overwrite:
        return
    if _finished(folder):
        raise UserError(
            f"output: {folder} already holds a finished run; choose another or say overwrite=true"
        )
    changed = _changed(folder, config)
    if changed:
        raise UserError(
            f"output: {folder} holds an unfinished run with another config ({', '.join(changed)}); "
            "choose another folder or say overwrite=true"
        )


def claim_output(config: Config) -> None:
    """Write the resolved config; with `overwrite` remove what another run left, nothing else."""
    folder = Path(config.output)
    if config.overwrite and (_finished(folder) or _changed(folder, config)):
        for path in (*(folder / name for name in OURS), *folder.glob("nonfinite-step-*.json")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    save(config, folder / CONFIG)


def differences(a: Config, b: Config) -> list[str]:
    """Dotted keys in which two configs differ, those that do not touch the weights aside."""
    left, right = _flat(a.model_dump(mode="json")), _flat(b.model_dump(mode="json"))
    keys = sorted(left.keys() | right.keys())
    return [k for k in keys if not k.startswith(HARMLESS) and left.get(k) != right.get(k)]


def _finished(folder: Path) -> bool:
    return (folder / "model").exists()


def _changed(folder: Path, config: Config) -> list[str]:
    """Keys in which an unfinished run in `folder` differs; none if no run has got anywhere."""
    begun = (folder / CONFIG).exists() and any((folder / "checkpoints").glob("step-*"))
    return differences(load(folder / CONFIG), config) if begun else []


def _flat(value: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, item in value.items():
        found |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return found
