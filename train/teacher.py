"""Teachers: their vectors of every text, looked up batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tercet.configs import Config
from tercet.data.rows import Indices
from tercet.errors import UserError
from tercet.models import Vectors, add_dense
from tercet.progress import say


@dataclass(frozen=True)
class SomeVectors:
    """Vectors of some of the texts, by the positions of all."""

    vectors: Vectors
    places: Indices  # (N,) of each text: its row; -1 for one that no batch draws

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.places), self.vectors.shape[1]

    def __getitem__(self, rows: Indices) -> NDArray[np.float32]:
        return self.vectors[self.places[rows]]


Known = Vectors | SomeVectors


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
