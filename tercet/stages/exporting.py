"""Write what users of a model load."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from transformers.utils.hub import cached_file

from tercet.configs import Config, ModelConfig, is_saved, load
from tercet.data import read_corpus, read_task
from tercet.errors import UserError
from tercet.evaluation import (
    Result,
    read_result,
    result_files,
)
from tercet.export import MAX_LOSS, Exported, OnnxOptions, export_model, model_card
from tercet.models import is_cached, load_encoder, model_fingerprint, resolve
from tercet.processes import one_process
from tercet.progress import say
from tercet.report import markdown_table, model_table
from tercet.stages.names import name_of, refuse_twice
from tercet.stages.scoring import delta_lines
from tercet.train.checkpoint import STEP, TENSORS, checkpoints_in, verify

ON_HUB = {"embedded": "sentence-transformers/all-MiniLM-L6-v2"}


class _Facts(BaseModel):
    """Those that the card tells and every version has written."""

    steps: int
    dimensions: int
    max_length: int
    query_prompt: str
    document_prompt: str


class _Summary(BaseModel):
    """What is read of a summary.json, which names a folder and texts."""

    checkpoint: Annotated[str, Field(pattern=f"^{STEP.pattern}$")]
    data: dict[str, Any]
    dev: float | None
    facts: _Facts
    proof_texts: list[str]
    versions: dict[str, str]


def export_run(
    run: Path,
    out: Path,
    *,
    checkpoint: Path | None = None,
    results: Sequence[Result] = (),
    overwrite: bool = False,
    truncate_dim: int | None = None,
    onnx: OnnxOptions | None = None,
    trust_remote_code: bool = False,
    keep: Sequence[Path] = (),
) -> Exported:
    """Export a finished run's best model, or another `checkpoint` of it, with a card made of the
    run's own files. Where the checkpoints were deleted, the run's model/ is exported.

    Raises UserError as `export_model` does, if the checkpoint is not what was written, and if
    `results` are not of its weights, or of more dimensions than are kept.
    """
    summary = _summary(run)
    config = load(run / "config.yaml")
    trust = trust_remote_code or config.model.trust_remote_code
    best = run / "checkpoints" / summary["checkpoint"]
    source = _source(run, checkpoint or best)
    if results:
        _refuse_foreign(results, run.resolve().name, source, truncate_dim, trust)
    if onnx is not None:
        onnx = replace(onnx, texts=[*onnx.texts, *summary["proof_texts"]])
    return export_model(
        source,
        out,
        card=_card(run, config, summary, checkpoint, results, truncate_dim),
        texts=summary["proof_texts"],
        results=[asdict(result) for result in results] or None,
        overwrite=overwrite,
        trust_remote_code=trust,
        truncate_dim=truncate_dim,
        onnx=onnx,
        keep=[run, *keep],
    )


def export(
    model: str,
    out: Path,
    *,
    results: Sequence[Path] = (),
    overwrite: bool = False,
    truncate_dim: int | None = None,
    onnx: OnnxOptions | None = None,
    trust_remote_code: bool = False,
) -> Exported:
    """Export a run's folder, a checkpoint of one, or any model (its own README is the card).

    results: files or folders written by `evaluate`, for the card of a run. One process alone.
    """
    one_process("export")
    path = Path(model)
    how: dict[str, Any] = {
        "overwrite": overwrite,
        "truncate_dim": truncate_dim,
        "onnx": onnx,
        "trust_remote_code": trust_remote_code,
    }
    checkpoint = next((p for p in (path, path.parent) if (p / TENSORS).exists()), None)
    run = path if checkpoint is None else checkpoint.resolve().parent.parent
    if (run / "summary.json").exists() and (run / "config.yaml").exists():
        found = _read_results(results)
        return export_run(run, out, checkpoint=checkpoint, results=found, keep=results, **how)
    if checkpoint is None:
        _refuse_unfinished(run)
    if results:
        raise UserError(f"--results: {model} is no finished run, so they go on no card; leave out")
    if checkpoint is not None:
        _refuse_damaged(checkpoint)
        name = f"{run.name}, {checkpoint.resolve().name}"
        return export_model(checkpoint / "model", out, card=f"# {name}\n", **how)
    return export_model(model, out, card=_own_card(model), **how)


def onnx_options(
    *,
    int8: bool = False,
    calibrate: Sequence[Path] = (),
    data: Sequence[Path] = (),
    split: str | None = None,
    max_loss: float | None = None,
) -> OnnxOptions:
    """Read what `--onnx` is to be measured on: files of texts, BEIR folders.

    Raises UserError if one cannot be read or holds nothing, if two folders have one name, if there
    are none whose `split` (default: test) it could be, or if max_loss (default: 0.01) is not
    between 0 and 1.
    """
    if max_loss is not None and not int8:
        raise UserError("--max-loss: is of the graph that --int8 writes; add it")
    if max_loss is not None and not 0 <= max_loss <= 1:
        raise UserError(f"--max-loss: {max_loss} is not a share between 0 and 1, such as 0.01")
    if calibrate and not int8:
        raise UserError("--calibrate: ranges of activations are for --int8; add it")
    if split is not None and not data:
        raise UserError("--split: is of the folders of --data; add one")
    tasks = [read_task(folder, split or "test") for folder in data]
    refuse_twice("folders of --data", [task.name for task in tasks])
    return OnnxOptions(
        int8=int8,
        calibrate=read_corpus(calibrate) if calibrate else (),
        tasks=tasks,
        max_loss=MAX_LOSS if max_loss is None else max_loss,
        sources=[*calibrate, *data],
    )


def _summary(run: Path) -> dict[str, Any]:
    """What a finished run says of itself, whole."""
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        _Summary.model_validate(summary)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise UserError(
            f"{run}: its summary.json is of something else ({where}: {first['msg']})"
        ) from None
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{run}: holds no finished run (no readable summary.json)") from None
    return summary


def _refuse_unfinished(folder: Path) -> None:
    """Raise UserError if `folder` is that of a run which has written no model yet."""
    done = any((folder / name).exists() for name in ("summary.json", "modules.json"))
    if done or not is_saved(folder / "config.yaml"):
        return
    saved = checkpoints_in(folder / "checkpoints")
    other = f", or name a checkpoint: {saved[-1]}" if saved else ""
    raise UserError(f"{folder}: this run is not finished; give its command again{other}")


def _source(run: Path, checkpoint: Path) -> Path:
    """The model of a checkpoint, verified; the run's own if its checkpoints were deleted."""
    if not checkpoint.exists() and (run / "model" / "modules.json").exists():
        say(f"export: {checkpoint} is gone; taking {run / 'model'}")
        return run / "model"
    _refuse_damaged(checkpoint)
    return checkpoint / "model"


def _refuse_foreign(
    results: Sequence[Result], name: str, source: Path, truncate_dim: int | None, trust: bool
) -> None:
    """Raise UserError unless results called `name` are of the weights in `source`, uncut."""
    if truncate_dim is not None:
        raise UserError(
            f"--results: are of all dimensions, not of the first {truncate_dim}; leave them out, "
            "then evaluate what was exported"
        )
    own = [result for result in results if result.model == name]
    if not own:
        raise UserError(f"results: none is of {name}; they are of {results[0].model} and others")
    weights = model_fingerprint(
        load_encoder(ModelConfig(path=str(source), trust_remote_code=trust), "model")
    )
    for result in own:
        if result.fingerprints.get("model") != weights:
            raise UserError(
                f"results: those of {name} on {result.task} were measured with other weights; "
                "evaluate again"
            )


def _card(
    run: Path,
    config: Config,
    summary: dict[str, Any],
    checkpoint: Path | None,
    results: Sequence[Result],
    truncate_dim: int | None,
) -> str:
    """The card of a run's checkpoint: the best one, or the one that was asked for."""
    name = run.resolve().name
    facts = {"similarity": "cosine", "kept_step": None} | summary["facts"]
    cut = truncate_dim is not None and truncate_dim < facts["dimensions"]
    if cut:
        facts["dimensions"] = truncate_dim
    step = summary["checkpoint"] if checkpoint is None else checkpoint.resolve().name
    best = step == summary["checkpoint"]
    if not best:
        facts["kept_step"] = int(step.removeprefix("step-"))
    base = config.model.path
    return model_card(
        config,
        name=name,
        base=name_of(base),
        base_model=ON_HUB.get(base) or (base if _is_on_hub(base) else None),
        teachers=[name_of(teacher.path) for teacher in config.distil.teacher],
        data=summary["data"],
        facts=facts,
        versions=summary["versions"],
        table=markdown_table(model_table(results)) if results else "",
        lines=delta_lines(results, name) if results else (),
        dev=summary["dev"] if best else None,
        cut=cut,
    )


def _is_on_hub(name: str) -> bool:
    return not Path(name).exists() and is_cached(name)


def _own_card(model: str) -> str:
    """The README that a folder, a hub's model or the embedded one brings along, if it does."""
    how = {"_raise_exceptions_for_missing_entries": False}
    try:
        found = cached_file(resolve(model, "model"), "README.md", **how)
    except OSError:  # a hub that cannot be reached
        found = None
    if found is None:
        return f"# {name_of(model)}\n"
    return Path(found).read_text(encoding="utf-8", errors="replace")


def _refuse_damaged(checkpoint: Path) -> None:
    damage = verify(checkpoint)
    if damage is not None:
        raise UserError(f"{checkpoint}: {damage}; export another checkpoint, or train it again")


def _read_results(paths: Sequence[Path]) -> list[Result]:
    """Those in the files, and in the folders, none of which may hold nothing."""
    found: list[Path] = []
    for path in paths:
        files = result_files(path) if path.is_dir() else [path]
        if not files:
            raise UserError(f"--results: {path} holds no results; name what `evaluate` wrote")
        found += files
    return [read_result(file) for file in found]
