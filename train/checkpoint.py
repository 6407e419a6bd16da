"""Everything that decides the future of a run, written whole, hashed, and verified when read.

Random numbers and the learning rate are functions of (seed, step), so weights, optimizer state
and the step number are all there is to keep. Tensors are safetensors and the rest JSON: nothing
is unpickled.
"""

import json
import re
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tercet.configs import ModelConfig
from tercet.errors import UserError
from tercet.files import fingerprint, pickled, sha256, whole_folder, write_json
from tercet.models import load_encoder
from tercet.progress import say
from tercet.train.shards import like
from tercet.train.state import STATE, name_of, read_state


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
        write_json(partial / STATE, state | {"step": step})
        files = sorted(f for f in partial.rglob("*") if f.is_file())
        manifest = {str(f.relative_to(partial)): sha256(f) for f in files}
        write_json(partial / MANIFEST, manifest_of(manifest))
    return target


def manifest_of(hashes: dict[str, str], version: int | None = None) -> dict[str, Any]:
    """What manifest.json holds: the SHA-256 of each file, and a digest of that list itself."""
    version = FORMAT if version is None else version
    parts = (part for item in sorted(hashes.items()) for part in item)
    return {"format": version, "sha256": hashes, "digest": fingerprint([str(version), *parts])}


def checkpoints_in(folder: Path) -> list[Path]:
    """The folders of checkpoints, sound or not, oldest first."""
    return sorted(path for path in folder.glob("step-*") if STEP.fullmatch(path.name))


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None if there is none at all; damaged ones are named.

    Raises UserError if all are damaged, or if one is of another version of Tercet: a run begun
    anew in their place would be work lost, perhaps to a disk that is away for a moment.
    """
    damages = {}
    for candidate in reversed(checkpoints_in(folder)):
        damage = verify(candidate)
        if damage is None:
            return candidate
        damages[candidate.name] = damage
        say(f"{candidate}: skipped, {damage}")
        if damage.startswith(OTHER_FORMAT):
            break
    if not damages:
        return None
    listed = "; ".join(f"{name}: {damage}" for name, damage in damages.items())
    raise UserError(
        f"{folder}: no checkpoint here can be gone on with ({listed}); mend the disk or use the "
        "version of Tercet that wrote them; with overwrite=true they are set aside"
    )


def set_aside(folder: Path, after: Path | None) -> None:
    """Rename the damaged checkpoints later than the sound one: nothing is deleted unseen."""
    for path in checkpoints_in(folder):
        if after is None or path.name > after.name:
            names = (f"damaged-{path.name}{f'.{n}' if n else ''}" for n in count())
            path.rename(next(path.with_name(n) for n in names if not path.with_name(n).exists()))


def drop_unfinished(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in [*folder.glob(".step-*.partial"), *folder.glob(".step-*.old")]:
        shutil.rmtree(path)


def verify(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None.

    Every file must be one that the manifest names, inside the folder, of the bytes it had when
    written, and none may hold a pickle: loading that would run whatever it says. A linked folder
    is never one of them. Hidden files, which file systems and desktops leave (.nfs*, .DS_Store)
    and no library reads, do no harm.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        version = int(manifest["format"])
        hashes = {str(name): str(digest) for name, digest in manifest["sha256"].items()}
        if manifest != manifest_of(hashes, version):
            return f"its {MANIFEST} is damaged"
        if version != FORMAT:
            return f"{OTHER_FORMAT} {version}, this version reads {FORMAT}"
        paths = (f for f in checkpoint.rglob("*") if f.is_symlink() or not f.is_dir())
        seen = {
            str(f.relative_to(checkpoint))
            for f in paths
            if f.is_dir() or not f.name.startswith(".")
        }
        for name in sorted(hashes.keys() | (seen - {MANIFEST})):
            damage = _damage(checkpoint, name, hashes.get(name))
            if damage is not None:
                return damage
    except OSError as error:
        return f"{Path(error.filename or MANIFEST).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):  # also a link to itself
        return f"its {MANIFEST} is missing or damaged"
    return None


def _damage(checkpoint: Path, name: str, expected: str | None) -> str | None:
    path = checkpoint / name
    if not path.resolve().is_relative_to(checkpoint.resolve()):
        return f"{name} leads outside it"
    if not path.is_file():
        return f"{name} is a folder, not a file" if path.is_dir() else f"{name} is missing"
    if pickled(path):
        return f"{name} is a pickle, which could run any code"
    if expected is None:
        return f"{name} is not in its {MANIFEST}"
    return None if sha256(path) == expected else f"{name} is not what was written"


def load_checkpoint(
    checkpoint: Path, encoder: SentenceTransformer, trust_remote_code: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Put the weights into `encoder`; return the other tensors and the state.

    Raises UserError if the encoder is not the one that was trained. Its model is loaded under the
    same rules as any other, since a manifest says nothing of who wrote it.
    """
    settings = ModelConfig(path=str(checkpoint / "model"), trust_remote_code=trust_remote_code)
    saved = load_encoder(settings, str(checkpoint), fetch=False)
    there, wanted = (
        {name: tuple(value.shape) for name, value in model.state_dict().items()}
        for model in (saved, encoder)
    )
    if there != wanted:
        first = min({name for name, _ in there.items() ^ wanted.items()})
        raise UserError(
            f"{checkpoint}: its model has other weights than the config asks for (first {first}: "
            f"{there.get(first, 'absent')} there, {wanted.get(first, 'absent')} here); no run goes "
            "on under such a change: choose another output or say overwrite=true"
        )
    encoder.load_state_dict(saved.state_dict())
    try:
        tensors = load_file(checkpoint / TENSORS)
    except (OSError, SafetensorError):
        raise UserError(
            f"{checkpoint / TENSORS}: not what a run writes; delete {checkpoint}"
        ) from None
    return tensors, read_state(checkpoint)


def drop_old(folder: Path, step: int, best: int, keep: int) -> None:
    """Keep the checkpoints of `step`, of `best` and the `keep` - 1 newest before `step`.

    One that goes is renamed first, so that none is ever found half deleted.
    """
    past = [path for path in checkpoints_in(folder) if path.name <= name_of(step)]
    for path in past[:-keep]:
        if path.name != name_of(best):
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.old")))


def drop_rounds(folder: Path, rounds: Path, current: str | None) -> None:
    """Delete the mined sets below `rounds` that neither a kept checkpoint nor the run goes on with.

    current: of the run, relative to the output folder as the checkpoints name theirs. The summary
    and the page of each round stay. All do while a checkpoint is too damaged to say which it needs.
    """
    named = {current}
    try:
        for checkpoint in checkpoints_in(folder):
            named.add((read_state(checkpoint)["mined"] or {}).get("file"))
    except (OSError, UserError):
        return
    for mined in rounds.glob("step-*/mined.parquet"):
        if str(mined.relative_to(rounds.parent)) not in named:
            mined.unlink()


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: dict[Tensor, str]
) -> Iterator[tuple[str, Tensor]]:
    """Adam's averages and counters as `name/field`, sharded as they are."""
    for parameter, fields in optimizer.state.items():
        for field, value in fields.items():
            yield f"{names[parameter]}/{field}", torch.as_tensor(value)


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: dict[Tensor, str], tensors: dict[str, Tensor]
) -> None:
    """The reverse of `optimizer_tensors`, into averages that are `allocate`d.

    Raises UserError if a parameter's state is missing or of another shape.
    """
    saved: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, slash, field = key.rpartition("/")
        if slash:
            saved.setdefault(name, {})[field] = value
    for parameter, name in names.items():
        if name not in saved:
            raise UserError(f"the checkpoint holds no optimizer state for {name}; start afresh")
        here = optimizer.state[parameter]
        if _shapes(saved[name]) != _shapes(here):
            raise UserError(
                f"the checkpoint holds other optimizer state for {name} than AdamW's; start afresh"
            )
        optimizer.state[parameter] = {
            field: value.clone() if field == "step" else like(value, parameter)
            for field, value in saved[name].items()
        }


def _shapes(state: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Of each field of a parameter's state, its shape and whether it holds fractions."""
    fields = {field: torch.as_tensor(value) for field, value in state.items()}
    return {name: (tuple(f.shape), f.is_floating_point()) for name, f in fields.items()}


FORMAT = 3
MANIFEST = "manifest.json"
STEP = re.compile(r"step-\d{8,}")
OTHER_FORMAT = "it is of format"
TENSORS = "trainer.safetensors"
