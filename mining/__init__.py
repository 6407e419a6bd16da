"""Hard negatives: an exact search, a pure choice, and a file that says why each was kept."""

from tercet.mining.mine import MinedCounts, mine
from tercet.mining.search import top_k
from tercet.mining.select import Selection, select

__all__ = ["MinedCounts", "Selection", "mine", "select", "top_k"]
