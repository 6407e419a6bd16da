"""What is handed over to FAISS is found there again: recall against exact search."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from tercet.configs import ModelConfig
from tercet.data import read_documents
from tercet.errors import UserError
from tercet.export.index import Index, Kind, measure_recall, write_faiss
from tercet.mining import top_k
from tercet.models import encode, load_encoder, model_fingerprint
from tercet.models.quantise import read_ranges
from tercet.stages import indexing
from tests.conftest import NAMES, Run, answer, write_lines
from tests.handover import COUNT, DOCUMENTS, clustered, no_file_beyond

pytestmark = pytest.mark.usefixtures("one_thread")
FLAT = ("flat", "float32")
LEAST: dict[tuple[Index, Kind], tuple[float, float]] = {
    ("flat", "float32"): (1, 1),
    ("flat", "int8"): (0.93, 0.999),
    ("flat", "binary"): (0.2, 0.5),
    ("hnsw", "float32"): (0.97, 0.98),
    ("hnsw", "int8"): (0.9, 0.98),
    ("hnsw", "binary"): (0.2, 0.5),
    ("ivf_flat", "float32"): (0.8, 0.8),
    ("ivf_flat", "int8"): (0.75, 0.8),
    ("ivf_pq", "float32"): (0.3, 0.6),
}


@pytest.mark.parametrize(("index", "kind"), LEAST)
def test_faiss_finds_what_exact_search_finds(index: Index, kind: Kind, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss", reason="the ann extra is not installed")
    vectors, queries = clustered(COUNT, 1), clustered(100, 2)
    out = tmp_path / "out"
    recall = write_faiss(
        out, DOCUMENTS, vectors, queries, index=index, kind=kind, facts={"model": "m"}
    )
    least, least_among = LEAST[index, kind]
    assert recall.at_10 >= least and recall.among_40 >= max(least_among, recall.at_10)
    told = json.loads((out / "index.json").read_text())
    assert told == {"model": "m", "recall": vars(recall)}
    lines = (out / "documents.jsonl").read_text().splitlines()
    assert json.loads(lines[7]) == {"_id": "d7", "text": "text 7"} and len(lines) == COUNT
    exact = top_k(queries, vectors, 10)[1]
    if kind == "binary":
        stored = faiss.read_index_binary(str(out / "index.faiss"))
        found = stored.search(np.packbits(queries > 0, axis=1), 10)[1]
    else:
        found = faiss.read_index(str(out / "index.faiss")).search(queries, 10)[1]
    hits = np.mean([np.isin(e, f).mean() for e, f in zip(exact, found, strict=True)])
    assert hits == pytest.approx(recall.at_10, abs=0.01)  # ties may count as found
    assert recall.same <= recall.at_10 and (recall.same == 1 or (index, kind) != FLAT)
    if (index, kind) == FLAT:
        np.testing.assert_array_equal(found, exact)


def test_recall_by_hand() -> None:
    documents = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    queries = np.array([[3, 2, 1, 0]], dtype=np.float32)
    answers = np.array([[4, 3, -1, 1, 0]])
    recall = measure_recall(lambda asked, k: answers[:, :k], queries, documents)
    assert recall.at_10 == pytest.approx(4 / 5)  # k is 5: all but document 2, and -1 is none
    exact = top_k(queries, documents, 5)[1]
    tied = exact[:, [1, 0, 2, 3, 4]]  # documents 0 and 4 are equal
    swapped = exact[:, [2, 1, 0, 3, 4]]
    for answers, same in ((exact, 1), (tied, 1), (swapped, 0)):
        recall = measure_recall(lambda asked, k, a=answers: a, queries, documents)
        assert recall.at_10 == 1 and recall.same == same


def test_the_command_with_faiss(run: Run, tiny_model: Path, corpus: Path) -> None:
    faiss = pytest.importorskip("faiss", reason="the ann extra is not installed")
    words = ["index", tiny_model, "--data", corpus, "--to", "faiss", "--out", "found"]
    status, out, err = run(*words, "--truncate", 16)
    assert status == 0, err
    assert "recall@10 1.0000 against exact search" in out and "48 documents: found" in out
    stored = faiss.read_index("found/index.faiss")
    model = load_encoder(ModelConfig(path=str(tiny_model)))
    texts = [answer(n) for n in range(len(NAMES))]
    want = encode(model, texts, "document", truncate_dim=16)
    np.testing.assert_allclose(stored.reconstruct_n(0, 48), want, atol=1e-6)
    told = json.loads(Path("found/index.json").read_text())
    assert told["dimensions"] == 16 and told["recall_asked_with"] == "queries"
    status, _, err = run(*words)
    assert status == 2 and "found: exists" in err
    assert run(*words, "--overwrite", "--index", "hnsw", "--vectors", "int8")[0] == 0


@pytest.mark.parametrize("room", [150, 60_000, 192_000])  # index.faiss takes 192,045 bytes
def test_a_full_disk_leaves_no_index(room: int, tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="the ann extra is not installed")
    vectors, out = clustered(COUNT, 1), tmp_path / "out"
    form: dict[str, Any] = {"index": "flat", "kind": "float32", "facts": {}}
    with (
        pytest.raises(UserError, match="out: .*(File too large|disk is full)") as told,
        no_file_beyond(room),
    ):
        write_faiss(out, DOCUMENTS, vectors, vectors[:5], **form)
    assert "nothing was left behind" in str(told.value) and not list(tmp_path.iterdir())


def test_ranges_that_were_stored_with_the_model_are_used(
    run: Run, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    faiss = pytest.importorskip("faiss", reason="the ann extra is not installed")
    model = tmp_path / "calibrated"
    shutil.copytree(tiny_model, model)
    words = ["index", model, "--data", corpus, "--vectors", "int8", "--out"]
    assert run(*words, "measured")[0] == 0
    other = write_lines(tmp_path / "other.jsonl", [{"text": answer(n)[:9]} for n in range(20)])
    assert run("calibrate", model, "--data", other, "--dims", "16")[0] == 0
    assert run(*words, "found", "--truncate", "16")[0] == 0
    encoder = load_encoder(ModelConfig(path=str(model)))
    ranges = read_ranges(model, model_fingerprint(encoder))[16]
    stored = faiss.read_index("found/index.faiss")
    want = np.concatenate([ranges.low, ranges.high - ranges.low])
    np.testing.assert_allclose(faiss.vector_to_array(stored.sq.trained), want, atol=1e-6)
    told = [json.loads(Path(place, "index.json").read_text()) for place in ("measured", "found")]
    assert [one["int8_ranges"] for one in told] == ["the documents'", "the model's"]


def test_two_folders_may_number_their_queries_alike(
    run: Run, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    pytest.importorskip("faiss", reason="the ann extra is not installed")
    other = tmp_path / "other"
    other.mkdir()
    write_lines(other / "corpus.jsonl", [{"_id": "e1", "text": "a cave"}])
    write_lines(other / "queries.jsonl", [{"_id": "q1", "text": "what is a cave"}])
    shutil.copytree(corpus / "qrels", other / "qrels")
    words = ["index", tiny_model, "--data", corpus, "--data", other, "--out", "found"]
    status, out, err = run(*words)
    assert status == 0 and "(49 queries)" in out and "49 documents" in out, err


MISTAKES = {
    "no such engine": (["--to", "elastic"], "--to: 'elastic' is none of faiss, milvus"),
    "no such index": (["--index", "trees"], "--index: 'trees' is none of flat, hnsw"),
    "no such form": (["--vectors", "float8"], "--vectors: 'float8' is none of float32, int8"),
    "cells of bits": (["--index", "ivf_flat", "--vectors", "binary"], "no ivf_flat of bits"),
    "too small to learn": (["--index", "ivf_pq"], "needs 256 documents to learn from, not 48"),
    "codes twice": (["--index", "ivf_pq", "--vectors", "int8"], "ivf_pq stores codes of its own"),
    "half a byte": (["--truncate", "12", "--vectors", "binary"], "12 dimensions do not fill bytes"),
    "too many dimensions": (["--truncate", "33"], "truncate_dim: 33 is not between 1 and"),
    "no texts": (["--data", "absent.jsonl"], "absent.jsonl"),
    "a form that the embedded Milvus has not": (
        ["--to", "milvus", "--vectors", "int8"],
        "embedded Milvus holds float32 vectors as flat, hnsw, ivf_flat",
    ),
    "an index that it has not": (
        ["--to", "milvus", "--data", "many.txt", "--index", "ivf_pq"],
        "--index ivf_pq --vectors float32: the embedded Milvus",
    ),
    "an int8 form that no server has": (
        ["--to", "milvus", "--uri", "http://127.0.0.1:1", "--vectors", "int8"],
        "--index flat --vectors int8: a Milvus server holds int8 vectors as hnsw; choose",
    ),
    "a form of bits that no server has": (
        ["--to", "milvus", "--uri", "http://x", "--vectors", "binary", "--index", "hnsw"],
        "a Milvus server holds binary vectors as flat, ivf_flat; choose one of these",
    ),
    "a name that Milvus does not take": (
        ["--to", "milvus", "--collection", "my-texts"],
        "--collection 'my-texts': letters, digits and underscores",
    ),
    "a long id": (["--to", "milvus", "--data", "long.jsonl"], "longer than 512 bytes"),
    "the data itself": (["--out", "animals", "--overwrite"], "would delete .*animals"),
    "a folder of something else": (
        ["--out", "mine", "--overwrite"],
        "mine: holds something else",
    ),
    "Milvus in a folder of something else": (
        ["--to", "milvus", "--out", "mine", "--overwrite"],
        "mine: holds notes.txt, which is no part of a collection",
    ),
    "a server of another engine": (["--uri", "http://x"], "--uri: is for --to milvus; add it"),
    "a name in another engine": (["--collection", "c"], "--collection: is for --to milvus; add it"),
    "an address without a scheme": (
        ["--to", "milvus", "--uri", "localhost:19530"],
        "--uri 'localhost:19530': is neither a file ending in .db nor the address of a server",
    ),
    "a port that is none": (["--to", "milvus", "--uri", "http://x:port"], "--uri .*: is neither"),
    "no host": (["--to", "milvus", "--uri", "http://"], "--uri 'http://': is neither"),
    "an address of nothing": (["--to", "milvus", "--uri", ""], "--uri '': is neither"),
    "a file for a database": (
        ["--to", "milvus", "--uri", "notes.db"],
        "notes.db: is a file, and Milvus Lite 3 keeps a database in a folder; choose another",
    ),
    "over a database": (
        ["--out", "base", "--overwrite"],
        "base: holds milvus.db, which --overwrite would delete with all its collections",
    ),
    "a long name": (["--to", "milvus", "--out", "x" * 300], "File name too long.; choose another"),
    "a database in no folder": (
        ["--to", "milvus", "--uri", "many.txt/m.db"],
        "many.txt: cannot write there",
    ),
    "a format that is not read": (
        ["--data", "x.tsv"],
        r"x.tsv: the name does not tell .* \.parquet, or give a \.txt file with a text a line$",
    ),
    "a folder of no texts": (["--data", "mine"], r"mine: neither a BEIR .*, or give a \.txt file"),
    "a file": (["--to", "milvus", "--out", "many.txt"], "many.txt: is no folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_before_any_text_is_encoded(
    mistake: str, run: Run, tiny_model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="the ann extra is not installed")
    words, expected = MISTAKES[mistake]
    if "milvus" in words:
        pytest.importorskip("pymilvus", reason="the vectordb extra is not installed")
    folder = corpus.parent
    (folder / "many.txt").write_text("a text\n" * 300)
    (folder / "x.tsv").write_text("a\ttext\n")
    write_lines(folder / "long.jsonl", [{"_id": "x" * 513, "text": "a text"}])
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("mine\n")
    (folder / "notes.db").write_text("mine\n")
    (folder / "base" / "milvus.db").mkdir(parents=True)
    (folder / "base" / "index.json").write_text("{}")
    there = sorted(folder.rglob("*"))
    monkeypatch.setattr(indexing, "vectors", lambda *_, **__: pytest.fail("a text was encoded"))
    given = [] if "--data" in words else ["--data", corpus]
    status, _, err = run("index", tiny_model, "--out", "found", *given, *words)
    last = err.strip().splitlines()[-1]
    assert status == 2 and last.startswith("error: ") and re.search(expected, last), last
    assert sorted(folder.rglob("*")) == there


def test_the_split_of_a_saved_dataset_is_named(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    DatasetDict({"test": Dataset.from_dict({"text": ["one", "two"]})}).save_to_disk(saved)
    with pytest.raises(
        UserError, match=r"name the folder of one, such as .*saved/test, or"
    ) as told:
        read_documents([saved])
    assert "no split 'train'; it has 'test'" in str(told.value)
    assert read_documents([saved / "test"]).texts == ["one", "two"]


def test_the_model_of_a_run_is_named(run: Run, tiny_model: Path, corpus: Path) -> None:
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/model").symlink_to(tiny_model)
    status, _, err = run("index", "runs/mine", "--data", corpus, "--out", "found")
    assert status == 2 and err.strip().endswith("; did you mean runs/mine/model?"), err


@pytest.mark.parametrize(
    ("engine", "package", "extra"),
    [("faiss", "faiss", "ann"), ("milvus", "pymilvus", "vectordb")],
)
def test_a_missing_package_is_named_at_once(
    engine: str,
    package: str,
    extra: str,
    run: Run,
    tiny_model: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(indexing, "vectors", lambda *_, **__: pytest.fail("a text was encoded"))
    status, _, err = run("index", tiny_model, "--data", corpus, "--to", engine, "--out", "found")
    assert status == 2 and f"pip install 'tercet[{extra}]'" in err and not Path("found").exists()


def test_ids_of_documents(tmp_path: Path) -> None:
    plain = tmp_path / "a.txt"
    plain.write_text("one\n\ntwo\n")
    rows = [{"_id": 7, "text": "three"}, {"id": "x", "text": "four", "title": "t"}]
    lines = write_lines(tmp_path / "b.jsonl", rows)
    found = read_documents([plain, lines])
    assert found.ids == ["1", "2", "7", "x"] and found.texts == ["one", "two", "three", "t four"]
    again = write_lines(tmp_path / "c.jsonl", [{"_id": 1, "text": "a"}])
    with pytest.raises(UserError, match=r"c.jsonl, line 1: id '1' already stands in .*line 1;"):
        read_documents([plain, again])
