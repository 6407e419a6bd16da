"""What a person reads: tables made from results, never typed."""

from tercet.report.merging import curve_table
from tercet.report.mining import mining_page
from tercet.report.plan import forecast_table, predicted_table
from tercet.report.size import size_line, size_table
from tercet.report.store import store_table
from tercet.report.table import (
    console_table,
    delta_line,
    fill_marked,
    leak_line,
    markdown_table,
    model_table,
    prompt_lines,
)

__all__ = [
    "console_table",
    "curve_table",
    "delta_line",
    "fill_marked",
    "forecast_table",
    "leak_line",
    "markdown_table",
    "mining_page",
    "model_table",
    "predicted_table",
    "prompt_lines",
    "size_line",
    "size_table",
    "store_table",
]
