"""Score models, a reranker and BM25 on retrieval tasks, and models on pairs of sentences."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig
from tercet.configs.schema import Prompts
from tercet.data import (
    Leakage,
    RetrievalTask,
    SimilarityTask,
    read_similarity,
    read_task,
)
from tercet.errors import UserError
from tercet.evaluation import (
    PLUS,
    PREDICTIONS,
    Ranking,
    Result,
    bm25_ranking,
    comparisons,
    cosines,
    rerank,
    run_rows,
    score_ranking,
    score_similarity,
    score_task,
    search,
    write_comparisons,
    write_predictions,
    write_result,
    write_run,
)
from tercet.evaluation.bm25 import NAME as BM25
from tercet.files import writable_folder
from tercet.mining.search import PAIR_BYTES
from tercet.models import (
    default_device,
    encode,
    load_encoder,
    model_fingerprint,
    prompt_of,
    prompts_of,
    resolve,
    vectors,
)
from tercet.models.cross import CrossScorer, load_scorer
from tercet.peers import together
from tercet.processes import on_main
from tercet.report import delta_line
from tercet.stages.names import name_of, refuse_twice
from tercet.stages.official import evaluate_official, refuse_unknown
from tercet.stages.tasks import PLAIN, Search, check, leaks


@dataclass(frozen=True)
class _Second:
    """The second stage of a search."""

    scorer: CrossScorer
    name: str
    depth: int


DEV_DEPTH = 100  # documents a query that are looked at during a run
OWN = Prompts()  # the checkpoint's


@together()
def evaluate(
    model: str,
    folders: Sequence[str | Path],
    out: Path,
    *,
    split: str = "test",
    against: Sequence[str] = (),
    prompts: Prompts = OWN,
    how: Search = PLAIN,
    similarity: Sequence[str | Path] = (),
    official: Sequence[str] = (),
    trained_on: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> list[Result]:
    """Score `model`, every model of `against` and BM25 on BEIR folders.

    Each result is written below `out` as JSON with a TREC run file beside it. Returned by task,
    in the order `against`, BM25, `model`, `model` reranked if `how` says so; then those on
    `similarity` (TSV files) and on `official` (names of MTEB tasks), without BM25. `prompts` are
    put before the texts of `model` instead of its own. `trained_on` names training data of
    `model`, or its config: what of the tasks is in there is counted. Under `accelerate launch`
    the processes share encoding and search, the main one does the rest, and all return the results.
    """
    if not (folders or similarity or official):
        raise UserError("nothing to evaluate on: name a BEIR folder, a TSV of STS or an MTEB task")
    paths = (*against, model)
    refuse_twice("models", [name_of(path) for path in paths])
    for path in paths:
        resolve(path, "model")
    refuse_unknown(official)
    tasks = [read_task(folder, split) for folder in folders]
    pairs = [read_similarity(path) for path in similarity]
    refuse_twice("tasks", [f"{task.name}.{task.split}" for task in (*tasks, *pairs)])
    for task in tasks:
        check(task, how)
    writable_folder(out)
    leaked = leaks(tasks, trained_on)
    second = _second(how, trust_remote_code)
    encoders = {
        name_of(path): _load(path, prompts if path == model else OWN, trust_remote_code)
        for path in paths
    }
    results = []
    for task in tasks:
        for name, encoder in encoders.items():
            if name == name_of(model):
                results.append(on_main(lambda task=task: evaluate_bm25(task, out, how)))
                results += _evaluate(encoder, name, task, out, how, second, leaked.get(task.name))
            else:
                results.append(evaluate_model(encoder, name, task, out, how))
    on_main(lambda: write_comparisons(comparisons(results, name_of(model)), out))
    for task in pairs:
        results += [evaluate_similarity(e, name, task, out) for name, e in encoders.items()]
    for task in official:
        for name, encoder in encoders.items():
            results += evaluate_official(encoder, name, task, out, predictions=how.predictions)
    return results


def evaluate_model(
    encoder: SentenceTransformer,
    name: str,
    task: RetrievalTask,
    out: Path,
    how: Search = PLAIN,
) -> Result:
    """Score one loaded model on one task and write the result. All processes meet here."""
    return _evaluate(encoder, name, task, out, how)[0]


def _evaluate(
    encoder: SentenceTransformer,
    name: str,
    task: RetrievalTask,
    out: Path,
    how: Search,
    second: _Second | None = None,
    leak: Leakage | None = None,
) -> list[Result]:
    """The result of a model, and of what the second stage makes of its documents."""
    start = time.perf_counter()
    facts: dict[str, Any] = {"prompts": prompts_of(encoder), "leakage": leak}
    made_by = {"model": model_fingerprint(encoder)}
    found = nearest(encoder, name, task, how)
    facts["seconds"] = time.perf_counter() - start
    results = [on_main(lambda: _write(task, found, out, how, name, fingerprints=made_by, **facts))]
    if second is not None:
        title = f"{second.name} on {task.name}"
        better = rerank(task, found, second.scorer, second.depth, title=title)
        facts["seconds"] = time.perf_counter() - start
        facts["fingerprints"] = made_by | {"reranker": second.scorer.fingerprint}
        facts["counts"] = {"reranked": second.depth}
        both = f"{name}{PLUS}{second.name}"
        results.append(on_main(lambda: _write(task, better, out, how, both, **facts)))
    return results


def nearest(encoder: SentenceTransformer, name: str, task: RetrievalTask, how: Search) -> Ranking:
    """The documents nearest to each query. All processes meet here."""
    title = f"{name} on {task.name}"
    return search(
        task,
        vectors(encoder, task.queries.texts, "query", title=f"{title}: queries"),
        vectors(encoder, task.documents.texts, "document", title=f"{title}: documents"),
        how.depth,
        skip_self=how.skip_self,
        together=True,
        block_pairs=how.memory // PAIR_BYTES,
    )


def scores_of(
    encoder: SentenceTransformer,
    task: RetrievalTask,
    batch_tokens: int | None = None,
    depth: int = DEV_DEPTH,
) -> dict[str, NDArray[np.float64]]:
    """Every metric's score of each query with a model that will not be asked again: none is stored.

    In the order of `task.qrels`, of the `depth` nearest documents. One process alone calls it.
    """
    how = {"batch_tokens": batch_tokens}
    queries = encode(encoder, task.queries.texts, "query", **how, title="dev queries")
    documents = encode(encoder, task.documents.texts, "document", **how, title="dev documents")
    return score_ranking(task, search(task, queries, documents, depth))


def evaluate_bm25(task: RetrievalTask, out: Path, how: Search = PLAIN) -> Result:
    """The lexical baseline's row."""
    start = time.perf_counter()
    found = bm25_ranking(task, how.depth, skip_self=how.skip_self)
    return _write(task, found, out, how, BM25, seconds=time.perf_counter() - start)


def evaluate_similarity(
    encoder: SentenceTransformer, name: str, task: SimilarityTask, out: Path
) -> Result:
    """Score a model on pairs of sentences, both read as queries. All processes meet here."""
    start = time.perf_counter()
    sides = [
        vectors(encoder, texts, "query", title=f"{name} on {task.name}")
        for texts in (task.first, task.second)
    ]

    def score() -> Result:
        result = score_similarity(
            task,
            cosines(*(side[:] for side in sides)),
            model=name,
            fingerprints={"model": model_fingerprint(encoder)},
            prompts={"query": prompt_of(encoder, "query")},
            seconds=time.perf_counter() - start,
        )
        write_result(result, out)
        return result

    return on_main(score)


def _write(
    task: RetrievalTask,
    found: Ranking,
    out: Path,
    how: Search,
    model: str,
    *,
    leakage: Leakage | None = None,
    counts: dict[str, int] | None = None,
    **facts: Any,
) -> Result:
    """Score what was found, and write the result, the run and the predictions."""
    result = score_task(task, found, model=model, **facts)
    result = replace(result, leakage=leakage, counts=result.counts | (counts or {}))
    path = write_result(result, out)
    write_run(run_rows(task, found), path.with_suffix(".run"), model)
    if how.predictions:
        place = path.with_name(path.stem + PREDICTIONS)
        write_predictions(run_rows(task, found), place, model=model, split=task.split)
    return result


def delta_lines(results: Sequence[Result], model: str) -> list[str]:
    """How `model` differs from every other one on each task, with intervals and adjusted p."""
    several = len({(result.task, result.split) for result in results}) > 1
    return [
        (f"{one.task}: " if several else "")
        + delta_line(one.base, one.model, one.delta, one.metric, holm=one.holm if several else None)
        for one in comparisons(results, model)
    ]


def _load(path: str, prompts: Prompts, trust_remote_code: bool) -> SentenceTransformer:
    config = ModelConfig(path=path, prompts=prompts, trust_remote_code=trust_remote_code)
    return load_encoder(config, "model").to(default_device())


def _second(how: Search, trust_remote_code: bool) -> _Second | None:
    if how.rerank is None:
        return None
    scorer = load_scorer(how.rerank, trust_remote_code=trust_remote_code, where="--rerank")
    return _Second(scorer, name_of(how.rerank), how.rerank_depth)
