"""Score models and BM25 on retrieval tasks."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sentence_transformers import SentenceTransformer

from tercet.configs import ModelConfig
from tercet.configs.schema import Prompts
from tercet.data import RetrievalTask, read_task
from tercet.errors import UserError
from tercet.evaluation import (
    DEPTH,
    PREDICTIONS,
    Ranking,
    Result,
    bm25_ranking,
    comparisons,
    run_rows,
    score_task,
    search,
    write_comparisons,
    write_predictions,
    write_result,
    write_run,
)
from tercet.evaluation.bm25 import NAME as BM25
from tercet.files import writable_folder
from tercet.mining.search import BLOCK_PAIRS, PAIR_BYTES
from tercet.models import (
    default_device,
    load_encoder,
    model_fingerprint,
    prompt_of,
    resolve,
    vectors,
)
from tercet.processes import on_main
from tercet.progress import say
from tercet.report import delta_line
from tercet.stages.names import name_of


@dataclass(frozen=True)
class Search:
    """How documents are looked for, and what is kept of them."""

    depth: int = DEPTH  # documents a query
    skip_self: bool = False  # leave out the document that has the query's own id
    memory: int = BLOCK_PAIRS * PAIR_BYTES  # bytes for the candidates of the queries under way
    predictions: bool = False  # also write them as MTEB does


PLAIN = Search()
OWN = Prompts()  # the checkpoint's


def evaluate(
    model: str,
    folders: Sequence[str | Path],
    out: Path,
    *,
    split: str = "test",
    against: Sequence[str] = (),
    prompts: Prompts = OWN,
    how: Search = PLAIN,
    trust_remote_code: bool = False,
) -> list[Result]:
    """Score `model`, every model of `against` and BM25 on BEIR folders.

    Each result is written below `out` as JSON with a TREC run file beside it. Returned by task,
    in the order `against`, BM25, `model`. `prompts` are put before the texts of `model` instead of
    its own. Under `accelerate launch` the processes share encoding and search, the main one does
    the rest, and all return the results.
    """
    paths = (*against, model)
    _refuse_twice("models", [name_of(path) for path in paths])
    for path in paths:
        resolve(path, "model")
    tasks = [read_task(folder, split) for folder in folders]
    _refuse_twice("tasks", [task.name for task in tasks])
    for task in tasks:
        _check(task, how)
    writable_folder(out)
    encoders = {
        name_of(path): _load(path, prompts if path == model else OWN, trust_remote_code)
        for path in paths
    }
    results = []
    for task in tasks:
        found = [
            evaluate_model(encoder, name, task, out, how) for name, encoder in encoders.items()
        ]
        lexical = on_main(lambda task=task: evaluate_bm25(task, out, how))
        results += [*found[:-1], lexical, found[-1]]
    on_main(lambda: write_comparisons(comparisons(results, name_of(model)), out))
    return results


def evaluate_model(
    encoder: SentenceTransformer,
    name: str,
    task: RetrievalTask,
    out: Path,
    how: Search = PLAIN,
) -> Result:
    """Score one loaded model on one task and write the result. All processes meet here."""
    start = time.perf_counter()
    found = nearest(encoder, name, task, how)
    return on_main(
        lambda: _write(
            task,
            found,
            out,
            how,
            model=name,
            fingerprints={"model": model_fingerprint(encoder)},
            prompts={role: prompt_of(encoder, role) for role in ("query", "document")},
            start=start,
        )
    )


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


def evaluate_bm25(
    task: RetrievalTask,
    out: Path,
    how: Search = PLAIN,
) -> Result:
    """The lexical baseline's row."""
    start = time.perf_counter()
    found = bm25_ranking(task, how.depth, skip_self=how.skip_self)
    return _write(task, found, out, how, model=BM25, start=start)


def _write(
    task: RetrievalTask,
    found: Ranking,
    out: Path,
    how: Search,
    *,
    model: str,
    start: float,
    fingerprints: Mapping[str, str] | None = None,
    prompts: Mapping[str, str | None] | None = None,
) -> Result:
    """Score what was found since `start` and write the result, the run and the predictions."""
    seconds = time.perf_counter() - start
    result = score_task(
        task, found, model=model, fingerprints=fingerprints, prompts=prompts, seconds=seconds
    )
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


def _check(task: RetrievalTask, how: Search) -> None:
    """Say which queries are not scored; refuse to leave out a document that is an answer."""
    if task.unjudged:
        total = len(task.queries) + task.unjudged + task.answerless
        say(
            f"{task.name}: {task.unjudged:,} of {total:,} queries have no judgement in split "
            f"{task.split!r} and are not scored"
        )
    own = [query for query, grades in task.qrels.items() if grades.get(query, 0) > 0]
    if how.skip_self and own:
        raise UserError(
            f"{task.name}: document {own[0]!r} answers the query of the same id ({len(own)} such "
            "queries); --skip-self would leave the answer out, so do without it"
        )


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    """Results are filed by name, so two of one name would overwrite each other."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two {what} are called {twice[0]!r}; rename a folder or evaluate apart")
