"""Models that steer a run and are not trained, teachers and guide: loaded for their vectors."""

from collections.abc import Sequence

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from tercet.configs import Config, FrozenModel, ModelConfig
from tercet.data import TrainingSet
from tercet.data.rows import Indices
from tercet.errors import about
from tercet.models import are_stored, load_encoder, on_disk, vectors
from tercet.processes import on_main
from tercet.train.inputs import GUIDE, TEACHER, model_paths
from tercet.train.objective import GuideVectors
from tercet.train.teacher import Known, SomeVectors, Teacher


def refuse_absent(config: Config) -> None:
    """Raise UserError for a teacher or guide that is not on the disk, before anything is read."""
    for key, path in model_paths(config):
        if key in (TEACHER, GUIDE):
            on_disk(path, key)


def load_teacher(config: Config, data: TrainingSet, device: torch.device) -> Teacher | None:
    """The vectors of all teachers, from the store where they are there; all processes call it.

    Of the documents only those that the run can draw are encoded, unless all are stored already.
    """
    sides: tuple[list[Known], list[Known]] = ([], [])
    drawn = _drawn(config, data)
    for teacher in config.distil.teacher:
        model = _loaded(teacher, TEACHER, device)
        with about(f"{TEACHER}: {teacher.path}"):
            sides[0].append(vectors(model, data.queries.texts, "query", title="teacher: queries"))
            sides[1].append(_documents(model, data.documents.texts, drawn))
    average = config.distil.combine == "average"
    return Teacher(*sides, average) if config.distil.teacher else None


def load_guide(config: Config, data: TrainingSet, device: torch.device) -> GuideVectors | None:
    """Its vectors of all texts, from the store where they are there; all processes call it."""
    guide = config.loss.false_negatives.guide
    if guide is None:
        return None
    model = _loaded(guide, GUIDE, device)
    with about(f"{GUIDE}: {guide.path}"):
        return GuideVectors(
            vectors(model, data.queries.texts, "query", title="guide: queries"),
            vectors(model, data.documents.texts, "document", title="guide: documents"),
        )


def _loaded(settings: FrozenModel, where: str, device: torch.device) -> SentenceTransformer:
    return load_encoder(ModelConfig(**settings.model_dump()), where, fetch=False).to(device)


def _drawn(config: Config, data: TrainingSet) -> Indices:
    """Positions of the documents that batches of this run can hold."""
    if not config.distil.needs_pairs or config.mining.refresh_every is not None:
        return np.arange(len(data.documents))
    return np.unique(np.concatenate([data.positives.values, data.negatives.values]))


def _documents(model: SentenceTransformer, texts: Sequence[str], drawn: Indices) -> Known:
    title = "teacher: documents"
    if len(drawn) == len(texts) or on_main(lambda: are_stored(model, texts, "document")):
        return vectors(model, texts, "document", title=title)
    some = vectors(model, [texts[int(i)] for i in drawn], "document", title=title)
    places = np.full(len(texts), -1)
    places[drawn] = np.arange(len(drawn))
    return SomeVectors(some, places)
