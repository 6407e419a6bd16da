"""Tables: one set of rows, Markdown and console, and the marked places they fill."""

from dataclasses import replace

import pytest
from rich.console import Console

from tercet.cli.app import show
from tercet.errors import UserError
from tercet.evaluation.retrieval import Mean, Result
from tercet.evaluation.significance import Delta
from tercet.report.table import (
    HEADINGS,
    console_table,
    delta_line,
    fill_marked,
    markdown_table,
    model_table,
)


def result(model: str, task: str = "toy", ndcg: float = 0.5) -> Result:
    means = {metric: Mean(0.25, 0.125, 0.375) for metric in HEADINGS}
    means["ndcg@10"] = Mean(ndcg, ndcg - 0.1, ndcg + 0.1)
    return Result(model, task, "test", {}, means, {}, {})


def test_a_row_shows_the_main_metric_with_its_interval() -> None:
    assert markdown_table(model_table([result("BM25"), result("ours", ndcg=0.75)])) == (
        "| Model | nDCG@10 [95 % interval] | MRR@10 | MAP | Recall@100 | P@10 |\n"
        "| :-- | --: | --: | --: | --: | --: |\n"
        "| BM25 | 0.500 [0.400, 0.600] | 0.250 | 0.250 | 0.250 | 0.250 |\n"
        "| ours | 0.750 [0.650, 0.850] | 0.250 | 0.250 | 0.250 | 0.250 |"
    )


def test_a_task_column_appears_only_with_several_tasks() -> None:
    assert "Task" not in model_table([result("a"), result("b")])[0]
    rows = model_table([result("a"), result("a", "other")])
    assert [row["Task"] for row in rows] == ["toy (test)", "other (test)"]


def test_columns_can_be_chosen_and_a_missing_cell_is_empty() -> None:
    table = markdown_table([{"a": "1", "b": "2"}, {"a": "3"}], ["b", "a"])
    assert table.splitlines()[2:] == ["| 2 | 1 |", "|  | 3 |"]


def test_the_console_shows_the_same_cells() -> None:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(console_table(model_table([result("[x] model")]), title="toy"))
    for text in ("[x] model", "0.500 [0.400, 0.600]", "nDCG@10 [95 % interval]", "Recall@100"):
        assert text in captured.get()


def test_a_narrow_terminal_loses_no_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    row = {"Model": "a model of a long name", **{f"Metric {n}": f"0.{n}12345" for n in range(9)}}
    show(console_table([row]))
    shown = capsys.readouterr().out
    assert all(row[f"Metric {n}"] in shown for n in range(9))


def test_a_tiny_p_is_not_printed_as_zero() -> None:
    line = delta_line("a", "b", Delta(0.1, 0.05, 0.15, 0.0001, 50))
    assert line == "b - a: nDCG@10 +0.100 [+0.050, +0.150], p < 0.001, 50 queries"


def test_a_line_tells_the_adjusted_p_and_the_effect() -> None:
    delta = Delta(0.1, 0.05, 0.15, 0.004, 50, 0.256)
    assert delta_line("a", "b", delta, holm=0.012) == (
        "b - a: nDCG@10 +0.100 [+0.050, +0.150], p = 0.004 (Holm 0.012), d = +0.26, 50 queries"
    )
    assert "p = 0.004 (Holm < 0.001)" in delta_line("a", "b", delta, holm=0.0002)


def test_one_query_has_no_interval() -> None:
    line = delta_line("a", "b", Delta(0.1, 0.1, 0.1, 1.0, 1))
    assert line == "b - a: nDCG@10 +0.100, p = 1.000, 1 query"
    (row,) = model_table([replace(result("a"), counts={"queries": 1})])
    assert row["nDCG@10 [95 % interval]"] == "0.500"


def test_filling_twice_changes_nothing_more_and_leaves_the_rest() -> None:
    text = "top\n<!-- t:begin -->\nold\n<!-- t:end -->\n<!-- u:begin --><!-- u:end -->\n"
    once = fill_marked(text, "t", "| new |")
    assert once == (
        "top\n<!-- t:begin -->\n| new |\n<!-- t:end -->\n<!-- u:begin --><!-- u:end -->\n"
    )
    assert fill_marked(once, "t", "| new |") == once


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "t:begin --> stands 0 times"),
        ("<!-- t:begin -->", "t:end --> stands 0 times"),
        ("<!-- t:begin --><!-- t:begin --><!-- t:end -->", "t:begin --> stands 2 times"),
        ("<!-- t:end --><!-- t:begin -->", "t:end --> stands before"),
    ],
)
def test_missing_marks_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        fill_marked(text, "t", "new")
