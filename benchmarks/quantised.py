"""What quantised vectors keep of nDCG@10: `python -m benchmarks.quantised --shared DIR`.

Our codes beside those of sentence-transformers (its `quantize_embeddings`, and its own search with
rescoring), on the same float32 vectors of every BEIR folder in DIR. Ranges are calibrated on each
corpus, and where a row says "of another collection" on the documents of the next folder. Writes
benchmarks/results/quantised.json.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings
from sentence_transformers.util.quantization import semantic_search_faiss

from benchmarks.machine import RESULTS, refuse_trial, target, targets_note, write_result
from tercet.configs import ModelConfig
from tercet.data import RetrievalTask, read_task
from tercet.evaluation.compression import (
    CANDIDATES,
    K,
    coded,
    main_scores,
    scored_again,
    share_kept,
)
from tercet.evaluation.ranking import Ranking
from tercet.evaluation.significance import compare_over_tasks
from tercet.mining.search import Found, Rows, top_k
from tercet.models import EMBEDDED, default_device, load_encoder, vectors
from tercet.models.quantise import (
    Ranges,
    calibrate,
    int8_codes_min_max,
    int8_codes_per_vector,
    numbers,
    vector_bytes,
)
from tercet.progress import say
from tercet.report.table import Row, console_table, markdown_table
from tercet.stages.names import name_of

Floats = NDArray[np.float32]
FLOAT, INT8, RESCORED = "float32", "int8, one scale", "bits, rescored from int8"
PER_CALL = "ST int8, ranges of each call"  # the same text has other codes in another call
ALIKE = 0.001  # of the share kept: forms this near are as good as each other
LEAST_KEPT = {INT8: 0.99, RESCORED: 0.97}  # of float32's nDCG@10, over the collections
PerMethod = dict[str, NDArray[np.float64]]  # name -> nDCG@10 (Q,)
Methods = dict[str, tuple[Callable[[], Found], float]]  # name -> search, bytes per vector


def main() -> None:
    """Measure every collection and write the averages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder of BEIR folders")
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    refuse_trial(parser, arguments, "model")
    folders = [f for f in sorted(arguments.shared.iterdir()) if (f / "corpus.jsonl").exists()]
    found = measure([read_task(folder) for folder in folders], arguments.model)
    path = write_result("quantised", found, arguments.out)
    from rich import print as show

    show(console_table(rows(found)))
    print(path)


def measure(tasks: Sequence[RetrievalTask], model: str) -> dict[str, Any]:
    """nDCG@10 of every method on every task, and how it differs from float32's over all."""
    encoder = load_encoder(ModelConfig(path=model)).to(default_device())
    sides = [_sides(encoder, task) for task in tasks]
    ranges = [calibrate(documents) for _, documents in sides]
    scores: list[PerMethod] = []
    sizes: dict[str, float] = {}
    for place, (task, pair) in enumerate(zip(tasks, sides, strict=True)):
        ways = methods(*pair, ranges[place], ranges[(place + 1) % len(tasks)])
        sizes = {name: size for name, (_, size) in ways.items()}
        scores.append({name: _scores(task, name, find) for name, (find, _) in ways.items()})
    overall = {name: _overall(scores, name) for name in sizes}
    return {
        "model": name_of(model),
        "collections": {
            task.name: {name: _facts(found, name, sizes[name]) for name in sizes}
            for task, found in zip(tasks, scores, strict=True)
        },
        "overall": overall,
        "targets": [
            target(f"share kept by {name}", overall[name]["kept"], least=least)
            for name, least in LEAST_KEPT.items()
        ],
    }


def _sides(encoder: SentenceTransformer, task: RetrievalTask) -> tuple[Floats, Floats]:
    queries = vectors(encoder, task.queries.texts, "query", title=f"{task.name}: queries")
    documents = vectors(encoder, task.documents.texts, "document", title=task.name)
    return np.asarray(queries[:]), np.asarray(documents[:])


def _scores(task: RetrievalTask, name: str, find: Callable[[], Found]) -> NDArray[np.float64]:
    say(f"{task.name}: {name}")
    return np.array(list(main_scores(task, Ranking(*find())).values()))


def _facts(found: PerMethod, name: str, size: float) -> dict[str, float]:
    mean, exact = float(found[name].mean()), float(found[FLOAT].mean())
    return {"mean": mean, "kept": share_kept(mean, exact), "bytes": size}


def _overall(scores: Sequence[PerMethod], name: str) -> dict[str, Any]:
    """Mean share kept, and the mean difference over the collections with its interval."""
    kept = [share_kept(float(one[name].mean()), float(one[FLOAT].mean())) for one in scores]
    delta = compare_over_tasks([one[name] - one[FLOAT] for one in scores])
    return {"kept": float(np.mean(kept)), "delta": asdict(delta)}


def methods(queries: Floats, documents: Floats, ranges: Ranges, others: Ranges) -> Methods:
    """Every way to search, ours and sentence-transformers'.

    `ranges` of these documents, `others` of those of another collection.
    """
    width = documents.shape[1]
    whole, byte, bit = (vector_bytes(p, width) for p in ("float32", "int8", "binary"))
    return {
        FLOAT: (lambda: top_k(queries, documents, K), whole),
        **_int8(queries, documents, ranges, others, byte),
        "bits": (lambda: _bits(queries, documents, ranges, K), bit),
        RESCORED: (lambda: _rescored(queries, documents, ranges), bit + byte),
        "ST bits, its rescoring": (lambda: _theirs(queries, documents, "ubinary", None), bit),
    }


def _int8(queries: Floats, documents: Floats, ranges: Ranges, others: Ranges, size: int) -> Methods:
    both = np.stack([ranges.low, ranges.high])
    sides = (queries, documents)

    def both_by(code: Callable[[Rows], Any]) -> Callable[[], Found]:
        return lambda: _exact(numbers(code(side)) for side in sides)

    def per_vector() -> Found:
        return _exact(numbers(*int8_codes_per_vector(side)) for side in sides)

    return {
        INT8: (lambda: _exact(coded(side, "int8", ranges) for side in sides), size),
        "int8, one scale of another collection": (
            lambda: _exact(coded(side, "int8", others) for side in sides),
            size,
        ),
        "int8, one scale, float query": (
            lambda: top_k(queries, coded(documents, "int8", ranges), K),
            size,
        ),
        "int8, a scale for each vector": (per_vector, size + 4),
        "int8, min and max of each dimension": (
            both_by(lambda side: int8_codes_min_max(side, ranges)),
            size,
        ),
        "int8, min and max of another collection": (
            both_by(lambda side: int8_codes_min_max(side, others)),
            size,
        ),
        "ST int8, ranges given": (
            both_by(lambda side: quantize_embeddings(np.asarray(side), "int8", ranges=both)),
            size,
        ),
        PER_CALL: (
            both_by(lambda side: quantize_embeddings(np.asarray(side), "int8")),
            size,
        ),
        "ST uint8, its rescoring": (lambda: _theirs(queries, documents, "uint8", both), size),
    }


def _exact(sides: Iterable[Rows], k: int = K) -> Found:
    queries, documents = sides
    return top_k(queries, documents, k)


def _bits(queries: Floats, documents: Floats, ranges: Ranges, k: int) -> Found:
    return _exact((coded(side, "binary", ranges) for side in (queries, documents)), k)


def _rescored(queries: Floats, documents: Floats, ranges: Ranges) -> Found:
    nearest = _bits(queries, documents, ranges, CANDIDATES)[1]
    again = scored_again(queries, coded(documents, "int8", ranges), nearest)
    return again.scores, again.positions


def _theirs(queries: Floats, documents: Floats, precision: Any, ranges: Any) -> Found:
    """sentence-transformers' own search: as many candidates as ours, scored again by its rule."""
    answers, *_ = semantic_search_faiss(
        queries,
        corpus_embeddings=np.asarray(quantize_embeddings(documents, precision, ranges=ranges)),
        corpus_precision=precision,
        top_k=K,
        ranges=ranges,
        rescore=True,
        rescore_multiplier=max(1, min(CANDIDATES, len(documents)) // K),
        exact=True,
    )
    scores = np.full((len(queries), K), -np.inf, dtype=np.float32)
    positions = np.full((len(queries), K), -1, dtype=np.int64)
    for row, hits in enumerate(answers):
        scores[row, : len(hits)] = [hit["score"] for hit in hits]
        positions[row, : len(hits)] = [hit["corpus_id"] for hit in hits]
    return scores, positions


def rows(found: Mapping[str, Any]) -> list[Row]:
    """A row for each method."""
    collections = found["collections"]
    table = []
    for method, facts in next(iter(collections.values())).items():
        row = {"Vectors": method, "Bytes": f"{facts['bytes']:,}"}
        row |= {name: f"{one[method]['kept']:.1%}" for name, one in collections.items()}
        whole = found["overall"][method]
        mean, low, high = (whole["delta"][key] for key in ("mean", "low", "high"))
        row |= {"Mean": f"{whole['kept']:.2%}"}
        table.append(row | {"nDCG@10 lost or won": f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"})
    return table


def shares(found: Mapping[str, Any]) -> dict[str, float]:
    """Mean share of float32's nDCG@10 that each int8 form keeps."""
    return {n: one["kept"] for n, one in found["overall"].items() if "int8" in n and n != RESCORED}


def verdict(found: Mapping[str, Any]) -> str:
    """Which int8 form keeps most, and how the default stands to it."""
    kept = shares(found)
    said = [f"Of the int8 forms, {_compared(kept)}"]
    if max(kept, key=lambda name: kept[name]) == PER_CALL:
        steady = {name: share for name, share in kept.items() if name != PER_CALL}
        said.append(
            "Its codes of a text change with the texts that are coded in the same call, so that "
            f"an index of them cannot grow; of the others, {_compared(steady)}"
        )
    return " ".join(said)


def _compared(kept: Mapping[str, float]) -> str:
    best = max(kept, key=lambda name: kept[name])
    if best == INT8:
        return f'the default, "{INT8}", keeps most, {kept[best]:.2%}.'
    behind = kept[best] - kept[INT8]
    near = "within" if behind <= ALIKE else "which is more than"
    return (
        f'"{best}" keeps most, {kept[best]:.2%}; the default, "{INT8}", keeps {kept[INT8]:.2%}, '
        f"{100 * behind:.2f} points less, {near} the {100 * ALIKE:.1f} that count as equal."
    )


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """What docs/comparing.md shows."""
    note = (
        "Bytes of a document, for our rescored bits with the int8 codes that rescoring reads. "
        f"Model: {found['model']}. Share of the float32 vectors' nDCG@10 that is kept; last the "
        "mean difference over the collections, each weighing the same, with its 95 % interval. "
        f"{verdict(found)} {targets_note(found['targets'])}"
    )
    return {"quantised": f"{markdown_table(rows(found))}\n\n{note}"}


if __name__ == "__main__":
    main()
