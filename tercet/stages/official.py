"""Models on MTEB's own tasks, by MTEB itself; and our tasks by MTEB, to check our numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from tercet.configs.schema import Prompts
from tercet.data import Leakage, RetrievalTask, leakage
from tercet.errors import UserError
from tercet.evaluation import DEPTH, METRICS, Result, cut_of, write_result
from tercet.evaluation.official import (
    AGREEMENT,
    Scored,
    as_mteb_task,
    by_mteb,
    disagreement,
    official_task,
    parts_of,
    require_mteb,
    run_mteb,
    stored_encoder,
)
from tercet.evaluation.results import write_mteb
from tercet.models import default_device, model_fingerprint, prompts_of, resolve
from tercet.processes import process_count
from tercet.progress import say
from tercet.stages.measuring import Second, evaluate_bm25, evaluate_second, write_found
from tercet.stages.tasks import Search


def official_parts(
    names: Sequence[str], how: Search, split: str, *, check_with_mteb: bool = False
) -> list[tuple[str, str]]:
    """Task and split of every result that MTEB's tasks of these names will have.

    Raises UserError for a name MTEB does not know, and for a launch of several processes.
    """
    if not names and not check_with_mteb:
        return []
    require_mteb()
    parts = [part for name in names for part in parts_of(official_task(name))]
    if process_count() > 1:
        raise UserError("MTEB searches in one process; run it without accelerate launch")
    if names and (how.skip_self or how.depth != DEPTH or split != "test"):
        say(
            "--split, --depth and --skip-self are for --data: MTEB's tasks say themselves which "
            f"splits they have and what is left out, and look at {DEPTH:,} documents"
        )
    return parts


def evaluate_official(
    encoders: Mapping[str, SentenceTransformer],
    model: str,
    task: str,
    out: Path,
    how: Search,
    second: Second | None = None,
    trained: Sequence[str] | None = None,
) -> list[Result]:
    """Run an MTEB task by name with each encoder; results with intervals for splits and subsets.

    The numbers in the files are mteb's; scores of single queries and intervals come from its
    predictions. Beside `model` stand BM25, what the second stage makes of its documents, and what
    of the task is among the texts `trained`. A task that is no retrieval of texts has none of
    this: what mteb says is written and said.
    """
    results: list[Result] = []
    loaded = official_task(task)
    for name, encoder in encoders.items():
        for found in run_mteb(stored_encoder(encoder), loaded):
            if found.task is None or found.found is None:
                _write_alone(found, name, task, out)
                continue
            if name != model:
                results.append(_write(encoder, name, found, out, how))
                continue
            if found.searched:
                plain = replace(how, depth=DEPTH, skip_self=found.skip_self)
                results.append(evaluate_bm25(found.task, out, plain, languages=_languages(found)))
            leak = None if trained is None else leakage(trained, found.task)
            results.append(first := _write(encoder, name, found, out, how, leak))
            if second is not None:
                where = (found.task, found.found, out, second)
                results.append(evaluate_second(first, *where, predictions=how.predictions))
    return results


def check_by_mteb(
    path: str,
    prompts: Prompts,
    ours: Result,
    task: RetrievalTask,
    out: Path,
    trust_remote_code: bool = False,
) -> Result:
    """`ours` beside what mteb says of the model at `path` on the same task; written again.

    The model is loaded by sentence-transformers, so that encoding, search and scoring are mteb's.
    """
    peer = SentenceTransformer(
        resolve(path), device=str(default_device()), trust_remote_code=trust_remote_code
    )
    given = {"query": prompts.query, "document": prompts.document}
    peer.prompts |= {role: prompt for role, prompt in given.items() if prompt is not None}
    (found,) = run_mteb(peer, as_mteb_task(task, skip_self=ours.skip_self))
    # mteb leaves a query's own document out of the first 1,000: 999 others are left
    short = ours.skip_self and ours.counts["documents"] > DEPTH
    metrics = [m for m in ours.means if cut_of(m) < DEPTH or not short]
    theirs = by_mteb(found.row, metrics, ours.counts["depth"])
    result = replace(ours, by_mteb=theirs)
    write_result(result, out)
    say(
        f"{task.name}: {ours.main} {ours.means[ours.main].mean:.5f} here, {theirs[ours.main]:.5f} "
        f"by mteb; {len(theirs)} metrics differ by at most {disagreement(result)[0]:.0e}"
    )
    return result


def refuse_disagreement(results: Sequence[Result]) -> None:
    """Raise UserError if mteb's means of a local task are not ours."""
    for result in results:
        most, metric = disagreement(result)
        if result.mteb is None and result.by_mteb is not None and most > AGREEMENT:
            raise UserError(
                f"{result.task}: {metric} of {result.model} is {result.means[metric].mean:.6f} "
                f"here and {result.by_mteb[metric]:.6f} by mteb; all is written, but one of the "
                "two encodes or scores in another way"
            )


def _write(
    encoder: SentenceTransformer,
    name: str,
    found: Scored,
    out: Path,
    how: Search,
    leak: Leakage | None = None,
) -> Result:
    """mteb's numbers in the file of a result of ours; where ours are others, that is said."""
    assert found.task is not None and found.found is not None
    said = {"dataset_revision": found.dataset_revision, "mteb_version": found.mteb_version}
    theirs = by_mteb(found.row, METRICS, DEPTH)
    result = write_found(
        found.task,
        found.found,
        out,
        name,
        metrics=METRICS,  # mteb has looked as deep as it can
        predictions=how.predictions,
        fingerprints={"model": model_fingerprint(encoder)},
        prompts=prompts_of(encoder),
        skip_self=found.skip_self,
        languages=_languages(found),
        seconds=found.seconds,
        leakage=leak,
        by_mteb=theirs,
        mteb={**said, "row": found.row},
    )
    most, metric = disagreement(result)
    if most > AGREEMENT:
        say(
            f"{found.name}: mteb's {metric} is {theirs[metric]:.5f}, that of trec_eval over all "
            f"queries {result.means[metric].mean:.5f}; both are in the file"
        )
    return result


def _write_alone(found: Scored, name: str, task: str, out: Path) -> None:
    """What mteb says of a task without scores of single queries."""
    facts: dict[str, Any] = {
        "dataset_revision": found.dataset_revision,
        "task_name": task,
        "mteb_version": found.mteb_version,
        "scores": {found.split: [found.row]},
        "evaluation_time": found.seconds,
        "kg_co2_emissions": None,
    }
    path = write_mteb(facts, name, found.name, found.split, out)
    say(f"{found.name} ({found.split}): {found.row['main_score']}, by mteb alone: {path}")


def _languages(found: Scored) -> tuple[str, ...]:
    return tuple(found.row["languages"])
