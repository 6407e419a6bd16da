"""Encoding a real corpus: ours beside sentence-transformers' `encode` at its best batch size.

python -m benchmarks.encoding --data FOLDER [--documents N] [--rounds N] [--quick] [--out FOLDER]
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import print as show
from sentence_transformers import SentenceTransformer

from benchmarks.machine import (
    RESULTS,
    alternate,
    gemm_peak,
    medians,
    ratio,
    refuse_trial,
    target,
    targets_note,
    write_result,
)
from benchmarks.steps import body_parameters, student
from tercet.data import read_task
from tercet.models import encode, tokenise, vectors
from tercet.report.table import console_table

MAX_LENGTH = 256  # tokens; what the model was published with
SIZES = (8, 16, 32, 64, 128)  # the peer's batches; its default is 32
FASTER, NEAR = 1.3, 1e-5  # aims: in tokens per second, and how far the two sides' numbers differ
TRIAL = 600  # documents, spread over all, on which its best one is found


class _Seen:
    """Tokens that went through the model in a run, padding included, and the vectors it gave."""

    def __init__(self) -> None:
        self.padded: dict[str, int] = {}
        self.vectors: dict[str, NDArray[np.float32]] = {}
        self._sizes: list[int] = []  # list.append is safe from several threads

    def watch(self, model: SentenceTransformer) -> None:
        """Count what goes through the model, and through the copies that threads make of it.

        A function is shared by the copies; a method would be copied with all it counts for.
        """

        def count(_: Any, given: tuple[Any, ...]) -> None:
            self._sizes.append(given[0]["input_ids"].numel())

        model.register_forward_pre_hook(count)

    def run(self, name: str, encoded: Callable[[], NDArray[np.float32]]) -> None:
        self._sizes.clear()
        self.vectors[name] = encoded()
        self.padded[name] = sum(self._sizes)


def theirs(model: SentenceTransformer, texts: list[str], size: int) -> NDArray[np.float32]:
    """The peer's vectors in the peer's way."""
    return model.encode_document(texts, batch_size=size, show_progress_bar=False)


def best_size(model: SentenceTransformer, texts: list[str]) -> tuple[int, dict[str, list[float]]]:
    """The peer's fastest batch size on some of the texts, and what each took."""
    sample = texts[:: max(1, len(texts) // TRIAL)]
    runs = {str(size): (lambda size=size: theirs(model, sample, size)) for size in SIZES}
    theirs(model, sample[: max(SIZES)], max(SIZES))
    times = alternate(runs, 1, untimed=0)
    return int(min(times, key=lambda size: times[size][0])), times


def measure(texts: list[str], rounds: int) -> dict[str, Any]:
    """Times, padding and agreement of both sides; ours also into a store on the disk.

    Nothing is run untimed but a sample, on which the peer's best batch size is looked for.
    """
    model = student(MAX_LENGTH).eval()
    size, trial = best_size(model, texts)
    encode(model, texts[:TRIAL], "document")
    peer, seen = f"theirs, batch {size}", _Seen()
    seen.watch(model)

    def stored() -> None:
        with tempfile.TemporaryDirectory() as folder:
            vectors(model, texts, "document", folder=Path(folder))

    variants: dict[str, Callable[[], Any]] = {
        "ours": lambda: seen.run("ours", lambda: encode(model, texts, "document")),
        peer: lambda: seen.run(peer, lambda: theirs(model, texts, size)),
        "ours, stored": stored,
    }
    times = alternate(variants, rounds, untimed=0)
    tokens = sum(len(ids) for ids in tokenise(model, texts, "document"))
    middle, peak = medians(times), gemm_peak()
    faster, stored_too = (ratio(times, peer, name) for name in ("ours", "ours, stored"))
    apart = float(np.abs(seen.vectors["ours"] - seen.vectors[peer]).max())
    return {
        "targets": [
            target("tokens per second over the peer's", faster, least=FASTER),
            target("the same into a store, as commands encode", stored_too, least=FASTER),
            target("difference of a vector's number", apart, most=NEAR),
        ],
        "documents": len(texts),
        "tokens": tokens,
        "peer": peer,
        "trial_seconds": trial,
        "seconds": times,
        "medians": middle,
        "tokens_per_second": {name: tokens / seconds for name, seconds in middle.items()},
        "padded_per_real": {n: count / tokens for n, count in seen.padded.items()},
        "times_faster": faster,
        "times_faster_stored": stored_too,
        "gemm_peak": peak,
        "share_of_peak": 2 * body_parameters(model) * tokens / middle["ours"] / peak,
        "largest_difference": apart,
    }


def rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """The table of the result."""
    padded = found["padded_per_real"]
    return [
        {
            "Encoding": f"**{name}**" if name == "ours" else name,
            "Seconds": f"{seconds:.1f}",
            "Time / ours": f"{ratio(found['seconds'], name, 'ours'):.2f}",
            "Real tokens / s": f"{found['tokens_per_second'][name]:,.0f}",
            "Computed / real tokens": f"{padded[name]:.3f}" if name in padded else "",
        }
        for name, seconds in found["medians"].items()
    ]


def documents(folder: Path, count: int) -> list[str]:
    """The first documents of a BEIR folder."""
    return read_task(folder).documents.texts[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a BEIR folder")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a twentieth, one round")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    refuse_trial(parser, options, "documents", "rounds", "quick")
    count = options.documents // 20 if options.quick else options.documents
    found = measure(documents(options.data, count), 1 if options.quick else options.rounds)
    found["corpus"] = options.data.resolve().name
    path = write_result("encoding", found, options.out)
    show(console_table(rows(found)))
    print(targets_note(found["targets"]))
    print(path)


if __name__ == "__main__":
    main()
