"""What students keep of their teacher and what they gain, in one run.

python -m benchmarks.retention --data FOLDER --student NAME=MODEL [--teacher MODEL] [--dims N]

Quality: nDCG@10 of the test split, of each model, of its vectors cut to fewer dimensions, of an
index of bytes, and of the student's queries against the teacher's index. Speed: all models take
turns, round after round. Writes retention.json and a plot of quality against speed.
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import print as show
from sentence_transformers import SentenceTransformer

from benchmarks.machine import RESULTS, alternate, machine, medians, ratio
from tercet.configs import ModelConfig
from tercet.data import RetrievalTask, read_task
from tercet.errors import UserError
from tercet.evaluation import (
    MAIN_METRIC,
    PerQuery,
    bootstrap_interval,
    compare,
    score_ranking,
    search,
)
from tercet.files import whole_file, write_json
from tercet.models import Role, Size, default_device, encode, load_encoder, vectors
from tercet.report.table import console_table, markdown_table

TEACHER = "teacher"
TEXTS = 2_000  # of each role, spread over all, that are timed
SINGLE = 50  # queries timed one by one in each round
Floats = NDArray[np.float32]
Models = Mapping[str, SentenceTransformer]


@dataclass(frozen=True)
class Variant:
    """A way to search: whose queries, whose index, and how it is kept."""

    queries: str  # names of models
    documents: str
    dims: int | None = None  # the first of them, made unit vectors again
    int8: bool = False  # an index of bytes, each dimension on a scale of its own

    @property
    def name(self) -> str:
        asymmetric = f" on the index of {self.documents}" if self.queries != self.documents else ""
        cut = f", {self.dims} dims" if self.dims else ""
        return f"{self.queries}{asymmetric}{cut}{', int8 index' if self.int8 else ''}"


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a BEIR folder")
    parser.add_argument("--teacher", default="embedded")
    parser.add_argument("--student", action="append", required=True, metavar="NAME=MODEL")
    parser.add_argument("--dims", type=int, nargs="*", default=[128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    students = dict(pair.split("=", 1) for pair in asked.student if "=" in pair)
    if len(students) < len(asked.student) or TEACHER in students:
        raise SystemExit("--student NAME=MODEL, each name once and none called teacher")
    models = {
        name: load_encoder(ModelConfig(path=path), name).to(default_device())
        for name, path in {TEACHER: asked.teacher, **students}.items()
    }
    found = retention(models, read_task(asked.data), asked.dims, asked.rounds)
    write_json(asked.out / "retention.json", {"machine": machine(), **found})
    plot(found, asked.out / "retention.svg")
    show(console_table(rows(found)))


def retention(
    models: Models, task: RetrievalTask, dims: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Quality of every variant, speed of every model; `models` begins with the teacher."""
    scores = {v: score(models, v, task) for v in variants(models, dims)}
    speed = rates(models, task.documents.texts, task.queries.texts, rounds)
    teacher = scores[Variant(TEACHER, TEACHER)]
    return {
        "task": task.name,
        "queries": len(task.queries),
        "documents": len(task.documents),
        "sizes": {name: asdict(Size.of(model)) for name, model in models.items()},
        "speed": speed,
        "variants": [
            asdict(v) | {"name": v.name} | summary(found, teacher) for v, found in scores.items()
        ],
    }


def variants(models: Models, dims: Sequence[int]) -> list[Variant]:
    """The teacher and every student whole, cut, as bytes; students also on the teacher's index."""
    found = []
    width = {name: model.get_embedding_dimension() or 0 for name, model in models.items()}
    for name in models:
        found.append(Variant(name, name))
        found += [Variant(name, name, dims=d) for d in dims if d < width[name]]
        found.append(Variant(name, name, int8=True))
        if name != TEACHER and width[name] == width[TEACHER]:
            found += [Variant(name, TEACHER), Variant(name, TEACHER, int8=True)]
    return found


def score(models: Models, variant: Variant, task: RetrievalTask) -> dict[str, float]:
    """nDCG@10 of every query."""
    queries = cut(stored(models[variant.queries], task, "query"), variant.dims)
    documents = cut(stored(models[variant.documents], task, "document"), variant.dims)
    found = search(task, queries, as_bytes(documents) if variant.int8 else documents, 100)
    values = score_ranking(task, found, [MAIN_METRIC])[MAIN_METRIC].tolist()
    return dict(zip(task.qrels, values, strict=True))


def stored(model: SentenceTransformer, task: RetrievalTask, role: Role) -> Floats:
    """All vectors of a role, from the store if they are there."""
    texts = (task.queries if role == "query" else task.documents).texts
    return np.asarray(vectors(model, texts, role, title=f"{task.name}: {role}")[:])


def cut(found: Floats, dims: int | None) -> Floats:
    """The first dimensions, as unit vectors."""
    if dims is None:
        return found
    short = found[:, :dims]
    return short / np.linalg.norm(short, axis=1, keepdims=True).clip(1e-12)


def as_bytes(found: Floats) -> Floats:
    """What 256 even steps between each dimension's extremes leave of the vectors."""
    low, high = found.min(axis=0), found.max(axis=0)
    step = np.where(high > low, (high - low) / 255, 1).astype(np.float32)
    return np.rint((found - low) / step).astype(np.uint8) * step + low


def summary(scores: PerQuery, teacher: PerQuery) -> dict[str, Any]:
    """Mean with its interval, share of the teacher's, and the paired difference from it."""
    values, other = (np.array(list(s.values())) for s in (scores, teacher))
    low, high = bootstrap_interval(values)
    return {
        "mean": float(values.mean()),
        "low": low,
        "high": high,
        "share": float(values.mean() / other.mean()) if other.mean() else None,
        "against_teacher": asdict(compare(teacher, scores)),
    }


def rates(
    models: Models, documents: Sequence[str], queries: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Texts per second and milliseconds of a single query of every model, taking turns.

    `times_faster` are medians over rounds of the ratio to the first model in the same round.
    """
    shown, asked = spread(documents), spread(queries)
    first = next(iter(models))
    speed: dict[str, Any] = {name: {} for name in models}
    sides: dict[Role, list[str]] = {"document": shown, "query": asked}
    for role, texts in sides.items():
        what = "documents" if role == "document" else "queries"
        times = alternate(
            {
                name: (lambda model=model, texts=texts, role=role: encode(model, texts, role))
                for name, model in models.items()
            },
            rounds,
        )
        for name, seconds in medians(times).items():
            speed[name][f"{what}_per_second"] = len(texts) / seconds
            speed[name][f"{what}_times_faster"] = ratio(times, first, name)
            speed[name][f"{what}_seconds"] = times[name]
    for name, waits in latencies(models, asked[:SINGLE], rounds).items():
        speed[name]["p50_ms"] = 1_000 * statistics.median(waits)
    return speed


def latencies(models: Models, queries: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Seconds from one query to its vector through `encode_query`, query by query, in turns."""
    waits: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, model in models.items():
            for query in queries:
                start = time.perf_counter()
                model.encode_query(query, show_progress_bar=False)
                if turn:  # the first round warms up
                    waits[name].append(time.perf_counter() - start)
    return waits


def spread(texts: Sequence[str]) -> list[str]:
    """At most TEXTS distinct texts, evenly drawn."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        raise UserError("no text to time")
    return distinct[:: -(-len(distinct) // TEXTS)]


def rows(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """The table: a row per variant; size and speed are those of the model that reads queries."""
    return [_row(variant, found) for variant in found["variants"]]


def _row(variant: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, str]:
    small, large = variant["queries"], variant["documents"]
    size, speed = found["sizes"][small], found["speed"][small]
    width = variant["dims"] or found["sizes"][large]["dims"]
    delta = variant["against_teacher"]
    return {
        "Variant": variant["name"],
        "nDCG@10": f"{variant['mean']:.3f} [{variant['low']:.3f}, {variant['high']:.3f}]",
        "Of the teacher": percent(variant["share"]),
        "Difference": f"{delta['mean']:+.3f} [{delta['low']:+.3f}, {delta['high']:+.3f}]",
        "Parameters": f"{size['parameters']:,}",
        "MB": f"{size['megabytes']:.1f}",
        "Bytes / document": f"{width * (1 if variant['int8'] else 4):,}",
        "Documents / s": f"{found['speed'][large]['documents_per_second']:,.0f}",
        "Queries / s": f"{speed['queries_per_second']:,.0f}",
        "p50": f"{speed['p50_ms']:.2f} ms",
    }


def percent(share: float | None) -> str:
    """A share as the tables show it."""
    return "" if share is None else f"{share:.1%}"


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Quality against queries per second, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for variant in found["variants"]:
        x = found["speed"][variant["queries"]]["queries_per_second"]
        y, low, high = (variant[key] for key in ("mean", "low", "high"))
        axes.errorbar(x, y, yerr=[[y - low], [high - y]], fmt="o", capsize=2, label=variant["name"])
    axes.set(xscale="log", xlabel="queries per second", ylabel="nDCG@10", title=found["task"])
    axes.legend(fontsize="x-small")
    with whole_file(path) as partial:
        figure.savefig(partial, format="svg", metadata={"Date": None})
    plt.close(figure)


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """What docs/distillation.md shows."""
    note = (
        f"{found['task']}: {found['queries']:,} queries, {found['documents']:,} documents. "
        "Difference from the teacher with its 95 % interval over queries. Documents per second of "
        "the model that builds the index, all else of the one that reads queries."
    )
    return {"retention": f"{markdown_table(rows(found))}\n\n{note}"}


if __name__ == "__main__":
    main()
