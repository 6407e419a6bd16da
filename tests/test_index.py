"""What is handed over to FAISS and Milvus is found there again: recall against exact search."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tercet.configs import ModelConfig
from tercet.data import Texts, read_documents
from tercet.errors import UserError
from tercet.export.index import Index, Kind, bits, measure_recall, write_faiss
from tercet.mining import top_k
from tercet.models import encode, load_encoder
from tests.conftest import NAMES, Run, answer, question, write_lines

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT, WIDTH = 1_500, 32


def clustered(rows: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors round 60 centres, the same ones for any seed."""
    centres = np.random.default_rng(0).normal(size=(60, WIDTH))
    random = np.random.default_rng(seed)
    vectors = centres[random.integers(0, 60, rows)] + 0.6 * random.normal(size=(rows, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


DOCUMENTS = Texts([f"d{n}" for n in range(COUNT)], [f"text {n}" for n in range(COUNT)])
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
    assert told["recall"] == vars(recall) and told["model"] == "m" and told["vectors"] == kind
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
    if (index, kind) == ("flat", "float32"):
        np.testing.assert_array_equal(found, exact)


def test_recall_by_hand() -> None:
    documents = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    queries = np.array([[3, 2, 1, 0]], dtype=np.float32)
    answers = np.array([[4, 3, -1, 1, 0]])
    recall = measure_recall(lambda asked, k: answers[:, :k], queries, documents)
    assert recall.at_10 == pytest.approx(4 / 5)  # k is 5: all but document 2, and -1 is none
    assert measure_recall(lambda q, k: top_k(q, documents, k)[1], queries, documents).at_10 == 1
    np.testing.assert_array_equal(bits(np.array([[1, -1, 0, 2, 0, 0, 0, 0.5]])), [[0b10010001]])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A BEIR folder without judgements: 48 documents and 48 queries."""
    folder = tmp_path / "animals"
    folder.mkdir()
    documents = ({"_id": f"d{n}", "title": "", "text": answer(n)} for n in range(len(NAMES)))
    write_lines(folder / "corpus.jsonl", documents)
    queries = ({"_id": f"q{n}", "text": question(n)} for n in range(len(NAMES)))
    write_lines(folder / "queries.jsonl", queries)
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    return folder


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


@pytest.fixture
def milvus() -> None:
    pytest.importorskip("pymilvus", reason="the vectordb extra is not installed")
    pytest.importorskip("milvus_lite", reason="the vectordb extra is not installed")


def test_the_command_with_milvus(milvus: None, run: Run, tiny_model: Path, corpus: Path) -> None:
    from pymilvus import MilvusClient

    words = ["index", tiny_model, "--data", corpus, "--to", "milvus", "--out", "found"]
    status, out, err = run(*words, "--collection", "animals")
    assert status == 0, err
    assert "recall@10 1.0000" in out and "collection animals in found/milvus.db" in out
    model = load_encoder(ModelConfig(path=str(tiny_model)))
    asked = encode(model, [question(5)], "query")
    exact = top_k(asked, encode(model, list(map(answer, range(48))), "document"), 10)[1][0]
    client = MilvusClient("found/milvus.db")
    client.load_collection("animals")
    (hits,) = client.search("animals", data=list(asked), limit=10, output_fields=["text"])
    client.close()
    assert [hit["id"] for hit in hits] == [f"d{n}" for n in exact]
    assert hits[0]["entity"]["text"] == answer(int(exact[0]))
    status, out, err = run(*words, "--collection", "animals")
    assert status == 0 and "48 of the documents were there already" in err, err
    status, _, err = run(*words, "--collection", "animals", "--truncate", 8)
    assert status == 2 and "'animals' exists and was made of something else" in err
    assert run(*words, "--collection", "animals", "--truncate", 8, "--overwrite")[0] == 0


@pytest.mark.parametrize("index", ["flat", "hnsw", "ivf_flat"])
def test_milvus_goes_on_where_it_was_stopped(
    index: Index, milvus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tercet.export import milvus as module

    monkeypatch.setattr(module, "BATCH", 400)
    vectors = clustered(COUNT, 1)

    def collection() -> module.Collection:
        uri = str(tmp_path / "m.db")
        return module.Collection(uri, "c", DOCUMENTS, vectors, index, "float32")

    stopped = collection()
    insert = stopped.client.insert
    calls: list[int] = []

    def stop(name: str, rows: list[dict]) -> object:
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return insert(name, rows)

    monkeypatch.setattr(stopped.client, "insert", stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.fill("f")
    stopped.close()
    again = collection()
    assert again.fill("f") == COUNT - 800
    recall = measure_recall(again.search(), clustered(50, 2), vectors)
    assert recall.at_10 >= {"flat": 1, "hnsw": 0.97, "ivf_flat": 0.8}[index]
    again.close()


@pytest.mark.parametrize("kind", ["int8", "binary"])
def test_what_the_embedded_milvus_cannot_hold_is_one_line(
    kind: Kind, milvus: None, run: Run, tiny_model: Path, corpus: Path
) -> None:
    words = ["--to", "milvus", "--index", "hnsw" if kind == "int8" else "flat"]
    status, _, err = run(
        "index", tiny_model, "--data", corpus, "--out", "f", "--vectors", kind, *words
    )
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2 and "Vector which MilvusLite does not support" in line
    assert "Traceback" not in err


def test_the_forms_that_a_milvus_server_is_sent(milvus: None) -> None:
    """Rows of int8 keep the order of inner products; bits are those of the FAISS index."""
    from tercet.export.milvus import Collection

    vectors = clustered(200, 1)
    place = Collection.__new__(Collection)
    place.kind, place.scale = "int8", 127 / float(np.abs(vectors).max())
    rows = np.stack(place.stored(vectors))
    assert rows.dtype == np.int8 and np.abs(rows).max() == 127
    np.testing.assert_allclose(rows / place.scale, vectors, atol=0.51 / place.scale)
    place.kind = "binary"
    assert place.stored(vectors[:2]) == [row.tobytes() for row in bits(vectors[:2])]


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
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, run: Run, tiny_model: Path, corpus: Path) -> None:
    words, expected = MISTAKES[mistake]
    status, _, err = run("index", tiny_model, "--data", corpus, "--out", "found", *words)
    last = err.strip().splitlines()[-1]
    assert status == 2 and last.startswith("error: ") and re.search(expected, last), last
    assert not Path("found").exists()


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
