"""Everything that decides the future of a run, written whole, hashed, and verified when read.

Random numbers and the learning rate are functions of (seed, step), so weights, optimizer state
and the step number are all there is to keep. Tensors are safetensors and the rest JSON: nothing
is unpickled.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tercet.errors import UserError
from tercet.files import sha256, whole_folder, write_json
from tercet.progress import say
from tercet.train.shards import like, whole


def save_checkpoint(
    folder: Path,
    step: int,
    encoder: SentenceTransformer,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
) -> Path:
    """Write checkpoint `step`: an ST-loadable `model/`, `trainer.safetensors`, `state.json`."""
    target = folder / f"step-{step:08d}"
    with whole_folder(target) as partial:
        encoder.save(str(partial / "model"), create_model_card=False)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial / TENSORS)
        write_json(partial / "state.json", state | {"step": step})
        files = sorted(f for f in partial.rglob("*") if f.is_file())
        manifest = {str(f.relative_to(partial)): sha256(f) for f in files}
        write_json(partial / "manifest.json", {"format": FORMAT, "sha256": manifest})
    return target


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint; a damaged one is named and skipped."""
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        damage = verify(candidate)
        if damage is None:
            return candidate
        say(f"{candidate}: skipped, {damage}")
    return None


def verify(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
        hashes = manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest.json is missing or damaged"
    for name, expected in hashes.items():
        path = checkpoint / name
        if not path.resolve().is_relative_to(checkpoint.resolve()):
            return f"its manifest names a file outside it: {name}"
        if not path.is_file():
            return f"{name} is missing"
        if sha256(path) != expected:
            return f"{name} is not what was written"
    return None


def load_checkpoint(
    checkpoint: Path, encoder: SentenceTransformer, trust_remote_code: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Put the weights into `encoder`; return the other tensors and the state."""
    saved = SentenceTransformer(
        str(checkpoint / "model"), device="cpu", trust_remote_code=trust_remote_code
    )
    encoder.load_state_dict(saved.state_dict())
    tensors = load_file(checkpoint / TENSORS)
    return tensors, json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def drop_old(folder: Path, best: int) -> None:
    """Keep the checkpoint of step `best` and the two newest: the older one if the newest breaks.

    What a killed process left half written goes too.
    """
    older = sorted(folder.glob("step-*"))[:-2]
    unfinished = [*folder.glob(".step-*.partial"), *folder.glob(".step-*.old")]
    for path in [*(p for p in older if p.name != f"step-{best:08d}"), *unfinished]:
        shutil.rmtree(path)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: dict[Tensor, str]
) -> dict[str, Tensor]:
    """Adam's averages and counters as `name/field` -> whole tensor; asked by all processes."""
    found = {}
    for parameter, fields in optimizer.state.items():
        for field, value in fields.items():
            found[f"{names[parameter]}/{field}"] = whole(torch.as_tensor(value))
    return found


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: dict[Tensor, str], tensors: dict[str, Tensor]
) -> None:
    """The reverse of `optimizer_tensors`. Raises UserError if a parameter's state is missing."""
    saved: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, slash, field = key.rpartition("/")
        if slash:
            saved.setdefault(name, {})[field] = value
    if not saved:
        return  # every step before the checkpoint was skipped
    for parameter, name in names.items():
        if name not in saved:
            raise UserError(f"the checkpoint holds no optimizer state for {name}; start afresh")
        optimizer.state[parameter] = {
            field: value.clone() if field == "step" else like(value, parameter)
            for field, value in saved[name].items()
        }


FORMAT = 1
TENSORS = "trainer.safetensors"
