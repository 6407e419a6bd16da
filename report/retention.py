"""What students keep of their teacher: a table, and quality against speed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tercet.files import whole_file
from tercet.models.quantise import vector_bytes
from tercet.report.table import Row, percent


def retention_table(found: Mapping[str, Any]) -> list[Row]:
    """A row per variant of what `evaluation.retention` found.

    Size and speed are those of the model that reads queries, documents per second of the other.
    """
    return [_row(variant, found) for variant in found["variants"]]


def retention_note(found: Mapping[str, Any]) -> str:
    """What has to be known to read the table."""
    return (
        f"{found['task']}: {found['queries']:,} queries, {found['documents']:,} documents. "
        "Shares of and differences from the teacher with their 95 % intervals over queries. "
        "Documents per second of the model that builds the index, all else of the one that reads "
        "queries."
    )


def share_cell(found: Mapping[str, Any]) -> str:
    """The share of the teacher's score with its interval, from what `evaluation.retention` found.

    >>> share_cell({"share": 0.987, "share_low": 0.9702, "share_high": 1.0031})
    '98.7% [97.0%, 100.3%]'
    """
    share, low, high = (found[key] for key in ("share", "share_low", "share_high"))
    known = percent(share)
    return known if share is None or low == high else f"{known} [{percent(low)}, {percent(high)}]"


def _row(variant: Mapping[str, Any], found: Mapping[str, Any]) -> Row:
    small, large = variant["queries"], variant["documents"]
    size, speed = found["sizes"][small], found["speed"][small]
    width = variant["dims"] or found["sizes"][large]["dims"]
    delta = variant["against_teacher"]
    return {
        "Variant": variant["name"],
        "nDCG@10": f"{variant['mean']:.3f} [{variant['low']:.3f}, {variant['high']:.3f}]",
        "Of the teacher": share_cell(variant),
        "Difference": f"{delta['mean']:+.3f} [{delta['low']:+.3f}, {delta['high']:+.3f}]",
        "Parameters": f"{size['parameters']:,}",
        "MB": f"{size['megabytes']:.1f}",
        "Bytes / document": f"{vector_bytes('int8' if variant['int8'] else 'float32', width):,}",
        "Documents / s": f"{found['speed'][large]['documents_per_second']:,.0f}",
        "Queries / s": f"{speed['queries_per_second']:,.0f}",
        "p50": f"{speed['p50_ms']:.2f} ms",
    }


def retention_plot(found: Mapping[str, Any], path: Path) -> None:
    """Quality with its interval against queries per second, as SVG."""
    from matplotlib.figure import Figure  # takes a while to import

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for variant in found["variants"]:
        x = found["speed"][variant["queries"]]["queries_per_second"]
        y, low, high = (variant[key] for key in ("mean", "low", "high"))
        axes.errorbar(x, y, yerr=[[y - low], [high - y]], fmt="o", capsize=2, label=variant["name"])
    axes.set(xscale="log", xlabel="queries per second", ylabel="nDCG@10", title=found["task"])
    axes.legend(fontsize="x-small")
    with whole_file(path) as partial:
        figure.savefig(partial, format="svg", metadata={"Date": None})
