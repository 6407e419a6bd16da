"""Score models and BM25 on retrieval tasks."""

import time
from collections.abc import Sequence
from pathlib import Path

from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig
from tercet.data import RetrievalTask, read_task
from tercet.evaluation import (
    Result,
    bm25_run,
    comparison,
    evaluate_vectors,
    score_task,
    write_result,
    write_run,
)
from tercet.evaluation.bm25 import NAME as BM25
from tercet.files import writable_folder
from tercet.models import (
    default_device,
    load_encoder,
    model_fingerprint,
    prompt_of,
    vectors,
)
from tercet.processes import on_main
from tercet.report import delta_line
from tercet.stages.names import name_of, refuse_twice


def evaluate(
    model: str,
    folders: Sequence[str | Path],
    out: Path,
    *,
    split: str = "test",
    against: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> list[Result]:
    """Score `model`, every model of `against` and BM25 on BEIR folders.

    Each result is written below `out` as JSON with a TREC run file beside it. Returned by task,
    in the order `against`, BM25, `model`. Under `accelerate launch` the processes share the
    encoding, the main one does the rest, and all return the results.
    """
    paths = (*against, model)
    refuse_twice("models", [name_of(path) for path in paths])
    tasks = [read_task(folder, split) for folder in folders]
    refuse_twice("tasks", [task.name for task in tasks])
    writable_folder(out)
    encoders = [
        (
            name_of(path),
            load_encoder(ModelConfig(path=path, trust_remote_code=trust_remote_code), "model").to(
                default_device()
            ),
        )
        for path in paths
    ]
    results = []
    for task in tasks:
        found = [evaluate_model(encoder, name, task, out) for name, encoder in encoders]
        lexical = on_main(lambda task=task: evaluate_bm25(task, out))
        results += [*found[:-1], lexical, found[-1]]
    return results


def evaluate_model(
    encoder: SentenceTransformer, name: str, task: RetrievalTask, out: Path
) -> Result:
    """Score one loaded model on one task and write the result. All processes meet here."""
    start = time.perf_counter()
    title = f"{name} on {task.name}"
    queries = vectors(encoder, task.queries.texts, "query", title=f"{title}: queries")
    documents = vectors(encoder, task.documents.texts, "document", title=f"{title}: documents")

    def search_and_score() -> Result:
        run = evaluate_vectors(task, queries, documents)
        result = score_task(
            task,
            run,
            model=name,
            fingerprints={"model": model_fingerprint(encoder)},
            prompts={role: prompt_of(encoder, role) for role in ("query", "document")},
            seconds=time.perf_counter() - start,
        )
        write_run(run, write_result(result, out).with_suffix(".run"), name)
        return result

    return on_main(search_and_score)


def evaluate_bm25(task: RetrievalTask, out: Path) -> Result:
    """The lexical baseline's row."""
    start = time.perf_counter()
    run = bm25_run(task)
    result = score_task(task, run, model=BM25, seconds=time.perf_counter() - start)
    write_run(run, write_result(result, out).with_suffix(".run"), BM25)
    return result


def delta_lines(results: Sequence[Result], model: str) -> list[str]:
    """How `model` differs from every other one on each task, with intervals."""
    lines = []
    for mine in (r for r in results if r.model == model):
        for other in results:
            if other.model != model and (other.task, other.split) == (mine.task, mine.split):
                where = f"{mine.task}: " if len({r.task for r in results}) > 1 else ""
                lines.append(where + delta_line(other.model, model, comparison(other, mine)))
    return lines
