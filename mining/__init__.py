"""Hard negatives: an exact search, a pure choice, and a file that says why each was kept."""

from tercet.mining.search import top_k
from tercet.mining.select import Selection, select
from tercet.mining.stage import MinedCounts, mine

__all__ = ["MinedCounts", "Selection", "mine", "select", "top_k"]
