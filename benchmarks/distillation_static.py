"""How the static student of benchmarks.distillation is made and learns, chosen on dev queries."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from benchmarks.distillation_work import CODE, Work, common, encoder, per_query
from benchmarks.kept import kept_json, made_of, scored_by
from tercet import stages
from tercet.configs import Config, load
from tercet.data import read_task
from tercet.models import EMBEDDED, Corpus
from tercet.models.static import static_student, token_vectors
from tercet.models.vocabulary import token_counts
from tercet.train.rows import read_rows

RECIPE = "student_static"
CENTRES, SIFS = (True, False), (0.0, 1e-4, 1e-3, 1e-2)  # of the table, chosen first
RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # of learning, chosen after
TRIAL_EPOCHS = 4
LABELLED = (  # it may learn the labels too, if that is better on dev
    "distil.infonce=1",
    "loss.directions=[query_to_document,document_to_query]",
)
Scores = dict[tuple[str, ...], float]  # what the recipe is told -> nDCG@10 on dev


@dataclass(frozen=True)
class Choice:
    """What was tried on the dev queries; the best of each is taken."""

    tables: Scores  # before training
    trials: Scores  # after a few epochs of the best table

    @property
    def settings(self) -> list[str]:
        """What the recipe is told."""
        return [word for scores in (self.tables, self.trials) for word in best(scores)]


def best(scores: Scores) -> tuple[str, ...]:
    return max(scores, key=lambda how: scores[how])


def choose(work: Work, name: str) -> Choice:
    """Score every table, then every rate with the best one, then the labels with the best rate."""
    dev = work.data(CODE)
    tables: Scores = {}
    for centre in CENTRES[:1] if work.small else CENTRES:
        for sif in SIFS[-2:] if work.small else SIFS:
            how = (f"student.centre={str(centre).lower()}", f"student.sif={sif}")
            made_by = scored_by(**made_of(load(RECIPE, [*common(dev, work.run(name)), *how])))
            tables[how] = kept_json(
                work.step(name, *how),
                lambda centre=centre, sif=sif: {"ndcg": untrained(dev, centre, sif)},
                made_by,
            )["ndcg"]
    trials: Scores = {}
    table = best(tables)

    def attempt(*how: str) -> None:
        trials[how] = trial(work, name, [*common(dev, work.folder / "trial"), *table], how)

    for rate in RATES[-2:] if work.small else RATES:
        attempt(f"train.learning_rate={rate}")
    attempt(*best(trials), *LABELLED)
    return Choice(tables, trials)


def static_config(work: Work, name: str, choice: Choice) -> Config:
    """The whole training; the best step is kept, for twenty epochs may be too many."""
    dev = work.data(CODE)
    watched = f"evaluation.dev={dev}"
    return load(RECIPE, [*common(dev, work.run(name)), *choice.settings, watched])


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


def trial(work: Work, name: str, words: Sequence[str], how: Sequence[str]) -> float:
    """nDCG@10 on dev after a few epochs."""
    config = load(RECIPE, [*words, *how, f"train.epochs={TRIAL_EPOCHS}"])

    def score() -> dict[str, Any]:
        shutil.rmtree(config.output, ignore_errors=True)
        model = stages.distil(config)
        return {"ndcg": mean_on_dev(encoder(str(model)), work.data(CODE))}

    return kept_json(work.step(name, *how), score, scored_by(**made_of(config)))["ndcg"]


def mean_on_dev(model: SentenceTransformer, folder: Path) -> float:
    """nDCG@10 of the dev split."""
    return float(np.mean(list(per_query(model, read_task(folder, "dev")).values())))
