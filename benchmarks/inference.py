"""A model as it is trained and as it is exported: torch, sentence-transformers, ONNX, int8.

python -m benchmarks.inference --data FOLDER [--model MODEL] [--documents N] [--queries N]
                               [--rounds N] [--quick] [--out FOLDER]
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import print as show
from sentence_transformers import SentenceTransformer

from benchmarks.encoding import MAX_LENGTH, best_size, theirs
from benchmarks.machine import (
    RESULTS,
    alternate,
    medians,
    ratio,
    refuse_trial,
    target,
    targets_note,
    write_result,
)
from tercet.configs import ModelConfig
from tercet.data import read_task
from tercet.export import variants
from tercet.export.cpu import has_vnni, int8_saturates
from tercet.export.graph import is_static
from tercet.export.parity import cosine
from tercet.export.runtime import OnnxEncoder
from tercet.models import EMBEDDED, encode, load_encoder, max_length, single_encoder
from tercet.report.table import console_table

Vectors = NDArray[np.float32]
Ask = Callable[[str], Vectors]
OURS, PEER, FULL, INT8 = "torch", "sentence-transformers", "ONNX fp32", "ONNX int8"
FASTER, SMALLER = 1.5, 0.3  # aims: of a query in ONNX fp32, and of the int8 file


def loaded(path: str) -> SentenceTransformer:
    """A model that reads at most 256 tokens; a static one reads whole texts, as it always does."""
    model = load_encoder(ModelConfig(path=path))
    if not is_static(model):
        model.max_seq_length = min(max_length(model), MAX_LENGTH)
    return model


def exported(model: SentenceTransformer, folder: Path) -> tuple[OnnxEncoder, OnnxEncoder]:
    """The model's graph and its int8 form, as `tercet export --int8` writes them."""
    model.save(str(folder), create_model_card=False)
    variants.write_onnx(model, folder, int8=True)
    return OnnxEncoder(folder), OnnxEncoder(folder, variants.INT8)


def distinct(texts: Sequence[str]) -> list[str]:
    """Each text once: ours encodes equal ones once anyway."""
    return list(dict.fromkeys(texts))


def asked(ask: Ask, queries: Sequence[str], times: list[float]) -> None:
    """Ask one query after the other; note the milliseconds of each."""
    for query in queries:
        start = time.perf_counter()
        ask(query)
        times.append((time.perf_counter() - start) * 1e3)


def measure(
    model: SentenceTransformer, documents: list[str], queries: list[str], rounds: int
) -> dict[str, Any]:
    """Latencies of single queries and times of all documents, every variant in every round."""
    size, _ = best_size(model, documents)
    with tempfile.TemporaryDirectory() as place:
        full, small = exported(model, Path(place))
        alone = single_encoder(model, "query")
        files = {
            OURS: list(Path(place).rglob("*.safetensors")),  # a module may have its own
            FULL: [Path(place) / variants.FULL],
            INT8: [Path(place) / variants.INT8],
        }
        megabytes = {n: sum(f.stat().st_size for f in some) / 1e6 for n, some in files.items()}
        ask: dict[str, Ask] = {
            OURS: alone,
            PEER: lambda query: model.encode_query([query], show_progress_bar=False),
            FULL: lambda query: full([query], "query"),
            INT8: lambda query: small([query], "query"),
        }
        whole: dict[str, Callable[[], Vectors]] = {
            OURS: lambda: encode(model, documents, "document"),
            PEER: lambda: theirs(model, documents, size),
            FULL: lambda: full(documents, "document"),
            INT8: lambda: small(documents, "document"),
        }
        latencies: dict[str, list[float]] = {name: [] for name in ask}
        single = alternate(
            {name: (lambda name=name: asked(ask[name], queries, latencies[name])) for name in ask},
            rounds,
        )
        bulk = alternate(whole, rounds)
        found = {name: run() for name, run in whole.items()}
    kept = {name: times[len(queries) :] for name, times in latencies.items()}  # not the warm-up
    faster = {name: ratio(single, OURS, name) for name in ask}
    return {
        "targets": [
            target("torch's time for a query over ONNX fp32's", faster[FULL], least=FASTER),
            target("size of int8 over fp32's", megabytes[INT8] / megabytes[FULL], most=SMALLER),
        ],
        "queries": len(queries),
        "documents": len(documents),
        "peer_batch": size,
        "vnni": has_vnni(),
        "reduce_range": int8_saturates(),
        "megabytes": megabytes,
        "latency_ms": {
            name: dict(zip(("p50", "p95"), np.percentile(times, [50, 95]).tolist(), strict=True))
            for name, times in kept.items()
        },
        "queries_per_second": {n: len(queries) / s for n, s in medians(single).items()},
        "documents_per_second": {n: len(documents) / s for n, s in medians(bulk).items()},
        "query_times_faster": faster,
        "document_times_faster": {name: ratio(bulk, OURS, name) for name in whole},
        "least_cosine": {name: float(cosine(found[OURS], v).min()) for name, v in found.items()},
        "seconds": {"queries": single, "documents": bulk},
    }


def rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """The table of the result."""
    return [
        {
            "Model": name,
            "Query p50, ms": f"{latency['p50']:.1f}",
            "p95": f"{latency['p95']:.1f}",
            "Queries / s": f"{found['queries_per_second'][name]:,.0f}",
            "Faster than torch": f"{found['query_times_faster'][name]:.2f}",
            "Documents / s": f"{found['documents_per_second'][name]:,.0f}",
            "Faster": f"{found['document_times_faster'][name]:.2f}",
            "MB": f"{found['megabytes'][name]:.1f}" if name in found["megabytes"] else "",
            "Cosine, least": f"{found['least_cosine'][name]:.5f}",
        }
        for name, latency in found["latency_ms"].items()
    ]


def int8_note(found: dict[str, Any]) -> str:
    """How int8 weights were made for this processor."""
    if found["reduce_range"]:
        return "The processor has no VNNI, so int8 weights have 7 bits."
    if found["vnni"]:
        return "The processor has VNNI."
    return "The processor takes int8 weights of 8 bits."  # VNNI is an affair of x86 alone


def notes(found: dict[str, Any]) -> str:
    """What the table does not say."""
    return (
        f"{found['queries']:,} queries asked one at a time and {found['documents']:,} documents of "
        f"{found['corpus']}; {found['model']}; {found['machine']['threads']} threads. "
        f"{int8_note(found)} The peer's batch size is {found['peer_batch']}. "
        + targets_note(found["targets"])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a BEIR folder")
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--documents", type=int, default=2_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth, one round")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    refuse_trial(parser, options, "model", "documents", "queries", "rounds", "quick")
    share, rounds = (10, 1) if options.quick else (1, options.rounds)
    task = read_task(options.data)
    found = measure(
        loaded(options.model),
        distinct(task.documents.texts)[: options.documents // share],
        distinct(task.queries.texts)[: options.queries // share],
        rounds,
    )
    name = "all-MiniLM-L6-v2" if options.model == EMBEDDED else Path(options.model).name
    found |= {"corpus": task.name, "model": name}
    path = write_result("inference", found, options.out)
    show(console_table(rows(found)))
    print(path)


if __name__ == "__main__":
    main()
