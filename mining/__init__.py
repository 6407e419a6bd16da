"""Hard negatives: an exact search, a pure choice, and a file that says why each was kept."""

from tercet.mining.ann import AnnSettings, ann_top_k
from tercet.mining.fuse import reciprocal_rank_fusion
from tercet.mining.lexical import lexical_top_k
from tercet.mining.pairs import pair_scores
from tercet.mining.search import Rows, shared_top_k, top_k
from tercet.mining.select import Selection, select
from tercet.mining.stage import MinedCounts, mine

__all__ = [
    "AnnSettings",
    "MinedCounts",
    "Rows",
    "Selection",
    "ann_top_k",
    "lexical_top_k",
    "mine",
    "pair_scores",
    "reciprocal_rank_fusion",
    "select",
    "shared_top_k",
    "top_k",
]
