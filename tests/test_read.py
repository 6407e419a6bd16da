"""Training files of every format are read alike, and every mistake in one is named in a line."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tercet.configs import Columns, Source
from tercet.data.mined import with_mined
from tercet.data.read import read_training
from tercet.data.rows import TrainingSet, text_hash
from tercet.errors import UserError

ROWS = [
    {"query": "red fruit", "positive": "apple"},
    {"query": "yellow fruit", "positive": "banana"},
    {"query": "round fruit", "positive": "apple"},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, **settings: Any) -> TrainingSet:
    columns = Columns(**settings.pop("columns", {}))
    return read_training([Source(path=str(path), columns=columns, **settings)])


def complaint(path: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def write_as(kind: str, folder: Path) -> Path:
    path = folder / f"pairs.{kind}"
    if kind == "jsonl":
        return write(path, ROWS)
    if kind == "jsonl.gz":
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in ROWS)
    elif kind == "csv":
        lines = [",".join(row.values()) for row in ROWS]
        path.write_text("\ufeffquery,positive\n" + "\n".join(lines), encoding="utf-8")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "dataset":
        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    else:
        rows = datasets.Dataset.from_list(ROWS)
        datasets.DatasetDict({"train": rows, "other": rows.select([0])}).save_to_disk(str(path))
    return path


KINDS = ["jsonl", "jsonl.gz", "csv", "parquet", "dataset", "datasetdict"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_format_changes_nothing(kind: str, tmp_path: Path) -> None:
    rows = read(write_as(kind, tmp_path))
    assert rows.queries.texts == ["red fruit", "yellow fruit", "round fruit"]
    assert rows.documents.texts == ["apple", "banana"]
    assert rows.documents.ids == [text_hash("apple"), text_hash("banana")]
    assert rows.row_query.tolist() == [0, 1, 2]
    assert [rows.positives[r].tolist() for r in range(3)] == [[0], [1], [0]]
    assert rows.source_offsets.tolist() == [0, 3]


def test_the_split_of_a_saved_dataset_is_obeyed(tmp_path: Path) -> None:
    path = write_as("datasetdict", tmp_path)
    assert len(read(path, split="other")) == 1
    assert "it has 'train', 'other'" in complaint(path, split="dev")


def test_lists_ids_and_negatives_are_kept_in_order(tmp_path: Path) -> None:
    row = {"q": "fruit", "p": ["apple", "pear"], "n": ["stone", "apple pie"]}
    row |= {"qid": 7, "pid": ["a", "b"], "nid": ["s", "p"], "score": 1.0}
    columns = {"query": "q", "positive": "p", "negative": "n"}
    columns |= {"query_id": "qid", "positive_id": "pid", "negative_id": "nid"}
    rows = read(write(tmp_path / "a.jsonl", [row]), columns=columns, ignore=("score",))
    assert rows.queries.ids == ["7"]
    assert rows.documents.ids == ["a", "b", "s", "p"]
    assert rows.positives[0].tolist() == [0, 1]
    assert rows.negatives[0].tolist() == [2, 3]


def test_sources_follow_one_another_and_share_texts(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.jsonl", ROWS), write(tmp_path / "2.jsonl", ROWS[:1])
    rows = read_training([Source(path=str(one)), Source(path=str(two))])
    assert rows.source_offsets.tolist() == [0, 3, 4]
    assert rows.row_query.tolist() == [0, 1, 2, 0]
    assert len(rows.documents) == 2


def test_blank_lines_are_passed_over_but_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"query": "a b", "positive": "c"}\n\n{"query": 3, "positive": "d"}\n')
    assert "line 4, column 'query': the number 3" in complaint(path)


@pytest.mark.parametrize("kind", ["dataset", "datasetdict"])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_saved_dataset_reads_no_file_outside_its_folder(
    kind: str, absolute: bool, tmp_path: Path
) -> None:
    path = write_as(kind, tmp_path)
    folder = path / "train" if kind == "datasetdict" else path
    file = next(folder.glob("*.arrow"))
    outside = file.rename(tmp_path / "outside.arrow")
    state = json.loads((folder / "state.json").read_text())
    way = outside if absolute else Path(*[".."] * len(folder.relative_to(tmp_path).parts))
    state["_data_files"] = [{"filename": str(way if absolute else way / outside.name)}]
    (folder / "state.json").write_text(json.dumps(state))
    assert len(datasets.load_from_disk(str(folder))) == len(ROWS)  # the library follows it
    assert "its state.json names what is outside its folder" in complaint(path)


def test_nor_has_it_splits_elsewhere(tmp_path: Path) -> None:
    path = write_as("datasetdict", tmp_path)
    (path / "train").rename(tmp_path / "train")
    (path / "dataset_dict.json").write_text('{"splits": ["../train"]}')
    told = complaint(path, split="../train")
    assert "its dataset_dict.json names what is outside its folder: ../train" in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds no rows"),
        ("\n\n", "holds no rows"),
        ('{"query": "a", "positive": "b"}\n{"query": "a",\n', "line 2: not valid JSON"),
        ("[1, 2]\n", "line 1: holds a list, not an object"),
        ('"text"\n', "line 1: holds a text, not an object"),
        ('{"question": "a", "positive": "b"}', "no column 'query'; the columns are 'question'"),
        ('{"question": "a", "positive": "b"}', "is it 'question'? name it in data.train.columns"),
        ('{"query": "a", "positive": "b", "url": "c"}', "column 'url' has no role; add it to"),
        ('{"query": "a", "positive": null}', "line 1, column 'positive': null"),
        ('{"query": " \\t", "positive": "b"}', "line 1, column 'query': an empty text"),
        ('{"query": ["a"], "positive": "b"}', "column 'query': a list where a text is needed"),
        ('{"query": "a", "positive": {"x": 1}}', "column 'positive': an object where"),
        ('{"query": "a", "positive": ["b", 2]}', "column 'positive': the number 2 where"),
        ('{"query": "a", "positive": ["b", ""]}', "column 'positive': an empty text"),
        ('{"query": "a", "positive": true}', "column 'positive': true where a text is needed"),
        ('{"query": "a", "positive": []}', "column 'positive': an empty list"),
        ('{"query": "a \\ud800", "positive": "b"}', "column 'query': half of a surrogate"),
    ],
)
def test_a_mistake_in_a_line_is_named(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(text, encoding="utf-8")
    assert expected in complaint(path)


def test_an_empty_cell_among_filled_ones_is_named_by_its_line(tmp_path: Path) -> None:
    rows = [{"query": "", "positive": "a"}, *ROWS]
    assert "line 1, column 'query'" in complaint(write(tmp_path / "a.jsonl", rows))
    rows = [*ROWS, {"query": "", "positive": "a"}]
    assert "line 4, column 'query'" in complaint(write(tmp_path / "b.jsonl", rows))


def test_a_column_empty_throughout_is_said_once(tmp_path: Path) -> None:
    rows = [{"query": "a", "positive": None}, {"query": "b", "positive": ""}]
    path = write(tmp_path / "a.jsonl", rows)
    assert "column 'positive' is empty in all 2 rows" in complaint(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "no such file" in complaint(tmp_path / "absent.jsonl")
    assert "no such file" in complaint(tmp_path / "absent", format="parquet")


def test_no_source_at_all_is_an_error() -> None:
    with pytest.raises(UserError, match="data.train names no file"):
        read_training([])


def test_an_ending_without_a_format_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.txt", ROWS)
    assert "end it in .jsonl" in complaint(path)
    assert len(read(path, format="jsonl")) == 3
    (tmp_path / "folder").mkdir()
    assert "neither a BEIR folder" in complaint(tmp_path / "folder")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_bytes_that_are_not_utf8_are_named_by_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b'{"query": "a", "positive": "b"}\n{"query": "caf\xe9", "positive": "b"}\n')
    if name == "a.csv":
        path.write_bytes(b"query,positive\ncaf\xe9,b\n")
    assert "line 2: byte" in complaint(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz"])
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    path = write_as(name[2:], tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    assert "read" in complaint(path)
    path.write_bytes(b"not what the name says")
    assert "read" in complaint(path)


def test_a_damaged_dataset_folder_is_named(tmp_path: Path) -> None:
    path = write_as("dataset", tmp_path)
    next(path.glob("*.arrow")).write_bytes(b"no")
    assert "not readable as a saved dataset" in complaint(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("query,positive\na,b\nc\n", "line 3: 1 cells under a header of 2"),
        ("query,positive\na,b,c\n", "line 2: 3 cells under a header of 2"),
        ('query,positive\na,b\n"c,d\ne,f\n', "line 3: damaged CSV"),
        ('query,positive\na,"b"c\n', "line 2: damaged CSV"),
        ("query,query\na,b\n", "line 1: two columns 'query'"),
        ("query,positive\n", "holds no rows"),
        ('query,positive\n"a\nb",c\n ,d\n', "line 4, column 'query': an empty text"),
    ],
)
def test_a_mistake_in_a_csv_file_is_named(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(text, encoding="utf-8")
    assert expected in complaint(path)


def test_parquet_complaints_count_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"query": ["a", "b"], "positive": ["c", None]}), path)
    assert "row 2, column 'positive': null" in complaint(path)


def test_ids_must_match_texts_and_each_other(tmp_path: Path) -> None:
    def one(**row: Any) -> str:
        columns = {"positive_id": "pid"}
        return complaint(write(tmp_path / "a.jsonl", [row]), columns=columns)

    assert "'pid' has 1 ids for 2 texts" in one(query="a", positive=["b", "c"], pid=["1"])
    assert "'pid': an id must be a text or a whole number" in one(query="a", positive="b", pid=1.5)
    assert "'pid': an id must be" in one(query="a", positive="b", pid=None)
    assert "id '1' already names a different text" in one(
        query="a", positive=["b", "c"], pid=["1", "1"]
    )


def test_an_id_with_two_texts_is_an_error_and_one_text_under_an_id_is_not(tmp_path: Path) -> None:
    rows = [{"id": "1", **ROWS[0]}, {"id": "1", "query": "Red  fruit", "positive": "cherry"}]
    columns = {"query_id": "id"}
    assert len(read(write(tmp_path / "a.jsonl", rows), columns=columns).queries) == 1
    rows.append({"id": "1", **ROWS[1]})
    message = complaint(write(tmp_path / "a.jsonl", rows), columns=columns)
    assert "line 3, column 'id': id '1' already names a different text" in message


def beir(folder: Path, documents: dict[str, str], qrels: dict[str, str]) -> Path:
    (folder / "qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", [{"_id": d, "text": t} for d, t in documents.items()])
    queries = [{"_id": f"q{i}", "text": f"{folder.name} question {i}"} for i in range(4)]
    write(folder / "queries.jsonl", queries)
    for split, lines in qrels.items():
        text = "query-id\tcorpus-id\tscore\n" + lines.replace(" ", "\t")
        (folder / "qrels" / f"{split}.tsv").write_text(text)
    return folder


DOCUMENTS = {"d0": "both", "d1": "train", "d2": "test only", "d3": "nobody's", "d4": "judged 0"}
QRELS = {"train": "q0 d0 1\nq0 d1 2\nq1 d4 0\n", "test": "q2 d0 1\nq2 d2 1\nq3 d4 0\n"}


def test_mining_never_sees_what_only_other_splits_ask_for(tmp_path: Path) -> None:
    rows = read(beir(tmp_path / "b", DOCUMENTS, QRELS))
    assert rows.documents.ids == ["d0", "d1", "d3", "d4"]
    assert rows.queries.ids == ["q0"]  # q1 has no answer, q2 and q3 are not of this split
    assert rows.positives[0].tolist() == [0, 1]


def test_beir_sources_may_use_the_same_ids_for_other_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = beir(tmp_path / "one", DOCUMENTS, QRELS)
    two = beir(tmp_path / "two", DOCUMENTS | {"d1": "another"}, QRELS)
    rows = read_training([Source(path=str(one)), Source(path=str(two))])
    assert rows.queries.ids == ["q0", "two/q0"]
    assert rows.documents.ids == ["d0", "d1", "d3", "d4", "two/d1"]
    assert [rows.positives[r].tolist() for r in range(2)] == [[0, 1], [0, 4]]
    assert "1 ids name other texts" in capsys.readouterr().err


def test_a_beir_split_without_answers_is_refused(tmp_path: Path) -> None:
    path = beir(tmp_path / "b", DOCUMENTS, {"train": "q1 d4 0\n"})
    assert "no query of split 'train' has an answer" in complaint(path)
    assert "the folder's splits: train" in complaint(path, split="dev")


def mined(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def pool(tmp_path: Path) -> TrainingSet:
    rows = [
        {"i": "1", "query": "a", "positive": ["x"], "p": ["x"], "negative": ["z"], "n": ["z"]},
        {"i": "2", "query": "b", "positive": ["y"], "p": ["y"], "negative": [], "n": []},
    ]
    columns = {"query_id": "i", "positive_id": "p", "negative": "negative", "negative_id": "n"}
    return read(write(tmp_path / "pool.jsonl", rows), columns=columns)


def test_mined_negatives_join_a_rows_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"query_id": "1", "negative_ids": ["y", "z", "x"], "round": 1}  # all that is needed
    rows = with_mined(pool(tmp_path), mined(tmp_path / "m.parquet", [row]))
    assert rows.negatives[0].tolist() == [1, 2]  # z was there already, x is a positive
    assert rows.negatives[1].tolist() == []
    said = capsys.readouterr().err
    assert "1 of 2 queries have no mined negatives" in said
    assert "1 mined negatives are known positives" in said


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"query_id": "1", "negative_ids": ["gone"]}, "row 1: document 'gone' is not in"),
        ({"query_id": "9", "negative_ids": ["x"]}, "none of its queries"),
        ({"query_id": "1", "negative_ids": [1]}, "column 'negative_ids': not a list of texts"),
        ({"query_id": "1", "negative_ids": None}, "column 'negative_ids': not a list of texts"),
        ({"query_id": 1, "negative_ids": ["x"]}, "column 'query_id': the number 1"),
        ({"query_id": "1", "negatives": ["x"]}, "no column 'negative_ids', so this is no mined"),
    ],
)
def test_a_mistake_in_a_mined_set_is_named(
    row: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    path = mined(tmp_path / "m.parquet", [row])
    with pytest.raises(UserError) as caught:
        with_mined(pool(tmp_path), path)
    assert expected in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        with_mined(pool(tmp_path), tmp_path / "absent.parquet")
