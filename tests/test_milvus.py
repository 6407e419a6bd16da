"""What is handed over to Milvus is found there again, also after kills and on full disks."""

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tercet.configs import ModelConfig
from tercet.data import Texts
from tercet.errors import UserError
from tercet.export import collection as module
from tercet.export.collection import Collection, write_milvus
from tercet.export.index import Index, measure_recall
from tercet.export.milvus import Target, connected
from tercet.mining import top_k
from tercet.mining.ann import AnnSettings, settings_for
from tercet.models import encode, load_encoder
from tercet.models.quantise import bits, calibrate, int8_codes
from tercet.stages import indexing
from tests.conftest import Run, answer, question
from tests.handover import COUNT, DOCUMENTS, clustered, no_file_beyond
from tests.workers.launch import ROOT

pytest.importorskip("pymilvus", reason="the vectordb extra is not installed")
pytest.importorskip("milvus_lite", reason="the vectordb extra is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_command_with_milvus(run: Run, tiny_model: Path, corpus: Path) -> None:
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
    status, out, err = run(*words, "--uri", "another/folder/m.db")
    assert status == 0 and "in another/folder/m.db" in out and Path("another/folder/m.db").exists()


def test_a_server_is_asked_like_the_embedded_edition(
    server: str, run: Run, tiny_model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILVUS_TOKEN", "another-long-secret")
    address = server.replace("://", "://root:very-secret@")
    words = ["index", tiny_model, "--data", corpus, "--to", "milvus", "--out", "found"]
    status, out, err = run(*words, "--uri", address, "--collection", "animals")
    assert status == 0, err
    assert "recall@10 1.0000" in out and "in http://***@127.0.0.1" in out
    told = json.loads(Path("found/index.json").read_text())
    assert told["uri"] == server.replace("://", "://***@") and told["engine"] == "milvus"
    assert told["recall"]["same"] == 1 and [p.name for p in Path("found").iterdir()] == [
        "index.json"
    ]
    status, _, err = run(*words, "--uri", address, "--vectors", "int8", "--index", "hnsw")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2 and "Vector which MilvusLite does not support" in line
    assert "secret" not in out + err and "Traceback" not in err


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a Milvus on this machine."""
    from milvus_lite.server_manager import server_manager_instance as servers

    place = str(tmp_path / "server.db")
    address = servers.start_and_get_uri(place)
    assert address is not None
    yield address
    servers.release_server(place)


def test_a_server_that_does_not_answer_is_found_out_before_any_text_is_encoded(
    run: Run, tiny_model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "vectors", lambda *_, **__: pytest.fail("a text was encoded"))
    words = ["index", tiny_model, "--data", corpus, "--to", "milvus", "--out", "found"]
    status, _, err = run(*words, "--uri", "http://127.0.0.1:1", "--overwrite")
    last = err.strip().splitlines()[-1]
    assert status == 2 and last.startswith("error: milvus, collection "), last
    assert "127.0.0.1:1" in last and last.endswith("; is it running, and is --uri right?")
    assert not Path("found").exists()


def target(folder: Path, made_of: str = "f", index: Index = "flat") -> Target:
    return Target(str(folder / "m.db"), "c", index, "float32", made_of)


def stop_at(monkeypatch: pytest.MonkeyPatch, client: Any, turn: int) -> None:
    """Ctrl-C instead of the request number `turn`."""
    upsert, calls = client.upsert, itertools.count(1)

    def stopping(*given: Any) -> Any:
        if next(calls) == turn:
            raise KeyboardInterrupt
        return upsert(*given)

    monkeypatch.setattr(client, "upsert", stopping)


@pytest.mark.parametrize("index", ["flat", "hnsw", "ivf_flat"])
def test_milvus_goes_on_where_it_was_stopped(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 400)
    vectors, place = clustered(COUNT, 1), target(tmp_path, index=index)
    with pytest.raises(KeyboardInterrupt), connected(place) as client:
        stop_at(monkeypatch, client, 3)
        Collection(client, place, DOCUMENTS, vectors).fill()
    with connected(place) as client:
        again = Collection(client, place, DOCUMENTS, vectors)
        assert again.fill() == COUNT - 800
        recall = measure_recall(again.search(), clustered(50, 2), vectors)
        assert recall.at_10 >= {"flat": 1, "hnsw": 0.97, "ivf_flat": 0.8}[index]
        assert again.fill() == 0
        settings = settings_for(*vectors.shape)
        hnsw = {"M": settings.neighbours, "efConstruction": settings.ef_construction}
        wanted = {"flat": {}, "hnsw": hnsw, "ivf_flat": {"nlist": settings.lists}}
        assert (client.describe_index("c", "vector").get("params") or {}) == wanted[index]


def test_recall_is_that_of_the_index_however_late_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query that looks into one cell misses what others hold; comparing one by one does not."""
    from milvus_lite.engine.collection import Collection as Engine

    build = Engine._bg_compact_and_index

    def late(self: Engine) -> None:
        time.sleep(0.5)  # as long as a larger index takes
        build(self)

    monkeypatch.setattr(Engine, "_bg_compact_and_index", late)
    monkeypatch.setattr(module, "settings_for", lambda *_: AnnSettings(30, probes=1, code_bytes=8))
    vectors, asked, place = (
        clustered(COUNT, 1),
        clustered(200, 2),
        target(tmp_path, "f", "ivf_flat"),
    )
    recall = write_milvus(tmp_path / "out", place, DOCUMENTS, vectors, asked, facts={})
    assert 0.3 < recall.at_10 < 0.99 and recall.same < 0.95
    told = json.loads((tmp_path / "out" / "index.json").read_text())
    assert told["recall"] == vars(recall)


def test_ids_of_any_letters_are_found_again(tmp_path: Path) -> None:
    ids = [
        "d'1",
        "a\\b",
        'a"b',
        "two\nlines",
        "\r",
        "a\tb",
        "\\'",
        "x\\",
        "\b",
        "é",
        "') or ('",
        "{a}",
    ]
    documents = Texts(ids, [f"text {id_}" for id_ in ids])
    vectors, place = clustered(len(ids), 1), target(tmp_path)
    with connected(place) as client:
        Collection(client, place, Texts(ids[:5], documents.texts[:5]), vectors[:5]).fill()
    with connected(place) as client:
        whole = Collection(client, place, documents, vectors)
        assert whole.fill() == len(ids) - 5 and whole.fill() == 0
        assert measure_recall(whole.search(), vectors, vectors).same == 1


@pytest.mark.faults
def test_milvus_goes_on_after_kill_9(tmp_path: Path) -> None:
    """The process dies within a request, without closing the database."""
    command = [sys.executable, "-m", "tests.workers.milvus", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    vectors, place = clustered(COUNT, 1), target(tmp_path)
    with connected(place) as client:
        again = Collection(client, place, DOCUMENTS, vectors)
        assert 0 < again.fill() <= COUNT - 600  # six whole requests were answered
        assert measure_recall(again.search(), clustered(50, 2), vectors).same == 1


def test_a_collection_answers_until_its_replacement_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 400)
    old, new, asked = clustered(COUNT, 1), clustered(COUNT, 3), clustered(20, 2)
    places = target(tmp_path, "f"), target(tmp_path, "g")

    def collection(client: Any, turn: int) -> Collection:
        return Collection(client, places[turn], DOCUMENTS, (old, new)[turn])

    with connected(places[0]) as client:
        collection(client, 0).fill()
        with pytest.raises(UserError, match="'c' exists and was made of something else"):
            collection(client, 1).fill()
    with pytest.raises(KeyboardInterrupt), connected(places[1]) as client:
        stop_at(monkeypatch, client, 3)
        collection(client, 1).fill(overwrite=True)
    with connected(places[0]) as client:
        assert collection(client, 0).fill() == 0
        assert measure_recall(collection(client, 0).search(), asked, old).same == 1
    with connected(places[1]) as client:
        replaced = collection(client, 1)
        assert replaced.fill(overwrite=True) == COUNT - 800
        assert measure_recall(replaced.search(), asked, new).same == 1
        assert client.list_collections() == ["c"] and replaced.fill() == 0


def test_the_forms_that_a_milvus_server_is_sent() -> None:
    """Rows of int8 keep the order of inner products; bits are those of the FAISS index."""
    vectors = clustered(200, 1)
    int8, binary = (Target("x.db", "c", "flat", kind, "f") for kind in ("int8", "binary"))
    ranges = calibrate(vectors)
    rows = np.stack(Collection(None, int8, DOCUMENTS, vectors, ranges).stored(vectors))
    np.testing.assert_array_equal(rows, int8_codes(vectors, ranges))
    stored = Collection(None, binary, DOCUMENTS, vectors).stored(vectors[:2])
    assert stored == [row.tobytes() for row in bits(vectors[:2])]


def test_a_collection_goes_on_when_there_is_room_again(tmp_path: Path) -> None:
    vectors, place = clustered(COUNT, 1), target(tmp_path)
    with (
        pytest.raises(UserError, match="File too large.*make room, and the same command goes on"),
        no_file_beyond(50_000),
        connected(place) as client,
    ):
        Collection(client, place, DOCUMENTS, vectors).fill()
    with connected(place) as client:
        again = Collection(client, place, DOCUMENTS, vectors)
        again.fill()
        assert measure_recall(again.search(), clustered(20, 2), vectors).same == 1
