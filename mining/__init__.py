"""Hard negatives: searches, a pure choice, and a file that says why each was kept."""

from tercet.mining.ann import AnnSettings, ann_top_k
from tercet.mining.candidates import BM25, MODEL, Space
from tercet.mining.facts import Asked, asked_queries, searchable
from tercet.mining.fuse import reciprocal_rank_fusion
from tercet.mining.lexical import lexical_top_k
from tercet.mining.pairs import pair_scores
from tercet.mining.search import Rows, shared_top_k, top_k
from tercet.mining.select import select
from tercet.mining.stage import mine
from tercet.mining.summary import MinedCounts

__all__ = [
    "BM25",
    "MODEL",
    "AnnSettings",
    "Asked",
    "MinedCounts",
    "Rows",
    "Space",
    "ann_top_k",
    "asked_queries",
    "lexical_top_k",
    "mine",
    "pair_scores",
    "reciprocal_rank_fusion",
    "searchable",
    "select",
    "shared_top_k",
    "top_k",
]
