"""A merge curve as a table."""

from collections.abc import Mapping
from typing import Any

from tercet.report.table import Row, p_value


def curve_table(facts: Mapping[str, Any]) -> list[Row]:
    """A row per share of the tuned model, from what `Curve.facts` gives; the chosen one is marked.

    Each collection's nDCG@10 stands with its difference from the base and the p value of that.
    """
    rows = []
    for point in facts["points"]:
        chosen = point["share"] == facts["chosen"]
        row = {
            "Share of the tuned model": f"{point['share']:.2f}" + (" (chosen)" if chosen else "")
        }
        for task, found in point["tasks"].items():
            heading = f"{task} (decides)" if task == facts["dev"] else task
            row[heading] = f"{found['mean']:.3f}" + _difference(found["against_base"], point)
        rows.append(row)
    return rows


def _difference(delta: Mapping[str, float], point: Mapping[str, Any]) -> str:
    if point["share"] == 0:
        return ""
    return f" ({delta['mean']:+.3f}, {p_value(delta['p'])})"
