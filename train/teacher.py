"""Teachers: vectors of every text, computed once, looked up batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tercet.configs import Config, ModelConfig
from tercet.data import TrainingSet
from tercet.data.rows import Indices
from tercet.errors import UserError
from tercet.models import Vectors, add_dense, are_stored, load_encoder, on_disk, vectors
from tercet.processes import on_main
from tercet.progress import say

WHERE = "distil.teacher"


@dataclass(frozen=True)
class _Some:
    """Vectors of some of the texts, by the positions of all."""

    vectors: Vectors
    places: Indices  # (N,) of each text: its row; -1 for one that no batch draws

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.places), self.vectors.shape[1]

    def __getitem__(self, rows: Indices) -> NDArray[np.float32]:
        return self.vectors[self.places[rows]]


Known = Vectors | _Some


class Teacher:
    """One opinion of every query and document of the training set, out of one model or several."""

    def __init__(self, queries: Sequence[Known], documents: Sequence[Known], average: bool) -> None:
        self._sides = queries, documents
        self._average = average
        widths = [v.shape[1] for v in documents]
        if average and len(set(widths)) > 1:
            raise UserError(
                f"distil.combine: average needs teachers of one width, these have {widths}; "
                "use concatenate"
            )
        self.width = widths[0] if average else sum(widths)

    def of(
        self, queries: Indices, documents: Indices, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """(Q, T) and (D, T) unit vectors of texts given by their positions in the data."""
        wanted = zip(self._sides, (queries, documents), strict=True)
        found = [self._combined([v[rows] for v in side]).to(device) for side, rows in wanted]
        return found[0], found[1]

    def _combined(self, vectors: Sequence[NDArray[np.float32]]) -> Tensor:
        units = [F.normalize(torch.from_numpy(np.ascontiguousarray(v)), dim=1) for v in vectors]
        together = torch.stack(units).mean(dim=0) if self._average else torch.cat(units, dim=1)
        return F.normalize(together, dim=1)


def resolve_teachers(config: Config) -> None:
    """Raise UserError for a teacher that is not on the disk, before anything is read."""
    for teacher in config.distil.teacher:
        on_disk(teacher.path, WHERE)


def load_teacher(config: Config, data: TrainingSet, device: torch.device) -> Teacher | None:
    """The vectors of all teachers, from the store where they are there; all processes call it.

    Of the documents only those that the run can draw are encoded, unless all are stored already.
    """
    sides: tuple[list[Known], list[Known]] = ([], [])
    drawn = _drawn(config, data)
    for teacher in config.distil.teacher:
        settings = ModelConfig(**teacher.model_dump())
        model = load_encoder(settings, WHERE, fetch=False).to(device)
        sides[0].append(vectors(model, data.queries.texts, "query", title="teacher: queries"))
        sides[1].append(_documents(model, data.documents.texts, drawn))
    average = config.distil.combine == "average"
    return Teacher(*sides, average) if config.distil.teacher else None


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
    return _Some(some, places)


def add_projection(encoder: SentenceTransformer, width: int, config: Config) -> None:
    """Let the encoder end in vectors of the teacher's width, if it is asked to or align needs it.

    The layer begins as a map that keeps lengths, and changes nothing if the widths are equal.
    Raises UserError if vectors of different widths would have to be compared, or if the layer
    would undo the width that a student was narrowed to.
    """
    own, settings = encoder.get_embedding_dimension() or 0, config.distil
    needed, wanted = bool(settings.align) and own != width, settings.projection
    if wanted is False and needed:
        raise UserError(
            f"distil.projection: false, but the model has {own} dimensions and the teacher "
            f"{width}; align compares them one by one, relational does without (distil.align=0)"
        )
    if wanted is None and needed and config.student.dims is not None:
        raise UserError(
            f"student.dims: {own}, but align needs the teacher's {width} dimensions, to which a "
            "projection would widen the student again; learn by relational (distil.align=0), or "
            "say distil.projection=true"
        )
    if wanted or (wanted is None and needed):
        say(f"the student ends in a projection of its {own} dimensions to the teacher's {width}")
        generator = torch.Generator().manual_seed(0)
        weight = torch.empty(width, own)
        torch.nn.init.eye_(weight) if own == width else torch.nn.init.orthogonal_(
            weight, generator=generator
        )
        add_dense(encoder, weight)
