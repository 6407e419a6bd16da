"""A model, a reranker behind it, or BM25 on one task: searched, scored and written."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from tercet.data import Leakage, RetrievalTask, SimilarityTask
from tercet.evaluation import (
    MAIN_METRIC,
    PLUS,
    PREDICTIONS,
    Ranking,
    Result,
    bm25_ranking,
    cosines,
    rerank,
    score_ranking,
    score_similarity,
    score_task,
    search,
    write_predictions,
    write_result,
    write_run,
)
from tercet.evaluation.bm25 import NAME as BM25
from tercet.models import Vectors, encode, model_fingerprint, prompt_of, prompts_of, vectors
from tercet.models.cross import CrossScorer, load_scorer
from tercet.processes import on_main
from tercet.stages.names import name_of
from tercet.stages.tasks import PLAIN, Search

Sides = tuple[Vectors, Vectors]  # of a task's queries and documents
DEV_DEPTH = 100  # documents a query that are looked at during a run


@dataclass(frozen=True)
class Second:
    """The second stage of a search, loaded."""

    scorer: CrossScorer
    name: str
    depth: int


def second_stage(how: Search, trust_remote_code: bool = False) -> Second | None:
    """What `how.rerank` names; None if it names nothing."""
    if how.rerank is None:
        return None
    scorer = load_scorer(how.rerank, trust_remote_code=trust_remote_code, where="--rerank")
    return Second(scorer, name_of(how.rerank), how.rerank_depth)


def evaluate_model(
    encoder: SentenceTransformer,
    name: str,
    task: RetrievalTask,
    out: Path,
    how: Search = PLAIN,
) -> Result:
    """Score one loaded model on one task and write the result. All processes meet here."""
    return evaluate_stages(encoder, name, task, out, how)[0]


def evaluate_stages(
    encoder: SentenceTransformer,
    name: str,
    task: RetrievalTask,
    out: Path,
    how: Search = PLAIN,
    *,
    second: Second | None = None,
    leak: Leakage | None = None,
    sides: Sides | None = None,
) -> list[Result]:
    """The result of a model, and that of what the second stage makes of its documents.

    `sides`: the vectors, where they are at hand; its seconds are then those of the search.
    """
    start = time.perf_counter()
    found = nearest(task, sides or sides_of(encoder, name, task), how)
    facts: dict[str, Any] = {
        "fingerprints": {"model": model_fingerprint(encoder)},
        "prompts": prompts_of(encoder),
        "leakage": leak,
        "skip_self": how.skip_self,
        "predictions": how.predictions,
        "seconds": time.perf_counter() - start,
    }
    first = on_main(lambda: write_found(task, found, out, name, **facts))
    if second is None:
        return [first]
    return [first, evaluate_second(first, task, found, out, second, predictions=how.predictions)]


def evaluate_second(
    first: Result,
    task: RetrievalTask,
    found: Ranking,
    out: Path,
    second: Second,
    *,
    predictions: bool = False,
) -> Result:
    """What the second stage makes of the documents behind the result `first`. All meet here."""
    start = time.perf_counter()
    title = f"{second.name} on {task.name}"
    better = rerank(task, found, second.scorer, second.depth, title=title)
    return on_main(
        lambda: write_found(
            task,
            better,
            out,
            f"{first.model}{PLUS}{second.name}",
            metrics=list(first.means),
            predictions=predictions,
            counts={"reranked": second.depth},
            fingerprints=first.fingerprints | {"reranker": second.scorer.fingerprint},
            prompts=first.prompts,
            leakage=first.leakage,
            skip_self=first.skip_self,
            languages=first.languages,
            seconds=(first.seconds or 0.0) + time.perf_counter() - start,
        )
    )


def sides_of(encoder: SentenceTransformer, name: str, task: RetrievalTask) -> Sides:
    """The vectors of a task, through the store. All processes meet here."""
    title = f"{name} on {task.name}"
    return (
        vectors(encoder, task.queries.texts, "query", title=f"{title}: queries"),
        vectors(encoder, task.documents.texts, "document", title=f"{title}: documents"),
    )


def nearest(task: RetrievalTask, sides: Sides, how: Search) -> Ranking:
    """The documents nearest to each query. All processes meet here."""
    return search(
        task,
        *sides,
        how.depth,
        skip_self=how.skip_self,
        together=True,
        memory=how.memory,
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


def per_query(encoder: SentenceTransformer, task: RetrievalTask) -> dict[str, float]:
    """nDCG@10 of each query by its id; as `scores_of`."""
    values = scores_of(encoder, task)[MAIN_METRIC]
    return dict(zip(task.qrels, values.tolist(), strict=True))


def evaluate_bm25(
    task: RetrievalTask, out: Path, how: Search = PLAIN, *, languages: Sequence[str] = ()
) -> Result:
    """The lexical baseline's row. `languages`: as MTEB writes them, where they are known."""
    start = time.perf_counter()
    found = bm25_ranking(task, how.depth, skip_self=how.skip_self)
    facts: dict[str, Any] = {"languages": tuple(languages)} if languages else {}
    seconds = time.perf_counter() - start
    facts |= {"skip_self": how.skip_self, "predictions": how.predictions, "seconds": seconds}
    return write_found(task, found, out, BM25, **facts)


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


def write_found(
    task: RetrievalTask,
    found: Ranking,
    out: Path,
    model: str,
    *,
    metrics: Sequence[str] | None = None,
    fingerprints: Mapping[str, str] | None = None,
    counts: Mapping[str, int] | None = None,
    predictions: bool = False,
    **facts: Any,
) -> Result:
    """Score what was found, and write the result, the run and the predictions.

    `facts` are further fields of the result.
    """
    result = score_task(task, found, model=model, metrics=metrics, fingerprints=fingerprints)
    result = replace(result, counts=result.counts | dict(counts or {}), **facts)
    path = write_result(result, out)
    write_run(task, found, path.with_suffix(".run"), model)
    if predictions:
        write_predictions(task, found, path.with_name(path.stem + PREDICTIONS), model)
    return result
