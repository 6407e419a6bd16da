"""What a checkpoint's state.json says of its run, checked where it is read."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt

from tercet.errors import UserError

STATE = "state.json"


def name_of(step: int) -> str:
    """The folder of a checkpoint, sorting by step."""
    return f"step-{step:08d}"


class _Best(BaseModel):
    """Nothing is best before the first evaluation, nor without a dev set."""

    step: NonNegativeInt = 0
    value: float = 0.0


class _Mined(BaseModel):
    file: Annotated[str, Field(pattern=r"^mined/step-\d{8,}/mined\.parquet$")]
    sha256: str
    until: PositiveInt


class _Batch(BaseModel):
    micro_tokens: int | str
    keep_tokens: int | str


class _Config(BaseModel):
    """What is read of a config even if another version of the schema wrote it."""

    batch: _Batch
    evaluation: dict[str, Any]


class _State(BaseModel):
    step: NonNegativeInt
    best: _Best
    skipped: NonNegativeInt
    micro_tokens: PositiveInt
    keep_tokens: NonNegativeInt
    processes: PositiveInt
    config: _Config
    beside: dict[str, Any]
    data: dict[str, Any]
    models: dict[str, Any]
    code: dict[str, Any]
    mined: _Mined | None
    scaler: dict[str, Any] | None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Its state.json: step, best, sizes, config, fingerprints.

    Raises UserError for one that holds something else: a manifest says nothing of who wrote both.
    """
    path = checkpoint / STATE
    try:
        text = path.read_text(encoding="utf-8")
        _State.model_validate_json(text, strict=True)
        state = json.loads(text)
        if path.parent.name != name_of(state["step"]):
            raise ValueError("the folder is called by another step")
        return state
    except (ValueError, RecursionError):  # also bytes that are no text
        raise UserError(f"{path}: not what a run writes; delete {checkpoint}") from None
