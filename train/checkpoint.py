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
from tercet.files import fingerprint, pickled, sha256, whole_folder, write_json
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
    target = folder / name_of(step)
    with whole_folder(target) as partial:
        encoder.save(str(partial / "model"), create_model_card=False)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial / TENSORS)
        write_json(partial / "state.json", state | {"step": step})
        files = sorted(f for f in partial.rglob("*") if f.is_file())
        manifest = {str(f.relative_to(partial)): sha256(f) for f in files}
        write_json(partial / MANIFEST, manifest_of(manifest))
    return target


def manifest_of(hashes: dict[str, str]) -> dict[str, Any]:
    """What manifest.json holds: the SHA-256 of each file, and a digest of that list itself."""
    digest = fingerprint(part for item in sorted(hashes.items()) for part in item)
    return {"format": FORMAT, "sha256": hashes, "digest": digest}


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint; a damaged one is named and skipped."""
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        damage = verify(candidate)
        if damage is None:
            return candidate
        say(f"{candidate}: skipped, {damage}")
    return None


def verify(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None.

    Every file must be one that the manifest names, inside the folder, of the bytes it had when
    written, and none may hold a pickle: loading that would run whatever it says.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"its {MANIFEST} is of format {manifest['format']}, this version reads {FORMAT}"
        hashes = {str(name): str(digest) for name, digest in manifest["sha256"].items()}
        if manifest != manifest_of(hashes):
            return f"its {MANIFEST} is damaged"
        there = {str(f.relative_to(checkpoint)) for f in checkpoint.rglob("*") if not f.is_dir()}
        for name in sorted(hashes.keys() | (there - {MANIFEST})):
            damage = _damage(checkpoint, name, hashes.get(name))
            if damage is not None:
                return damage
    except OSError as error:
        return f"{Path(error.filename or MANIFEST).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"its {MANIFEST} is missing or damaged"
    return None


def _damage(checkpoint: Path, name: str, expected: str | None) -> str | None:
    path = checkpoint / name
    if not path.resolve().is_relative_to(checkpoint.resolve()):
        return f"its {MANIFEST} names a file outside it: {name}"
    if not path.is_file():
        return f"{name} is missing"
    if pickled(path):
        return f"{name} is a pickle, which could run any code"
    if expected is None:
        return f"{name} is not in its {MANIFEST}"
    return None if sha256(path) == expected else f"{name} is not what was written"


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


def drop_old(folder: Path, step: int, best: int, keep: int) -> None:
    """Keep the checkpoints of `step`, of `best` and the `keep` - 1 newest before `step`.

    Those after `step` go too: they are damaged, or of a run that was taken back; so does what a
    killed process left half written.
    """
    there = {path.name: path for path in sorted(folder.glob("step-*"))}
    past = [name for name in there if name <= name_of(step)]
    kept = {*past[-keep:], name_of(best)}
    unfinished = [*folder.glob(".step-*.partial"), *folder.glob(".step-*.old")]
    for path in [*(p for name, p in there.items() if name not in kept), *unfinished]:
        shutil.rmtree(path)


def name_of(step: int) -> str:
    """The folder of a checkpoint, sorting by step."""
    return f"step-{step:08d}"


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


FORMAT = 2
MANIFEST = "manifest.json"
TENSORS = "trainer.safetensors"
