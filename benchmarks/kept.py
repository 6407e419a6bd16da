"""What is made once: results, trained models and mined sets, each under all that decides it.

A program that is run again makes what is missing, and what was made otherwise: of other weights,
under other settings, by other code. A training that was stopped goes on if nothing has changed.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.collections import contents
from tercet import stages
from tercet.configs import Config
from tercet.files import fingerprint, sha256, write_json
from tercet.mining.stage import SUMMARY
from tercet.models import resolve
from tercet.train.checkpoint import MANIFEST, newest
from tercet.train.rows import read_rows
from tercet.versions import code_version, installed_versions, source_version

MADE = "made.json"  # in the folder of a run or a mined set: written last
SCORING = ("data", "evaluation", "mining", "models", "stages")  # folders that decide a score


def kept_json(
    path: Path, work: Callable[[], dict[str, Any]], made_by: Mapping[str, Any]
) -> dict[str, Any]:
    """What `work` returned when it ran first, with `made_by` (JSON) beside it.

    It runs if `path` is not there or was made by anything else.
    """
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if found.get("made_by") != made_by:
        write_json(path, work() | {"made_by": made_by})
        found = json.loads(path.read_text(encoding="utf-8"))
    return found


def made_of(config: Config) -> dict[str, Any]:
    """All that decides what a run or a mining stage makes."""
    models = [config.model.path, *(teacher.path for teacher in config.distil.teacher)]
    models += [config.mining.rescore.model] if config.mining.rescore.model else []
    mined = config.data.mined
    beside = [config.evaluation.dev, *config.data.held_out, *(s.path for s in config.mining.known)]
    return {
        "settings": fingerprint([config.model_dump_json(exclude={"output", "overwrite"})]),
        "data": read_rows(config.data).fingerprint,
        "weights": [weights(resolve(path)) for path in models],
        "mined": None if mined is None else sha256(Path(mined)),
        "beside": contents(*(Path(path) for path in beside if path is not None)),
        "code": code_version(),
    }


def scored_by(**made_by: Any) -> dict[str, Any]:
    """The same of scores: what is scored, and the code that scores it."""
    return made_by | {"scoring": installed_versions() | {"source": source_version(SCORING)}}


def weights(model: str | Path) -> str:
    """A hash that changes with any of a model's tensors."""
    return fingerprint(sha256(file) for file in sorted(Path(model).rglob("*.safetensors")))


def trained(place: Path, config: Config, train: Callable[[Config], Path]) -> dict[str, Any]:
    """The `model` that `train` makes of the config, the `seconds` it took and in how many `parts`.

    Its run is beside `place`, in a folder whose name tells what decides it.
    """
    made_by = made_of(config)
    run = place_of(place, made_by)
    config = config.model_copy(update={"output": str(run), "overwrite": False})
    return kept_json(run / MADE, lambda: _timed(run, lambda: train(config)), made_by)


def mined(place: Path, config: Config) -> dict[str, Any]:
    """The `file` of negatives that `tercet mine` makes of the config, and what it says of it.

    Its `counts`, `false_negatives`, and the `seconds` it took; a folder beside `place`, as above.
    """
    made_by = made_of(config)
    out = place_of(place, made_by)
    config = config.model_copy(update={"output": str(out), "overwrite": True})

    def work() -> dict[str, Any]:
        start = time.perf_counter()
        path = stages.mine(config).path
        seconds = time.perf_counter() - start
        summary = json.loads(path.with_name(SUMMARY).read_text(encoding="utf-8"))
        told = {key: summary[key] for key in ("counts", "false_negatives")}
        return {"file": str(path), "seconds": seconds, **told}

    return kept_json(out / MADE, work, made_by)


def place_of(place: Path, made_by: Mapping[str, Any]) -> Path:
    """`place` with a hash of what decides its contents after its name."""
    return place.with_name(
        f"{place.name}-{fingerprint([json.dumps(made_by, sort_keys=True)])[:12]}"
    )


def _timed(run: Path, train: Callable[[], Path]) -> dict[str, Any]:
    """The model, and the seconds of all that led to it.

    Of a part that was stopped they count up to the checkpoint that the next one goes on from.
    """
    log, model = run / "parts.json", run / "model"
    if model.exists():  # finished, but stopped before this was written
        *before, last = json.loads(log.read_text(encoding="utf-8"))
        start, end = last["start"], model.stat().st_mtime
    else:
        before, start = _stopped(run, log), time.time()
        write_json(log, [*before, {"start": start}])
        model, end = train(), time.time()
    seconds = sum(part["seconds"] for part in before) + end - start
    return {"model": str(model), "seconds": seconds, "parts": len(before) + 1}


def _stopped(run: Path, log: Path) -> list[dict[str, float]]:
    """The parts of a run that was stopped, by `start` and `seconds`; none if it begins anew."""
    checkpoint = newest(run / "checkpoints")
    if checkpoint is None:
        return []
    *before, last = json.loads(log.read_text(encoding="utf-8"))
    written = (checkpoint / MANIFEST).stat().st_mtime  # the last of a checkpoint's files
    return [*before, last | {"seconds": max(0.0, written - last["start"])}]
