"""Score models on MTEB's own tasks, by MTEB itself."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sentence_transformers import SentenceTransformer

from tercet.errors import UserError
from tercet.evaluation import (
    MAIN_METRIC,
    PREDICTIONS,
    Result,
    score_task,
    write_predictions,
    write_result,
    write_run,
)
from tercet.evaluation.official import (
    Scored,
    official_task,
    run_mteb,
    stored_encoder,
)
from tercet.evaluation.retrieval import write_mteb
from tercet.models import model_fingerprint, prompt_of
from tercet.processes import process_count
from tercet.progress import say

AGREEMENT = 1e-5  # within which mteb's main number is ours


def refuse_unknown(names: Sequence[str]) -> None:
    """Raise UserError for a name MTEB does not know, and for a launch of several processes."""
    for name in names:
        official_task(name)
    if names and process_count() > 1:
        raise UserError("--mteb: MTEB searches in one process; run it without accelerate launch")


def evaluate_official(
    encoder: SentenceTransformer, name: str, task: str, out: Path, *, predictions: bool = False
) -> list[Result]:
    """Run an MTEB task by name; a result with intervals for each split and subset.

    The numbers in the file are mteb's; scores of single queries and intervals come from its
    predictions. A task that is no retrieval has neither: what mteb says is written and said.
    """
    results = []
    for found in run_mteb(stored_encoder(encoder), official_task(task)):
        if found.task is None:
            facts = {
                "dataset_revision": found.dataset_revision,
                "task_name": task,
                "mteb_version": found.mteb_version,
                "scores": {found.split: [found.row]},
                "evaluation_time": found.seconds,
                "kg_co2_emissions": None,
            }
            path = write_mteb(facts, name, found.name, found.split, out)
            say(f"{found.name} ({found.split}): {found.row['main_score']}, by mteb alone: {path}")
        else:
            results.append(_write(encoder, name, found, out, predictions))
    return results


def _write(
    encoder: SentenceTransformer, name: str, found: Scored, out: Path, predictions: bool
) -> Result:
    assert found.task is not None
    result = score_task(
        found.task,
        found.run,
        model=name,
        fingerprints={"model": model_fingerprint(encoder)},
        prompts={role: prompt_of(encoder, role) for role in ("query", "document")},
        seconds=found.seconds,
        languages=found.row["languages"],
    )
    said = {"dataset_revision": found.dataset_revision, "mteb_version": found.mteb_version}
    result = replace(result, mteb={**said, "row": found.row})
    ours, theirs = result.means[MAIN_METRIC].mean, found.row.get("ndcg_at_10", 0.0)
    if abs(ours - theirs) > AGREEMENT:
        say(
            f"{found.name}: mteb's nDCG@10 is {theirs:.5f}, trec_eval's over all queries {ours:.5f}"
        )
    path = write_result(result, out)
    write_run(found.run, path.with_suffix(".run"), name)
    if predictions:
        place = path.with_name(path.stem + PREDICTIONS)
        write_predictions(found.run, place, model=name, split=found.split)
    return result
