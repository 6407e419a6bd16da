"""Write what users of a model load."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tercet.configs import load
from tercet.errors import UserError
from tercet.evaluation import (
    Result,
    read_result,
    result_files,
)
from tercet.export import export_model, model_card
from tercet.report import markdown_table, model_table
from tercet.stages.names import name_of
from tercet.stages.scoring import delta_lines
from tercet.versions import installed_versions


def export_run(
    run: Path, out: Path, *, results: Sequence[Result] = (), overwrite: bool = False
) -> float:
    """Export a finished run's best model with a card made of the run's own files.

    Returns the largest difference between its vectors and the checkpoint's.
    """
    try:
        summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{run}: holds no finished run (no readable summary.json)") from None
    config = load(run / "config.yaml")
    name = run.resolve().name
    if results and name not in {result.model for result in results}:
        raise UserError(f"results: none is of {name}; they are of {results[0].model} and others")
    card = model_card(
        config,
        name=name,
        base=name_of(config.model.path),
        data=summary["data"],
        facts=summary["facts"],
        versions=installed_versions(),
        table=markdown_table(model_table(results)) if results else "",
        lines=delta_lines(results, name) if results else (),
        dev=summary["dev"],
    )
    checkpoint = run / "checkpoints" / summary["checkpoint"] / "model"
    return export_model(
        checkpoint,
        out,
        card=card,
        texts=summary["proof_texts"],
        results=[asdict(result) for result in results] or None,
        overwrite=overwrite,
        trust_remote_code=config.model.trust_remote_code,
    )


def export(
    model: str, out: Path, *, results: Sequence[Path] = (), overwrite: bool = False
) -> float:
    """Export a run's folder, or any model folder (its own README is kept as the card).

    results: files or folders written by `evaluate`, for the card of a run.
    """
    run = Path(model)
    if (run / "summary.json").exists():
        return export_run(run, out, results=_read_results(results), overwrite=overwrite)
    card = run / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else f"# {name_of(model)}\n"
    return export_model(model, out, card=text, overwrite=overwrite)


def _read_results(paths: Sequence[Path]) -> list[Result]:
    files = [f for p in paths for f in (result_files(p) if p.is_dir() else [p])]
    return [read_result(file) for file in files]
