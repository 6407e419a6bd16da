"""Objectives: plain functions of tensors, with no knowledge of models or configs."""

from tercet.losses.alignment import align
from tercet.losses.gram import relational
from tercet.losses.infonce import Guide, InfoNCE, Relations, info_nce
from tercet.losses.matryoshka import matryoshka
from tercet.losses.ranking import listwise_kl, margin_mse
from tercet.losses.teacher import check_scores
from tercet.losses.tiled import TILE

__all__ = [
    "TILE",
    "Guide",
    "InfoNCE",
    "Relations",
    "align",
    "check_scores",
    "info_nce",
    "listwise_kl",
    "margin_mse",
    "matryoshka",
    "relational",
]
