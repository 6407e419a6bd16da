"""The check counts what a run would read, finds every problem in one reading, and always ends."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tercet.configs import Columns, Source
from tercet.data.beir import read_task
from tercet.data.check import (
    FolderReport,
    Overlap,
    Report,
    Split,
    check,
    check_folder,
    check_sources,
    overlap,
)
from tercet.data.read import read_training
from tercet.data.rows import RetrievalTask, Texts
from tercet.data.tables import render
from tercet.errors import UserError


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def source(path: Path, **columns: str) -> Source:
    return Source(path=str(path), columns=Columns(**columns))


def words() -> PreTrainedTokenizerFast:
    """One token per word, one more at each end."""
    inner = Tokenizer(WordLevel({"?": 0, "[S]": 1, "[E]": 2}, unk_token="?"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(
        single="[S] $A [E]", special_tokens=[("[S]", 1), ("[E]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?", pad_token="?")


def shown(report: Report | FolderReport) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(report))
    return console.export_text()


ROWS = [
    {"query": "a b", "positive": "one two three"},
    {"query": "A  b", "positive": "one two three"},  # a duplicate after normalising
    {"query": "c", "positive": "four"},
]
TASK = RetrievalTask(
    "held",
    "test",
    Texts(["x", "y", "z"], ["FOUR", "nowhere", "one two three"]),
    Texts(["p", "q"], ["C", "unseen"]),
    {"p": {"x": 1, "z": 0}, "q": {"y": 2}},
)


def test_a_clean_file_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"id": i, **row} for i, row in enumerate(ROWS)])
    rows = read_training([source(path, query_id="id")])
    report = check(rows, words(), 4, [TASK])
    assert (report.rows, report.queries, report.documents) == (3, 3, 2)
    assert (report.duplicate_rows, report.equal_queries, report.equal_documents) == (1, 1, 0)
    queries, documents = report.lengths["queries"], report.lengths["documents"]
    assert (queries.p50, queries.longest, queries.too_long) == (4, 4, 0)
    assert (documents.p50, documents.longest, documents.too_long) == (3, 5, 1)
    assert not report.problems
    assert "No problems found" in shown(report)
    assert "over 4: will be cut" in shown(report)


def test_overlap_counts_held_out_queries_and_answers_only(tmp_path: Path) -> None:
    rows = read_training([source(write(tmp_path / "a.jsonl", ROWS))])
    found = overlap(rows, TASK)
    # "C" is asked in training, "FOUR" answers there; "one two three" answers no held-out query
    assert (found.queries, found.of_queries) == (1, 2)
    assert (found.documents, found.of_documents) == (1, 2)
    assert found.share == 0.5


def test_a_shared_corpus_is_no_overlap(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    (folder / "qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", [{"_id": i, "text": f"text {i}"} for i in "abc"])
    write(folder / "queries.jsonl", [{"_id": i, "text": f"query {i}"} for i in "12"])
    header = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "train.tsv").write_text(header + "1\ta\t1\n")
    (folder / "qrels" / "test.tsv").write_text(header + "2\tb\t1\n")
    rows = read_training([Source(path=str(folder))])
    assert overlap(rows, read_task(folder)).share == 0.0


def test_a_folder_shows_what_its_splits_share_as_training_would_find_it(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    (folder / "qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", [{"_id": i, "text": f"text {i.lower()}"} for i in "abcA"])
    write(folder / "queries.jsonl", [{"_id": i, "text": f"query {i}"} for i in "1234"])
    header = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "train.tsv").write_text(header + "1\ta\t1\n1\tc\t0\n4\tc\t0\n")
    (folder / "qrels" / "dev.tsv").write_text(header + "2\tc\t1\n4\tc\t1\n")
    (folder / "qrels" / "test.tsv").write_text(header + "1\tA\t1\n2\tb\t1\n3\ta\t0\n")
    report = check_folder(folder)
    # train asks 1 and answers it with a; 4 and c are judged there but not trained on
    assert report.overlaps == (Overlap("b/dev", 0, 0, 2, 1), Overlap("b/test", 1, 1, 2, 2))
    rows = read_training([Source(path=str(folder))])
    assert report.overlaps == tuple(overlap(rows, read_task(folder, s)) for s in ("dev", "test"))
    assert "1 of 2 (50.00%)" in shown(report)
    (folder / "qrels" / "train.tsv").unlink()
    assert check_folder(folder).overlaps == ()


def test_every_problem_of_a_file_is_found_in_one_reading(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    lines = [
        '{"query": "good", "positive": "fine"}',
        "{broken",
        '{"query": "", "positive": "x"}',
        '{"query": null, "positive": "x"}',
        '{"query": 5, "positive": "x"}',
        '{"query": "other", "positive": []}',
        '{"question": "a", "positive": "x"}',
        '{"query": "a", "positive": "x", "extra": 1}',
        '{"query": "last", "positive": "kept"}',
    ]
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    report = check_sources([source(path), source(tmp_path / "absent.csv")])
    assert report.rows == 2
    assert {problem.kind: problem.count for problem in report.problems} == {
        "malformed JSON": 1,
        "empty text": 2,
        "not a text": 1,
        "no positive": 1,
        "missing column": 1,
        "unknown column": 1,
        "not UTF-8": 1,
        "missing file": 1,
    }
    first = {problem.kind: problem.first for problem in report.problems}
    assert "line 3" in first["empty text"]
    assert "bad.jsonl, line 10" in first["not UTF-8"]
    assert first["missing file"] in shown(report)


def test_check_mode_and_reading_complain_in_the_same_words(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"query": "a", "positive": 1}])
    with pytest.raises(UserError) as caught:
        read_training([source(path)])
    assert check_sources([source(path)]).problems[0].first == str(caught.value)


def test_every_problem_of_a_folder_is_found_in_one_reading(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": "a", "text": "A [red] text"}, {"_id": "a", "text": "B"}]
    documents += [{"_id": "b", "text": ""}, {"_id": "c", "text": ""}, {"_id": "d", "text": "C"}]
    write(folder / "corpus.jsonl", documents)
    write(folder / "queries.jsonl", [{"_id": "1", "text": "x"}, {"_id": "2", "text": "X "}])
    header = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "dev.tsv").write_text(header + "1\ta\tx\n1\tq\t1\n1\tr\t1\n9\ta\t1\n")
    (folder / "qrels" / "test.tsv").write_text(header + "1\ta\t1\n2\td\t0\n")
    report = check_folder(folder, words(), 100)
    assert (report.queries, report.documents) == (2, 2)
    assert (report.equal_queries, report.equal_documents) == (1, 0)
    assert report.splits == {"dev": Split(0, 0, 0), "test": Split(2, 2, 1)}
    assert {problem.kind: problem.count for problem in report.problems} == {
        "duplicate id": 1,
        "empty text": 2,
        "malformed judgement": 1,
        "dangling corpus id": 2,
        "dangling query id": 1,
    }
    assert "without an answer" in shown(report)


def test_a_folder_that_is_not_there_still_gives_a_report(tmp_path: Path) -> None:
    report = check_folder(tmp_path / "absent")
    assert [problem.kind for problem in report.problems] == ["missing file"]
    (tmp_path / "empty").mkdir()
    kinds = [(p.kind, p.count) for p in check_folder(tmp_path / "empty").problems]
    assert kinds == [("missing file", 3)]  # corpus, queries, qrels


def test_nothing_readable_leaves_empty_counts_not_a_crash(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [])
    report = check_sources([source(path)], words(), 8, [TASK])
    assert (report.rows, report.lengths) == (0, {})
    assert report.overlaps[0].share == 0.0
    assert isinstance(shown(report), str)
