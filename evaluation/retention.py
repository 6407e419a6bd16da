"""What students keep of their teacher and what they gain, in one run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from tercet.data.rows import RetrievalTask
from tercet.evaluation.compression import coded
from tercet.evaluation.handover import score_ranking
from tercet.evaluation.ranking import search
from tercet.evaluation.retrieval import MAIN_METRIC
from tercet.evaluation.significance import (
    PerQuery,
    bootstrap_interval,
    compare,
    ratio_interval,
)
from tercet.evaluation.speed import rates
from tercet.mining.search import Rows
from tercet.models import Role, Size, vectors
from tercet.models.quantise import calibrate, truncated
from tercet.models.routes import gives_unit_vectors

TEACHER = "teacher"
Models = Mapping[str, SentenceTransformer]


DEPTH = 100  # documents of each query looked at, of which nDCG@10 needs ten


@dataclass(frozen=True)
class Variant:
    """A way to search: whose queries, whose index, and how it is kept."""

    queries: str  # names of models
    documents: str
    dims: int | None = None  # the first of them, made unit vectors again if they were
    int8: bool = False  # an index of bytes, as `tercet index` keeps them

    @property
    def name(self) -> str:
        asymmetric = f" on the index of {self.documents}" if self.queries != self.documents else ""
        cut = f", {self.dims} dims" if self.dims else ""
        return f"{self.queries}{asymmetric}{cut}{', int8 index' if self.int8 else ''}"


def retention(
    models: Models,
    task: RetrievalTask,
    dims: Sequence[int],
    rounds: int,
    timed: Sequence[str] = (),
) -> dict[str, Any]:
    """Quality of every variant (`variants`), size and speed of every model, as JSON takes them.

    `models` begins with the teacher, named TEACHER. Each variant has nDCG@10 with its interval, its
    share of the teacher's and the paired difference from it. Speed is that of `rates`, on the
    task's documents and on `timed` queries, or the task's if there are none.
    """
    scores = {v: score(models, v, task) for v in variants(models, dims)}
    teacher = scores[Variant(TEACHER, TEACHER)]
    return {
        "task": task.name,
        "queries": len(task.queries),
        "documents": len(task.documents),
        "sizes": {name: asdict(Size.of(model)) for name, model in models.items()},
        "speed": rates(models, task.documents.texts, timed or task.queries.texts, rounds),
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
    queries = _rows(models[variant.queries], task, "query", variant.dims)
    documents = _rows(models[variant.documents], task, "document", variant.dims)
    if variant.int8:
        documents = coded(documents, "int8", calibrate(documents))
    found = search(task, queries, documents, DEPTH)
    values = score_ranking(task, found, [MAIN_METRIC])[MAIN_METRIC].tolist()
    return dict(zip(task.qrels, values, strict=True))


def summary(scores: PerQuery, teacher: PerQuery) -> dict[str, Any]:
    """Mean with its interval, share of the teacher's with its own, paired difference from it.

    Intervals are those of the bootstrap over queries, at 95 %. There is no share of a teacher that
    finds nothing.
    """
    other = np.array(list(teacher.values()))
    values = np.array([scores[query] for query in teacher])
    low, high = bootstrap_interval(values)
    known = bool(other.any())
    ends = ratio_interval(other, values) if known else (None, None)
    return {
        "mean": float(values.mean()),
        "low": low,
        "high": high,
        "share": float(values.mean() / other.mean()) if known else None,
        "share_low": ends[0],
        "share_high": ends[1],
        "against_teacher": asdict(compare(teacher, scores)),
    }


def _rows(model: SentenceTransformer, task: RetrievalTask, role: Role, dims: int | None) -> Rows:
    """All vectors of a role, from the store if they are there."""
    texts = (task.queries if role == "query" else task.documents).texts
    found = vectors(model, texts, role, title=f"{task.name}: {role}")
    return found if dims is None else truncated(found, dims, gives_unit_vectors(model))
