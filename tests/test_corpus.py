"""Texts without labels, out of any kind of file."""

from pathlib import Path

import pytest

from tercet.data import read_corpus
from tercet.errors import UserError
from tests.conftest import write_lines


def test_texts_of_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n two  \nthree", encoding="utf-8")
    write_lines(tmp_path / "b.jsonl", [{"_id": 1, "title": "T", "text": "four"}, {"text": "five"}])
    (tmp_path / "c.csv").write_text('text,other\n"six, seven",x\n', encoding="utf-8")
    folder = tmp_path / "beir"
    folder.mkdir()
    write_lines(folder / "corpus.jsonl", [{"_id": "d", "title": "", "text": "eight"}])
    paths = [tmp_path / name for name in ("a.txt", "b.jsonl", "c.csv", "beir")]
    found = ["one", " two  ", "three", "T four", "five", "six, seven", "eight"]
    assert read_corpus(paths) == found
    write_lines(folder / "queries.jsonl", [{"_id": "q", "text": "eight?"}])
    assert read_corpus([folder], "queries") == ["eight?"]


def test_what_holds_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(UserError, match="blank.txt: no text in it"):
        read_corpus([tmp_path / "blank.txt"])
    write_lines(tmp_path / "other.jsonl", [{"text": "a"}, {"body": "b"}])
    with pytest.raises(UserError, match="other.jsonl, line 2: no text in a column 'text'.*'body'"):
        read_corpus([tmp_path / "other.jsonl"])
    with pytest.raises(UserError, match="no such file"):
        read_corpus([tmp_path / "absent.jsonl"])
