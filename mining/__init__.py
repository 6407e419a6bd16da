"""Hard negatives: searches, a pure choice, and a file that says why each was kept."""

from tercet.mining.candidates import BM25, MODEL, Space
from tercet.mining.facts import Asked, asked_queries
from tercet.mining.search import top_k
from tercet.mining.select import select
from tercet.mining.stage import mine
from tercet.mining.summary import MinedCounts

__all__ = [
    "BM25",
    "MODEL",
    "Asked",
    "MinedCounts",
    "Space",
    "asked_queries",
    "mine",
    "select",
    "top_k",
]
