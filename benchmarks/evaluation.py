"""From vectors to scores: `tercet evaluate`'s way beside sentence-transformers' evaluator.

python -m benchmarks.evaluation [--queries N] [--documents N] [--rounds N] [--out FOLDER]

Both get the same vectors of 7,000 queries and 100,000 documents; neither encodes a text. Theirs
(InformationRetrievalEvaluator) gives means; ours gives scores of every query and the 95 % intervals
of all means, at the peer's depth of 100 documents and at MTEB's 1,000. One variant also writes what
the command writes: every query's scores as JSON and a run file of all documents found. The peer's
file, a line of means, is not written. Writes evaluation.json.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import print as show
from sentence_transformers import SimilarityFunction
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from benchmarks.machine import (
    RESULTS,
    alternate,
    in_subprocess,
    medians,
    peak_anonymous,
    peak_memory,
    ratio,
    refuse_trial,
    target,
    targets_note,
    write_result,
)
from benchmarks.vectors import WIDTH, near, write_vectors
from tercet.data import RetrievalTask, Texts
from tercet.evaluation import (
    DEPTH,
    Result,
    result_path,
    score_task,
    search,
    write_run,
)
from tercet.evaluation import write_result as write_scores
from tercet.evaluation.metrics import metrics_within
from tercet.mining.best import GROUP
from tercet.mining.search import CPU_TILE, MEMORY, top_k
from tercet.report.table import Row, console_table
from tercet.threads import compute_threads

QUERIES, DOCUMENTS, ROUNDS = 7_000, 100_000, 5
FAR = 2.0  # of queries from their first answers: a cosine of 0.45
PEER_DEPTH = 100  # the evaluator's own: map@100
PEER = "InformationRetrievalEvaluator"
OURS, DEEP = f"ours, depth {PEER_DEPTH}", f"ours, depth {DEPTH:,}"
SMALL = 132_000_000  # bytes: the least the search may be asked to take at this depth
NARROW = f"{DEEP}, --search-memory 132MB"
SEARCH = "the search of it alone"  # only its memory is measured
PRODUCTS = "the matrix product of ours alone"  # only its time is measured
WRITTEN = f"{DEEP}, JSON and run file written"
SAME = {"ndcg@10": "ndcg@10", "mrr@10": "mrr@10", "recall@10": "recall@10"}
SAME |= {"precision@1": "precision@1", "precision@10": "precision@10", "hit_rate@10": "accuracy@10"}
SAME |= {"map": f"map@{PEER_DEPTH}"}  # of a run as deep, and no query has more relevant documents


class _Given:
    """A model whose vectors are there already: what the evaluator asks of one."""

    similarity_fn_name = SimilarityFunction.DOT_PRODUCT.value

    def __init__(self, queries: NDArray[np.float32]) -> None:
        self.queries = torch.from_numpy(queries)

    def encode_query(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.queries

    def similarity(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b.T


def task_of(queries: int, documents: int) -> RetrievalTask:
    """Query i is answered by document i and, less well, by the two after it."""
    ids = [f"d{i:06d}" for i in range(documents)]
    asked = [f"q{i:06d}" for i in range(queries)]
    qrels = {
        query: {ids[i]: 1, ids[(i + 1) % documents]: 1, ids[(i + 2) % documents]: 1}
        for i, query in enumerate(asked)
    }
    return RetrievalTask("made up", "test", Texts(ids, ids), Texts(asked, asked), qrels)


def ours(
    work: Path,
    depth: int = PEER_DEPTH,
    memory: int = MEMORY,
    out: Path | None = None,
) -> Result:
    """Search, scores of every query, intervals; the files too if `out` says where."""
    queries, documents = (np.load(work / f"{side}.npy", mmap_mode="r") for side in "qd")
    task = task_of(len(queries), len(documents))
    found = search(task, queries, documents, depth, memory=memory)
    metrics = tuple(dict.fromkeys((*metrics_within(depth), "map")))
    result = score_task(task, found, model="ours", metrics=metrics)
    if out is not None:
        write_scores(result, out)
        write_run(task, found, result_path(result, out).with_suffix(".run"), "ours")
    return result


def theirs(work: Path) -> dict[str, float]:
    """The evaluator's means, without the name of its similarity."""
    queries, documents = (np.load(work / f"{side}.npy", mmap_mode="c") for side in "qd")
    task = task_of(len(queries), len(documents))
    relevant = {query: set(grades) for query, grades in task.qrels.items()}
    asked = dict(zip(task.queries.ids, task.queries.texts, strict=True))
    corpus = dict(zip(task.documents.ids, task.documents.texts, strict=True))
    evaluator = InformationRetrievalEvaluator(asked, corpus, relevant, write_csv=False)
    model: Any = _Given(queries)
    evaluator.score_functions = evaluator._model_score_functions(model)
    evaluator.score_function_names = list(evaluator.score_functions)
    scores = evaluator.compute_all_metrics(model, corpus_embeddings=torch.from_numpy(documents))
    (found,) = scores.values()
    return {
        name.replace("@k", f"@{cut}"): value
        for name, by_cut in found.items()  # type: ignore[attr-defined]
        for cut, value in by_cut.items()
    }


def searched(work: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The search of NARROW."""
    queries, documents = (np.load(work / f"{side}.npy", mmap_mode="r") for side in "qd")
    return top_k(queries, documents, DEPTH, memory=SMALL)


def products(work: Path) -> None:
    """Scores of all pairs in the search's tiles and threads, with nothing done with them."""
    queries, documents = (
        torch.from_numpy(np.load(work / f"{side}.npy", mmap_mode="c")) for side in "qd"
    )
    high, wide = CPU_TILE
    asked, shown = queries.split(high), documents.split(wide)

    def multiply(turn: int, threads: int) -> None:
        scores = torch.empty(wide * high)
        for part in shown:
            for some in asked[turn::threads]:
                torch.mm(part, some.T, out=scores[: len(part) * len(some)].view(len(part), -1))

    with compute_threads(torch.device("cpu")) as (pool, threads):
        list(pool.map(partial(multiply, threads=threads), range(threads)))


def bound(queries: int, threads: int) -> float:
    """MiB that docs/evaluation.md lets SEARCH take: candidates, answer, scores, documents."""
    high, wide = CPU_TILE
    scores, shown = threads * high * (wide + GROUP) * 4, 2 * wide * WIDTH * 4  # read one ahead
    return (SMALL + 12 * queries * DEPTH + scores + shown) / 2**20


VARIANTS = {
    OURS: ours,
    DEEP: lambda work: ours(work, DEPTH),
    NARROW: lambda work: ours(work, DEPTH, SMALL),
    WRITTEN: lambda work: ours(work, DEPTH, out=work / "out"),
    PEER: theirs,
}


def measure(work: Path, queries: int, documents: int, rounds: int) -> dict[str, Any]:
    """Seconds of each, and how far the shared means differ. The vectors stay in `work`."""
    made = write_vectors(work / "d.npy", documents, seed=2)
    np.save(work / "q.npy", near(np.asarray(made[:queries]), seed=4, far=FAR))
    answers: dict[str, Any] = {}
    variants = {
        name: lambda name=name, run=run: answers.update({name: run(work)})
        for name, run in VARIANTS.items()
    }
    times = alternate(variants | {PRODUCTS: lambda: products(work)}, rounds)
    peer, means = answers[PEER], answers[OURS].means
    return {
        "queries": queries,
        "documents": documents,
        "width": WIDTH,
        "threads": torch.get_num_threads(),
        "seconds": times,
        "medians": medians(times),
        "times_faster": {name: ratio(times, PEER, name) for name in times if name != PEER},
        "metrics": {name: len(answers[name].means) for name in VARIANTS if name != PEER}
        | {PEER: len(peer)},
        "same_metrics": {
            mine: {"ours": means[mine].mean, "theirs": float(peer[other])}
            for mine, other in SAME.items()
        },
        "largest_difference": max(
            abs(means[mine].mean - float(peer[other])) for mine, other in SAME.items()
        ),
    }


def report_memory(name: str, work: Path) -> dict[str, float]:
    """Peak memory of one variant in this process."""
    found: dict[str, float] = {}
    with peak_memory(found), peak_anonymous(found):
        (VARIANTS | {SEARCH: searched})[name](work)
    return found


def aims(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at before anything was measured."""
    extra = {name: peak["extra_anonymous_mib"] for name, peak in found["memory"].items()}
    return [
        target("evaluator's time over ours", found["times_faster"][OURS], least=3),
        target("difference of shared metrics", found["largest_difference"], most=1e-6),
        target(
            "peak memory at --search-memory 132MB over that at the default",
            extra[NARROW] / extra[DEEP],
            most=1,
        ),
        target(
            "memory of the limited search over its bound",
            extra[SEARCH] / bound(found["queries"], found["threads"]),
            most=1,
        ),
    ]


def rows(found: dict[str, Any]) -> list[Row]:
    """The table of docs/benchmarks.md."""
    return [
        {
            "From vectors to scores": f"**{name}**" if name.startswith("ours") else name,
            "Seconds": f"{value:.1f}",
            "Time / ours": f"{ratio(found['seconds'], name, OURS):.2f}",
        }
        | (
            {"Extra memory": "", "Metrics": ""}
            if name == PRODUCTS
            else {
                "Extra memory": f"{found['memory'][name]['extra_anonymous_mib']:,.0f} MiB",
                "Metrics": str(found["metrics"][name]),
            }
        )
        for name, value in found["medians"].items()
    ]


def note(found: dict[str, Any]) -> str:
    """What stands below it."""
    same, difference = len(found["same_metrics"]), found["largest_difference"]
    faster = found["times_faster"]
    return (
        f"{found['queries']:,} queries, {found['documents']:,} documents, width {found['width']}. "
        f"The evaluator, which looks at {PEER_DEPTH} documents of each query, takes "
        f"{faster[OURS]:.2f} times as long as ours at that depth, {faster[DEEP]:.2f} times at "
        f"{DEPTH:,}, the command's default, and {faster[WRITTEN]:.2f} times where that is also "
        f"written to files; {faster[PRODUCTS]:.2f} times as long as the product of all pairs in "
        f"the search's tiles, with nothing done with the scores. The {same} metrics that both "
        f"define alike (MAP of {PEER_DEPTH} documents among them, added for this) differ by at "
        f"most {difference:.1g}. " + targets_note(found["targets"])
    )


def main() -> None:
    """Run what the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--memory", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        name, work = options.memory
        return print(json.dumps(report_memory(name, Path(work))))
    refuse_trial(parser, options, "queries", "documents", "rounds")
    with tempfile.TemporaryDirectory() as work:
        found = measure(Path(work), options.queries, options.documents, options.rounds)
        found["memory"] = {
            name: in_subprocess("benchmarks.evaluation", "--memory", name, work)
            for name in (*VARIANTS, SEARCH)
        }
    found["targets"] = aims(found)
    show(console_table(rows(found)))
    print(write_result("evaluation", found, options.out))


if __name__ == "__main__":
    main()
