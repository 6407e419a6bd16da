"""Which checkpoint a run goes on from, and whether it may: same rows, same code, or said so."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tercet.configs import Config
from tercet.data import TrainingSet
from tercet.errors import UserError
from tercet.processes import on_main, share_mistakes
from tercet.progress import say
from tercet.train.checkpoint import newest
from tercet.train.output import (
    claim_output,
    clear_output,
    differences,
    refuse_changes,
    remove_run,
)
from tercet.versions import code_version


def what_begins(config: Config, data: TrainingSet) -> dict[str, Any]:
    """What a checkpoint remembers of config, rows and code."""
    counted = {
        "rows": len(data),
        "queries": len(data.queries),
        "documents": len(data.documents),
        "negatives": len(data.negatives.values),
        "fingerprint": data.fingerprint,
    }
    return {"config": config.model_dump(mode="json"), "data": counted, "code": code_version()}


def to_resume(config: Config, begun: dict[str, Any], allowed: Sequence[str] = ()) -> Path | None:
    """The newest sound checkpoint of the output folder, which is claimed for this run.

    With `overwrite`, what another run left there is removed first. Raises UserError, with the
    difference, if the checkpoint was trained on other rows or by other code and `allowed` names
    neither. A meeting of all processes.
    """

    def choose() -> Path | None:
        folder = Path(config.output)
        clear_output(config, allowed)
        found = newest(folder / "checkpoints")
        if found is not None and (changes := _changes(found, begun, allowed)):
            if not config.overwrite:
                for part, changed in changes.items():
                    what = {"data": "set of rows", "code": "version of the code"}[part]
                    refuse_changes(config, what, changed, allow=tuple(changes))
            say(f"{folder}: holds a run on other {' and '.join(changes)}, which is removed")
            remove_run(folder)
            found = None
        claim_output(config)
        return found

    found = on_main(choose)
    with share_mistakes():
        if found is not None and not found.is_dir():
            raise UserError(
                f"output: a process of this launch does not see {found}; put the output folder on "
                "a disk that all of them share"
            )
    return found


def _changes(
    checkpoint: Path, begun: dict[str, Any], allowed: Sequence[str]
) -> dict[str, dict[str, tuple[Any, Any]]]:
    """By part, `data` and `code`, what differs from the checkpoint's."""
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    parts = [part for part in ("data", "code") if part not in allowed]
    found = {part: differences({part: state[part]}, {part: begun[part]}) for part in parts}
    return {part: changed for part, changed in found.items() if changed}
