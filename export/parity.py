"""What an exported file gives, beside what its checkpoint gives: likeness, quality, size, speed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tercet.errors import UserError
from tercet.evaluation import MAIN_METRIC, Result, comparison, score_task, search
from tercet.evaluation.speed import drawn_evenly, latencies, seconds
from tercet.export.sample import Sample
from tercet.models import Role

LEAST_COSINE = 0.99999  # of any text, for a float32 graph
MOST_STRETCH = 1e-3  # share by which a vector may be longer or shorter: cosines do not see it
MAX_LOSS = 0.01  # share of nDCG@10 that an int8 graph may lose
ASKED = 200  # single queries that are timed, after a few that are not
BATCHED = 1_000  # texts whose encoding in batches is timed, at most
Encode = Callable[[Sequence[str], Role], NDArray[np.float32]]
Measured = dict[str, Any]


@dataclass(frozen=True)
class Reference:
    """The checkpoint's own vectors of every part of the sample, and its scores."""

    sample: Sample
    vectors: list[NDArray[np.float32]]
    results: list[Result]


def reference_of(encode: Encode, sample: Sample) -> Reference:
    """Encode the sample with the checkpoint and score its tasks."""
    vectors = [encode(texts, role) for role, texts in sample.parts]
    return Reference(sample, vectors, _results(sample, vectors, "checkpoint"))


def measure(
    name: str, files: Sequence[Path], load: Callable[[], Encode], reference: Reference
) -> Measured:
    """One entry of parity.json under "variants".

    cosine: min and mean over all texts; max_difference: of any component; max_stretch: the share
    by which any vector's length differs; tasks: nDCG@10 before and after with 95 % intervals, and
    the share lost; megabytes (10 ** 6 bytes); seconds to load; milliseconds of one query,
    tokenisation included; distinct texts encoded per second in batches, when all were once.
    Raises UserError if a vector is not finite: neither its cosine nor its rank would mean a thing.
    """
    start = time.perf_counter()
    encode = load()
    loaded = time.perf_counter() - start
    vectors = [encode(texts, role) for role, texts in reference.sample.parts]
    _refuse_nonfinite(name, vectors)
    # Again, as the first pass warms up; distinct, as equal texts cost torch nothing.
    timed = drawn_evenly([text for _, texts in reference.sample.parts for text in texts], BATCHED)
    spent = seconds(lambda: encode(timed, "document"))
    pairs = list(zip(reference.vectors, vectors, strict=True))
    cosines = np.concatenate([cosine(a, b) for a, b in pairs])
    results = _results(reference.sample, vectors, name)
    return {
        "cosine": {"min": float(cosines.min()), "mean": float(cosines.mean())},
        "max_difference": float(max(np.abs(a - b).max(initial=0) for a, b in pairs)),
        "max_stretch": max(stretch(a, b) for a, b in pairs),
        "tasks": {
            before.task: _quality(before, after)
            for before, after in zip(reference.results, results, strict=True)
        },
        "megabytes": sum(file.stat().st_size for file in files) / 1e6,
        "load_seconds": loaded,
        "latency_ms": latency(encode, reference.sample.tasks[0].queries.texts),
        "texts_per_second": len(timed) / spent,
    }


def latency(encode: Encode, queries: Sequence[str]) -> dict[str, float]:
    """p50 and p95 of the milliseconds that one query takes, asked one at a time."""
    asked = [queries[i % len(queries)] for i in range(ASKED)]
    (waits,) = latencies({"query": lambda query: encode([query], "query")}, asked).values()
    p50, p95 = (1000 * np.quantile(waits, [0.5, 0.95])).tolist()
    return {"p50": p50, "p95": p95}


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) cosines of rows of a and b (N, H); two zero vectors are alike, one alone is not.

    NaN and infinity count as the worst there is, -1.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        found = np.einsum("nh,nh->n", x, y) / np.maximum(lengths[0] * lengths[1], 1e-30)
    found = np.where((lengths[0] == 0) & (lengths[1] == 0), 1.0, found)
    return np.where(np.isfinite(found), found, -1.0)


def stretch(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The largest share by which the length of a row of b (N, H) differs from that of a (N, H)."""
    lengths = [np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (a, b)]
    return float((np.abs(lengths[1] - lengths[0]) / lengths[0].clip(1e-12)).max(initial=0))


def loss(measured: Measured) -> float:
    """The largest share of nDCG@10 lost on any task."""
    return max(task["loss"] for task in measured["tasks"].values())


def refuse_unlike(name: str, measured: Measured) -> None:
    """Raise UserError unless every vector has cosine 0.99999 at least and its length, to 0.1 %."""
    found = measured["cosine"]["min"]
    if not found >= LEAST_COSINE:
        raise UserError(
            f"{name}: the least cosine with the checkpoint's vectors is {found:.6f} (limit "
            f"{LEAST_COSINE}); nothing was written"
        )
    refuse_stretched(name, measured["max_stretch"])


def refuse_stretched(name: str, share: float) -> None:
    """Raise UserError unless lengths differ by 0.1 % at most."""
    if not share <= MOST_STRETCH:
        raise UserError(
            f"{name}: the length of a vector differs from the checkpoint's by {share:.2%} "
            f"(limit {MOST_STRETCH:.1%}); nothing was written"
        )


def refuse_worse(name: str, measured: Measured, most: float) -> None:
    """Raise UserError if more than the share `most` of nDCG@10 is lost on a task."""
    for task, found in measured["tasks"].items():
        if not found["loss"] <= most:
            before, after = found["before"]["mean"], found["after"]["mean"]
            raise UserError(
                f"{name}: nDCG@10 on {task} falls from {before:.4f} to {after:.4f}, a loss of "
                f"{found['loss']:.1%} (limit {most:.1%}); nothing was written; allow it with "
                "--max-loss or export without --int8"
            )


def variant_rows(variants: Mapping[str, Measured]) -> list[dict[str, str]]:
    """A row of text for each figure, a column for each file: on the card and on the console."""
    columns = {
        name if found["kept"] else f"{name} (not kept)": _figures(found)
        for name, found in variants.items()
    }
    figures = dict.fromkeys(figure for column in columns.values() for figure in column)
    return [
        {"File": figure, **{name: column[figure] for name, column in columns.items()}}
        for figure in figures
    ]


def _figures(found: Measured) -> dict[str, str]:
    figures = {
        "MB": f"{found['megabytes']:.1f}",
        "cosine, least": f"{found['cosine']['min']:.6f}",
        "cosine, mean": f"{found['cosine']['mean']:.6f}",
        "largest difference": f"{found['max_difference']:.1e}",
    }
    for task, quality in found["tasks"].items():
        after, change = quality["after"], quality["difference"]
        interval = f"[{change['low']:+.4f}, {change['high']:+.4f}]"
        figures |= {
            f"nDCG@10, {task}": f"{after['mean']:.3f}",
            f"95 % of {task}": f"{after['low']:.3f} to {after['high']:.3f}",
            f"checkpoint, {task}": f"{quality['before']['mean']:.3f}",
            f"change, {task}": f"{change['mean']:+.4f} {interval}",
        }
    return figures | {
        "load, s": f"{found['load_seconds']:.2f}",
        "query p50, ms": f"{found['latency_ms']['p50']:.1f}",
        "query p95, ms": f"{found['latency_ms']['p95']:.1f}",
        "texts / s": f"{found['texts_per_second']:,.0f}",
    }


def _refuse_nonfinite(name: str, vectors: Sequence[NDArray[np.float32]]) -> None:
    bad = sum(int((~np.isfinite(rows)).any(axis=1).sum()) for rows in vectors)
    if bad:
        total = sum(len(rows) for rows in vectors)
        raise UserError(
            f"{name}: {bad:,} of {total:,} vectors are not finite (NaN or infinity); nothing was "
            "written"
        )


def _results(sample: Sample, vectors: Sequence[NDArray[np.float32]], name: str) -> list[Result]:
    pairs = zip(vectors[::2], vectors[1::2], strict=True)
    return [
        score_task(task, search(task, queries, documents, 100), model=name)
        for task, (queries, documents) in zip(sample.tasks, pairs, strict=False)
    ]


def _quality(before: Result, after: Result) -> Measured:
    means = before.means[MAIN_METRIC], after.means[MAIN_METRIC]
    return {
        "metric": MAIN_METRIC,
        "queries": before.counts["queries"],
        "documents": before.counts["documents"],
        "before": asdict(means[0]),
        "after": asdict(means[1]),
        "difference": asdict(comparison(before, after)),
        "loss": (means[0].mean - means[1].mean) / max(means[0].mean, 1e-12),
    }
