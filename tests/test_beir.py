"""BEIR folders are read as their benchmark reads them, and written so that they read back equal."""

import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tercet.configs import Source
from tercet.data.beir import read_folder, read_task, write_task
from tercet.data.check import check_folder
from tercet.data.read import read_training
from tercet.data.rows import RetrievalTask, Texts
from tercet.errors import UserError

SHARED = Path(
    os.environ.get("TERCET_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared/data"
)

DOCUMENTS = [
    {"_id": "d1", "title": "One", "text": "first text"},
    {"_id": "d2", "title": "", "text": "second text"},
    {"_id": "d3", "title": "Title alone", "text": ""},
    {"_id": 4, "text": "no title", "metadata": {"url": "x"}},
]
QUERIES = [{"_id": "q1", "text": "one"}, {"_id": "q2", "text": "two"}, {"_id": "q3", "text": "3"}]
HEADER = "query-id\tcorpus-id\tscore\n"
QRELS = HEADER + "q2\td2\t1\nq1\td1\t2\nq1\td3\t0\nq1\t4\t-1\nq3\td1\t0\n"


def folder(
    path: Path,
    documents: list[Any] | None = None,
    queries: list[Any] | None = None,
    qrels: str = QRELS,
) -> Path:
    (path / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", documents or DOCUMENTS), ("queries", queries or QUERIES)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (path / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")
    return path


def complaint(path: Path, split: str = "test") -> str:
    with pytest.raises(UserError) as caught:
        read_task(path, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_task_is_read_as_beir_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = read_task(folder(tmp_path / "fruit"))
    assert (task.name, task.split) == ("fruit", "test")
    assert task.documents.ids == ["d3", "d2", "d1", "4"]  # the order trec_eval gives equal scores
    assert task.documents.texts == ["Title alone", "second text", "One first text", "no title"]
    assert (task.unjudged, task.answerless) == (0, 1)
    assert task.queries == Texts(["q1", "q2"], ["one", "two"])
    assert task.qrels == {"q1": {"d1": 2, "d3": 0, "4": 0}, "q2": {"d2": 1}}  # -1 counts as 0
    assert "1 queries of test have no answer" in capsys.readouterr().err


def test_zipped_files_read_the_same(tmp_path: Path) -> None:
    plain, zipped = read_task(folder(tmp_path / "a")), folder(tmp_path / "b" / "a")
    for name in ("corpus.jsonl", "queries.jsonl"):
        (zipped / f"{name}.gz").write_bytes(gzip.compress((zipped / name).read_bytes()))
        (zipped / name).unlink()
    assert read_task(zipped) == plain


def test_what_is_written_reads_back_equal(tmp_path: Path) -> None:
    task = RetrievalTask(
        "out",
        "dev",
        Texts(["b", "a"], ["été  \u2028 text", 'with "quotes"\nand\ttabs']),
        Texts(["q"], ["question?"]),
        {"q": {"a": 2, "b": 0}},
    )
    write_task(task, tmp_path / "out")
    assert read_task(tmp_path / "out", "dev") == task
    write_task(task, tmp_path / "out")  # its own folder may be replaced


def test_another_folder_is_never_replaced(tmp_path: Path) -> None:
    task = read_task(folder(tmp_path / "in"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(UserError, match="is no BEIR folder"):
        write_task(task, tmp_path / "thesis")
    bad = RetrievalTask("x", "test", Texts(["a\tb"], ["t"]), task.queries, {})
    with pytest.raises(UserError, match="holds a tab"):
        write_task(bad, tmp_path / "new")


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    assert "no such folder" in complaint(tmp_path / "absent")
    path = folder(tmp_path / "a")
    (path / "qrels" / "train.tsv").write_text(QRELS)
    assert "the folder's splits: test, train" in complaint(path, "dev")
    (path / "queries.jsonl").unlink()
    assert "no queries.jsonl or queries.jsonl.gz" in complaint(path)
    (path / "corpus.jsonl").unlink()
    assert "no corpus.jsonl or corpus.jsonl.gz" in complaint(path)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"_id": "d9", "texts": "a"}, "corpus.jsonl, line 5: no 'text'; rename 'texts'"),
        ({"_id": "d9", "text": 5}, "corpus.jsonl, line 5: 'text' holds the number 5"),
        ({"_id": "d9", "text": "\ud800"}, "corpus.jsonl, line 5: half of a surrogate pair"),
        ({"id": "d9", "text": "a"}, "corpus.jsonl, line 5: no '_id'"),
        ({"_id": "d1", "text": "new"}, "line 5: _id 'd1' already names a different text"),
        (["d9"], "corpus.jsonl, line 5: holds a list"),
    ],
)
def test_a_mistake_in_the_corpus_is_named(document: Any, expected: str, tmp_path: Path) -> None:
    assert expected in complaint(folder(tmp_path / "a", [*DOCUMENTS, document]))


def test_an_empty_document_is_kept_counted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is trained on, and queries, may not be empty."""
    empty = [{"_id": "e1", "title": "", "text": " "}, {"_id": "e2", "text": None}]
    path = folder(tmp_path / "a", [*DOCUMENTS, *empty])
    task = read_task(path)
    assert [task.documents.texts[task.documents.index[id_]] for id_ in ("e1", "e2")] == ["", ""]
    assert f"{path}: 2 documents without title and text are kept" in capsys.readouterr().err
    write_task(task, tmp_path / "again" / "a")
    assert read_task(tmp_path / "again" / "a").documents == task.documents
    for read in (read_folder, lambda path: read_training([Source(path=str(path), split="test")])):
        with pytest.raises(UserError, match="corpus.jsonl, line 5: the text is empty"):
            read(path)
    (problem,) = check_folder(path).problems
    assert (problem.kind, problem.count) == ("empty text", 2)
    asked = folder(tmp_path / "b", queries=[*QUERIES, {"_id": "q4", "text": " "}])
    assert "queries.jsonl, line 4: the text is empty" in complaint(asked)


def test_a_document_given_twice_is_one(tmp_path: Path) -> None:
    task = read_task(folder(tmp_path / "a", [*DOCUMENTS, DOCUMENTS[0]]))
    assert len(task.documents) == 4


@pytest.mark.parametrize(
    ("qrels", "expected"),
    [
        ("", "holds no judgement"),
        (HEADER, "holds no judgement"),
        ("q1\td1\t1\n", "line 1: a judgement where the header belongs"),
        ("q1 0 d1 1\n", "make them of TREC's four columns by leaving the second out"),
        (HEADER + "q1 d1 1\n", "line 2: 1 cells between tabs"),
        (HEADER + "q1\t0\td1\t1\n", "line 2: 4 cells between tabs"),
        (HEADER + "q1\td1\t1.5\n", "line 2: grade '1.5' is not a whole number"),
        (HEADER + "q1\td1\tyes\n", "line 2: grade 'yes' is not a whole number"),
        (HEADER + f"q1\td1\t{'9' * 5_000}\n", "9' is not a whole number of at most nine digits"),
        (HEADER + "q1\td1\t1\nq1\td1\t2\n", "line 3: query 'q1' and document 'd1' were judged 1"),
        (HEADER + "q1\td1\t1\nqx\td1\t1\nqx\td2\t1\n", "line 3: query-id 'qx' is in no text file"),
        (HEADER + "q1\td1\t1\nqx\td1\t1\nqx\td2\t1\n", "(2 such lines)"),
        (HEADER + "q1\tdx\t1\n", "line 2: corpus-id 'dx' is in no text file (1 such lines)"),
        (HEADER + "q1\td1\t0\n", "no query of split 'test' has a document of grade 1"),
    ],
)
def test_a_mistake_in_the_judgements_is_named(qrels: str, expected: str, tmp_path: Path) -> None:
    assert expected in complaint(folder(tmp_path / "a", qrels=qrels))


@pytest.mark.parametrize("name", ["cranfield", "scifact", "stackfaq", "code_nl2bash"])
def test_real_folders_count_as_their_source_says(name: str) -> None:
    check_against_source(name)


def test_a_corpus_of_58_698_documents_is_read_in_seconds() -> None:
    started = time.monotonic()
    check_against_source("debian_desc")
    assert time.monotonic() - started < 20  # about one second on an idle machine


def check_against_source(name: str) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs the shared test data (TERCET_SHARED_DATA), {path} is absent")
    source = (path / "SOURCE.md").read_text(encoding="utf-8")
    counts = json.loads(source.split("```json")[1].split("```")[0])
    for split, expected in counts["qrels"].items():
        task = read_task(path, split)
        grades = [grade for judged in task.qrels.values() for grade in judged.values()]
        assert len(task.documents) == counts["docs"]
        assert len(task.queries) == len(task.qrels) == expected["queries_with_positive"]
        assert len(grades) == expected["rows"]
        assert sum(grade > 0 for grade in grades) == expected["positive"]
