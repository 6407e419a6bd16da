"""How the static student of benchmarks.distillation is made and learns, chosen on dev queries."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from benchmarks.distillation_work import CODE, Work, common, encoder
from benchmarks.kept import kept_json, made_of, scored_by
from tercet import stages
from tercet.configs import Config, load
from tercet.data import read_task
from tercet.models import EMBEDDED, Corpus
from tercet.models.static import static_student, token_vectors
from tercet.models.vocabulary import token_counts
from tercet.train.rows import batches_of, read_rows, steps_of

RECIPE = "student_static"
CENTRES, SIFS = (True, False), (0.0, 1e-4, 1e-3, 1e-2)  # of the table, chosen first
RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # of learning, chosen after
LABELLED_RATES = RATES[-2:]  # contrast takes higher ones
TRIAL_EPOCHS = 4  # of texts
LABELLED = (  # it may learn the labels too, if that is better on dev
    "distil.infonce=1",
    "loss.directions=[query_to_document,document_to_query]",
)
How = tuple[str, ...]  # what the recipe is told
Tries = dict[How, dict[str, Any]]  # `ndcg` on dev, and the `seconds` it took to know


@dataclass(frozen=True)
class Choice:
    """What was tried on the dev queries; the best of each is taken."""

    tables: Tries  # before training
    trials: Tries  # after a few epochs of the best table

    @property
    def settings(self) -> How:
        """What the recipe is told."""
        return (*best(self.tables), *best(self.trials))

    @property
    def seconds(self) -> float:
        """Of all tries."""
        return sum(one["seconds"] for tries in (self.tables, self.trials) for one in tries.values())


def best(tries: Tries) -> How:
    return max(tries, key=lambda how: tries[how]["ndcg"])


@cache
def choose(work: Work, name: str) -> Choice:
    """Score every table, then every rate with the best one, without labels and with them."""
    centres, sifs = (CENTRES[:1], SIFS[-2:]) if work.small else (CENTRES, SIFS)
    made = [(f"student.centre={str(c).lower()}", f"student.sif={s}") for c in centres for s in sifs]
    tables = {how: table(work, name, how) for how in made}
    rates = RATES[-2:] if work.small else RATES
    learnt = [(f"train.learning_rate={rate}",) for rate in rates]
    learnt += [(f"train.learning_rate={rate}", *LABELLED) for rate in LABELLED_RATES]
    trials = {how: trial(work, name, (*best(tables), *how)) for how in learnt}
    return Choice(tables, trials)


def static_config(work: Work, name: str) -> Config:
    """The whole training; the best step is kept, for twenty epochs may be too many."""
    dev = work.data(CODE)
    said = [*choose(work, name).settings, steps(work), f"evaluation.dev={dev}"]
    return load(RECIPE, [*common(dev, work.run(name)), *said])


def steps(work: Work, *more: str) -> str:
    """As many as the recipe's epochs of texts have: labels come in rows, of which there are fewer.

    So labels are tried as long as texts alone.
    """
    config = load(RECIPE, [*common(work.data(CODE), work.folder), *more])
    return f"train.steps={steps_of(config, batches_of(config, read_rows(config.data)))}"


def table(work: Work, name: str, how: How) -> dict[str, Any]:
    """A static student before training."""
    dev = work.data(CODE)
    config = load(RECIPE, [*common(dev, work.run(name)), *how])
    settings = config.student
    return tried(work, name, how, config, lambda: untrained(dev, settings.centre, settings.sif))


def untrained(dev: Path, centre: bool, sif: float) -> float:
    """nDCG@10 on dev of a static student before training."""
    teacher = encoder(EMBEDDED)
    model = static_student(teacher, *tokens_alone(dev), None, sif, centre)
    return mean_on_dev(model, dev)


@cache
def tokens_alone(folder: Path) -> tuple[Any, Any]:
    """The teacher's vector of each token, and how often each occurs in the training texts."""
    rows = read_rows(load(RECIPE, [f"data.train={folder}"]).data)
    corpus: Corpus = {"query": rows.queries.texts, "document": rows.documents.texts}
    teacher = encoder(EMBEDDED)
    return token_vectors(teacher), token_counts(teacher, corpus)


def trial(work: Work, name: str, how: How) -> dict[str, Any]:
    """The same after a few epochs."""
    few = steps(work, f"train.epochs={TRIAL_EPOCHS}")
    config = load(RECIPE, [*common(work.data(CODE), work.folder / "trial"), *how, few])

    def score() -> float:
        shutil.rmtree(config.output, ignore_errors=True)
        return mean_on_dev(encoder(str(stages.distil(config))), work.data(CODE))

    return tried(work, name, how, config, score)


def tried(
    work: Work, name: str, how: How, config: Config, score: Callable[[], float]
) -> dict[str, Any]:
    """What `score` says of one way, kept."""

    def timed() -> dict[str, Any]:
        start = time.perf_counter()
        return {"ndcg": score(), "seconds": time.perf_counter() - start}

    return kept_json(work.step(name, *how), timed, scored_by(**made_of(config)))


def mean_on_dev(model: SentenceTransformer, folder: Path) -> float:
    """nDCG@10 of the dev split."""
    return float(np.mean(list(stages.per_query(model, read_task(folder, "dev")).values())))
