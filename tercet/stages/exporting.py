"""Write what users of a model load."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tercet.configs import load
from tercet.data import read_corpus, read_task
from tercet.errors import UserError
from tercet.evaluation import (
    Result,
    read_result,
    result_files,
)
from tercet.export import MAX_LOSS, Exported, OnnxOptions, export_model, model_card
from tercet.report import markdown_table, model_table
from tercet.stages.names import name_of
from tercet.stages.scoring import delta_lines
from tercet.train.checkpoint import TENSORS, verify
from tercet.versions import installed_versions


def export_run(
    run: Path,
    out: Path,
    *,
    results: Sequence[Result] = (),
    overwrite: bool = False,
    truncate_dim: int | None = None,
    onnx: OnnxOptions | None = None,
) -> Exported:
    """Export a finished run's best model with a card made of the run's own files.

    Raises UserError as `export_model` does, and if the checkpoint is not what was written.
    """
    try:
        summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{run}: holds no finished run (no readable summary.json)") from None
    config = load(run / "config.yaml")
    name = run.resolve().name
    if results and name not in {result.model for result in results}:
        raise UserError(f"results: none is of {name}; they are of {results[0].model} and others")
    facts = {"similarity": "cosine", "kept_step": None} | summary["facts"]
    if truncate_dim is not None:
        facts["dimensions"] = truncate_dim
    card = model_card(
        config,
        name=name,
        base=name_of(config.model.path),
        data=summary["data"],
        facts=facts,
        versions=installed_versions(),
        table=markdown_table(model_table(results)) if results else "",
        lines=delta_lines(results, name) if results else (),
        dev=summary["dev"],
    )
    if onnx is not None and not onnx.texts:
        onnx = replace(onnx, texts=summary["proof_texts"])
    checkpoint = run / "checkpoints" / summary["checkpoint"]
    _refuse_damaged(checkpoint)
    return export_model(
        checkpoint / "model",
        out,
        card=card,
        texts=summary["proof_texts"],
        results=[asdict(result) for result in results] or None,
        overwrite=overwrite,
        trust_remote_code=config.model.trust_remote_code,
        truncate_dim=truncate_dim,
        onnx=onnx,
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

    results: files or folders written by `evaluate`, for the card of a run.
    """
    path = Path(model)
    how = {"overwrite": overwrite, "truncate_dim": truncate_dim, "onnx": onnx}
    if (path / "summary.json").exists():
        return export_run(path, out, results=_read_results(results), **how)
    for checkpoint in (path, path.parent):
        if (checkpoint / TENSORS).exists():
            _refuse_damaged(checkpoint)
            path = checkpoint / "model"
    card = path / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else f"# {name_of(model)}\n"
    source = str(path) if path.exists() else model
    return export_model(source, out, card=text, trust_remote_code=trust_remote_code, **how)


def onnx_options(
    *,
    int8: bool = False,
    calibrate: Sequence[Path] = (),
    data: Sequence[Path] = (),
    split: str = "test",
    max_loss: float = MAX_LOSS,
) -> OnnxOptions:
    """Read what `--onnx` is to be measured on: files of texts, BEIR folders.

    Raises UserError if one cannot be read or holds nothing, or max_loss is not between 0 and 1.
    """
    if not 0 <= max_loss <= 1:
        raise UserError(f"--max-loss: {max_loss} is not a share between 0 and 1, such as 0.01")
    if calibrate and not int8:
        raise UserError("--calibrate: ranges of activations are for --int8; add it")
    return OnnxOptions(
        int8=int8,
        texts=read_corpus(calibrate) if calibrate else (),
        calibrate=bool(calibrate),
        tasks=[read_task(folder, split) for folder in data],
        max_loss=max_loss,
    )


def _refuse_damaged(checkpoint: Path) -> None:
    damage = verify(checkpoint)
    if damage is not None:
        raise UserError(f"{checkpoint}: {damage}; export another checkpoint, or train it again")


def _read_results(paths: Sequence[Path]) -> list[Result]:
    files = [f for p in paths for f in (result_files(p) if p.is_dir() else [p])]
    return [read_result(file) for file in files]
