"""Objectives: plain functions of tensors, with no knowledge of models or configs."""

from tercet.losses.infonce import Guide, InfoNCE, Relations, info_nce
from tercet.losses.matryoshka import matryoshka
from tercet.losses.tiled import TILE

__all__ = ["TILE", "Guide", "InfoNCE", "Relations", "info_nce", "matryoshka"]
