"""What quantised vectors keep of nDCG@10: `python -m benchmarks.quantised --shared DIR`.

Our codes beside those of sentence-transformers (its `quantize_embeddings`, and its own search with
rescoring), on the same float32 vectors of every BEIR folder in DIR. Ranges are calibrated on each
corpus. Writes benchmarks/results/quantised.json.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers.util import quantize_embeddings
from sentence_transformers.util.quantization import semantic_search_faiss

from benchmarks.machine import RESULTS, write_result
from tercet.configs import ModelConfig
from tercet.data import RetrievalTask, read_task
from tercet.evaluation.compression import CANDIDATES, K, main_scores, mean_score, share_kept
from tercet.evaluation.significance import compare
from tercet.mining.pairs import best_first, pair_scores
from tercet.mining.search import Found, Rows, top_k
from tercet.models import EMBEDDED, default_device, load_encoder, vectors
from tercet.models.quantise import (
    Ranges,
    bits,
    calibrate,
    int8_codes,
    int8_codes_min_max,
    int8_codes_per_vector,
    numbers,
    signs,
    vector_bytes,
)
from tercet.progress import say
from tercet.report.table import markdown_table
from tercet.stages.names import name_of

Floats = NDArray[np.float32]
FLOAT = "float32"
Methods = dict[str, tuple[Callable[[], Found], float]]  # name -> search, bytes per vector


def main() -> None:
    """Measure every collection and write the averages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder of BEIR folders")
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found = {
        folder.name: measure(read_task(folder), arguments.model)
        for folder in sorted(arguments.shared.iterdir())
        if (folder / "corpus.jsonl").exists()
    }
    model = name_of(arguments.model)
    write_result("quantised", {"model": model, "collections": found}, arguments.out)


def measure(task: RetrievalTask, model: str) -> dict[str, Any]:
    """nDCG@10 of every method, and how it differs from float32's."""
    encoder = load_encoder(ModelConfig(path=model)).to(default_device())
    queries = np.asarray(vectors(encoder, task.queries.texts, "query"))
    documents = np.asarray(vectors(encoder, task.documents.texts, "document"))
    scores, sizes = {}, {}
    for name, (search, size) in methods(queries, documents).items():
        say(f"{task.name}: {name}")
        scores[name], sizes[name] = main_scores(task, search()), size
    exact = mean_score(scores[FLOAT])
    return {
        name: {
            "mean": mean_score(found),
            "kept": share_kept(mean_score(found), exact),
            "bytes": sizes[name],
            "delta": asdict(compare(scores[FLOAT], found)),
        }
        for name, found in scores.items()
    }


def methods(queries: Floats, documents: Floats) -> Methods:
    """Every way to search, ours and sentence-transformers'."""
    width, ranges = documents.shape[1], calibrate(documents)
    whole, byte, bit = (vector_bytes(p, width) for p in ("float32", "int8", "binary"))
    return {
        FLOAT: (lambda: top_k(queries, documents, K), whole),
        **_int8(queries, documents, ranges, byte),
        "bits": (lambda: _exact(signs(bits(v), width) for v in (queries, documents)), bit),
        "bits, rescored from int8": (lambda: _rescored(queries, documents, ranges), bit + byte),
        "ST bits, its rescoring": (lambda: _theirs(queries, documents, "ubinary", None), bit),
    }


def _int8(queries: Floats, documents: Floats, ranges: Ranges, size: int) -> Methods:
    both = np.stack([ranges.low, ranges.high])
    sides = (queries, documents)

    def coded(code: Callable[[Rows], Any]) -> Callable[[], Found]:
        return lambda: _exact(numbers(code(side)) for side in sides)

    def per_vector() -> Found:
        return _exact(numbers(*int8_codes_per_vector(side)) for side in sides)

    return {
        "int8, one scale": (coded(lambda side: int8_codes(side, ranges)), size),
        "int8, one scale, float query": (
            lambda: top_k(queries, numbers(int8_codes(documents, ranges)), K),
            size,
        ),
        "int8, a scale for each vector": (per_vector, size + 4),
        "int8, min and max of each dimension": (
            coded(lambda side: int8_codes_min_max(side, ranges)),
            size,
        ),
        "ST int8, ranges given": (
            coded(lambda side: quantize_embeddings(np.asarray(side), "int8", ranges=both)),
            size,
        ),
        "ST int8, ranges of each call": (
            coded(lambda side: quantize_embeddings(np.asarray(side), "int8")),
            size,
        ),
        "ST uint8, its rescoring": (lambda: _theirs(queries, documents, "uint8", both), size),
    }


def _exact(sides: Iterable[Rows], k: int = K) -> Found:
    queries, documents = sides
    return top_k(queries, documents, k)


def _rescored(queries: Floats, documents: Floats, ranges: Ranges) -> Found:
    width = documents.shape[1]
    nearest = _exact((signs(bits(side), width) for side in (queries, documents)), CANDIDATES)[1]
    fine = numbers(int8_codes(documents, ranges))
    return best_first(pair_scores(queries, fine, nearest), nearest, K)


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


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """What docs/comparing.md shows."""
    collections = found["collections"]
    rows = []
    for method, facts in next(iter(collections.values())).items():
        kept = {name: one[method]["kept"] for name, one in collections.items()}
        row = {"Vectors": method, "Bytes": f"{facts['bytes']:,}"}
        row |= {name: f"{share:.1%}" for name, share in kept.items()}
        rows.append(row | {"Mean": f"{np.mean(list(kept.values())):.2%}"})
    note = f"Model: {found['model']}. Share of the float32 vectors' nDCG@10 that is kept."
    return {"quantised": f"{markdown_table(rows)}\n\n{note}"}


if __name__ == "__main__":
    main()
