"""Teachers: vectors of every text, computed once, looked up batch by batch."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tercet.configs import Config, DistilConfig, ModelConfig
from tercet.data import TrainingSet
from tercet.data.rows import Indices
from tercet.errors import UserError
from tercet.models import Vectors, add_dense, load_encoder, on_disk, vectors

WHERE = "distil.teacher"


class Teacher:
    """One opinion of every query and document of the training set, out of one model or several."""

    def __init__(
        self, queries: Sequence[Vectors], documents: Sequence[Vectors], average: bool
    ) -> None:
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
    for path in config.distil.teacher:
        on_disk(path, WHERE)


def load_teacher(config: Config, data: TrainingSet, device: torch.device) -> Teacher | None:
    """The vectors of all teachers, from the store where they are there; all processes call it."""
    settings, trust = config.distil, config.model.trust_remote_code
    sides: tuple[list[Vectors], list[Vectors]] = ([], [])
    for path in settings.teacher:
        model = load_encoder(ModelConfig(path=path, trust_remote_code=trust), WHERE).to(device)
        sides[0].append(vectors(model, data.queries.texts, "query", title="teacher: queries"))
        sides[1].append(
            vectors(model, data.documents.texts, "document", title="teacher: documents")
        )
    return Teacher(*sides, settings.combine == "average") if settings.teacher else None


def add_projection(encoder: SentenceTransformer, width: int, settings: DistilConfig) -> None:
    """Let the encoder end in vectors of the teacher's width.

    The layer begins as a map that keeps lengths, and changes nothing if the widths are equal.
    Raises UserError if vectors of different widths would have to be compared.
    """
    own, wanted = encoder.get_embedding_dimension() or 0, settings.projection
    if wanted is False and own != width and (settings.align or settings.relational):
        raise UserError(
            f"distil.projection: false, but the model has {own} dimensions and the teacher "
            f"{width}; align and relational compare them one by one"
        )
    if wanted or (wanted is None and own != width):
        generator = torch.Generator().manual_seed(0)
        weight = torch.empty(width, own)
        torch.nn.init.eye_(weight) if own == width else torch.nn.init.orthogonal_(
            weight, generator=generator
        )
        add_dense(encoder, weight)
