"""The search server: what it finds, and what it refuses."""

import http.client
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from tercet.configs import ModelConfig
from tercet.data.rows import Texts
from tercet.errors import UserError
from tercet.models import encode, load_encoder
from tercet.stages.server import MOST_CHARACTERS, SearchServer
from tercet.stages.serving import Collection, Search, load_searcher, read_collection
from tests.comparison import EVIL, collection
from tests.conftest import NAMES, Run, answer, question
from tests.encoders import save_encoder
from tests.test_mining_page import Tags

pytestmark = pytest.mark.usefixtures("one_thread")
LONG = " ".join(answer(n) for n in range(20))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("served")
    wide = shutil.copytree(tiny_model, folder / "tiny")
    narrow = shutil.copytree(save_encoder("bert", folder / "bert"), folder / EVIL)
    return [str(wide), str(narrow)]


@pytest.fixture(scope="module")
def server(models: list[str]) -> Iterator[SearchServer]:
    texts = [answer(n) for n in range(len(NAMES))] + [EVIL, LONG]
    ids = [f"d{n}" for n in range(len(NAMES))] + [EVIL, "long"]
    known = {question(3): {"d3"}, EVIL: {EVIL}}
    animals = Collection("animals", Texts(ids, texts), tuple(known), known)
    with SearchServer("127.0.0.1", 0) as listening:
        listening.search = Search(animals, [load_searcher(path, animals) for path in models])
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


def ask(
    server: SearchServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read().decode()
    connection.close()
    return found


def test_hits_are_the_nearest_documents_of_each_model(
    server: SearchServer, models: list[str]
) -> None:
    status, headers, body = ask(server, f"/search.json?q={quote(question(3))}&k=5")
    assert status == 200 and headers["Content-Type"] == "application/json; charset=utf-8"
    found = json.loads(body)
    texts = [answer(n) for n in range(len(NAMES))] + [EVIL, LONG]
    for path, side in zip(models, found["answers"], strict=True):
        model = load_encoder(ModelConfig(path=path))
        scores = encode(model, texts, "document") @ encode(model, [question(3)], "query")[0]
        best = np.argsort(-scores, kind="stable")[:5]
        assert [hit["text"] for hit in side["hits"]] == [texts[d] for d in best]
        assert [hit["score"] for hit in side["hits"]] == pytest.approx(scores[best], abs=1e-5)
        assert [hit["rank"] for hit in side["hits"]] == [1, 2, 3, 4, 5]
        assert [hit["relevant"] for hit in side["hits"]] == [d == 3 for d in best]
    left, right = ({h["id"]: h for h in side["hits"]} for side in found["answers"])
    for id_, hit in left.items():
        assert hit["elsewhere"] == (right[id_]["rank"] if id_ in right else None)


def test_the_page_shows_the_same_and_hostile_text_as_text(server: SearchServer) -> None:
    status, headers, page = ask(server, f"/?q={quote(EVIL)}&k=60")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    found = Tags(page)
    assert not {"img", "svg", "iframe"} & {tag for tag, _ in found.tags}
    hits = [a for tag, a in found.tags if tag == "li" and "hit" in str(a.get("class"))]
    assert len(hits) == 2 * (len(NAMES) + 2)  # k is more than there are
    box = next(a for tag, a in found.tags if tag == "input")
    assert box["value"] == EVIL and found.text.count(EVIL) >= 6
    assert page.count("judged relevant") == 2 and page.count("<details>") == 2


def test_without_a_query_it_offers_some(server: SearchServer) -> None:
    status, _, page = ask(server, "/")
    assert status == 200 and f"/?q={quote(question(3))}" in page and 'class="hit' not in page
    links = [a["href"] for tag, a in Tags(page).tags if tag == "a"]
    assert ask(server, str(links[1]))[0] == 200  # the hostile one
    assert ask(server, "/?q=+")[0] == 200
    status, _, body = ask(server, "/", "HEAD")
    assert status == 200 and body == ""


@pytest.mark.parametrize("host", ["localhost", "localhost:99", "127.0.0.1", "[::1]:8", "10.0.0.7"])
def test_an_address_of_this_machine_is_answered(server: SearchServer, host: str) -> None:
    assert ask(server, "/", Host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:80", "", "[", "a b"])
def test_a_name_of_somewhere_else_is_refused(server: SearchServer, host: str) -> None:
    status, _, body = ask(server, f"/search.json?q={quote(question(1))}", Host=host)
    assert status in (400, 421) and "animal" not in body


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/search.json", 400),
        ("/search.json?q=a&k=0", 400),
        ("/search.json?q=a&k=101", 400),
        ("/search.json?q=a&k=ten", 400),
        ("/?" + "&".join(f"a{n}=1" for n in range(20)), 400),
        ("/?q=" + "a" * (MOST_CHARACTERS + 1), 414),
        ("/?q=" + "%F0%9F%99%82" * 2 * MOST_CHARACTERS, 414),
        ("/" + "a" * 40_000, 414),
        ("/etc/passwd", 404),
        ("/../pyproject.toml", 404),
    ],
)
def test_what_is_too_much_or_not_there_is_refused(
    server: SearchServer, path: str, status: int
) -> None:
    found, _, body = ask(server, path)
    assert found == status and len(body) < 1_000
    assert ask(server, "/")[0] == 200  # and it goes on


def test_nothing_can_be_sent_to_it(server: SearchServer) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, "/", method)[0] == 501
    assert ask(server, f"/?q={quote('🙂' * MOST_CHARACTERS)}")[0] == 200  # as long as allowed


def test_many_ask_at_once(server: SearchServer) -> None:
    found: dict[int, str] = {}

    def one(number: int) -> None:
        body = ask(server, f"/search.json?q={quote(question(number))}&k=3")[2]
        found[number] = json.loads(body)["query"]

    threads = [threading.Thread(target=one, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: question(n) for n in range(12)}


def test_a_request_that_arrives_byte_by_byte_is_cut_off(
    server: SearchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of its silences is long; the whole of it is."""
    monkeypatch.setattr("tercet.stages.server.LONGEST_WAIT", 0.5)
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=0.1) as slow:
        slow.sendall(b"GET /?q=")
        answer, end = b"", time.monotonic() + 30
        while not answer and time.monotonic() < end:
            slow.sendall(b"a")
            with suppress(TimeoutError):
                answer = slow.recv(1_000)
    assert b" 421 " in answer or answer.startswith(b"unknown Host")


def test_a_folder_is_read_with_its_answers(tmp_path: Path) -> None:
    found = read_collection(collection(tmp_path / "animals", 60))
    assert found.name == "animals" and len(found.documents) == 60
    assert found.answers[question(5)] == {"d5"} and found.queries[0] == question(0)
    qrels = tmp_path / "animals" / "qrels"
    (qrels / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq7\td7\t1\n")
    assert read_collection(tmp_path / "animals", "dev").answers == {question(7): {"d7"}}
    with pytest.raises(UserError, match=r"train.tsv: no such file; the folder's splits: dev, test"):
        read_collection(tmp_path / "animals", "train")
    shutil.rmtree(qrels)
    assert read_collection(tmp_path / "animals").answers == {}


def test_a_port_in_use_is_one_line_before_any_model_is_loaded(
    run: Run, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tercet.stages.serving.load_encoder", lambda *_: 1 / 0)
    data = collection(tmp_path / "animals", 50)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = run("serve", models[0], "--data", data, "--port", port)
    assert status == 2 and err.count("\n") == 1
    assert f"port {port} of 127.0.0.1 is in use; choose another with --port" in err
    status, _, err = run("serve", *models, "third", "--data", data)
    assert status == 2 and "one model, or two side by side; got 3" in err
    status, _, err = run("serve", models[0], "--data", tmp_path / "none")
    assert status == 2 and "no such folder" in err
    status, _, err = run("serve", models[0], "--data", data, "--host", "192.0.2.1", "--port", 0)
    assert status == 2 and "cannot be listened on" in err


def test_a_model_that_is_not_there_is_refused(run: Run, tmp_path: Path) -> None:
    data = collection(tmp_path / "animals", 50)
    status, _, err = run("serve", "./absent", "--data", data, "--port", 0)
    assert status == 2 and "model: ./absent does not exist" in err


def test_an_address_with_colons_listens_too() -> None:
    try:
        with SearchServer("::1", 0) as server:
            assert server.url.startswith("http://[::1]:")
    except UserError as error:
        pytest.skip(f"this machine has no IPv6: {error}")


def test_several_processes_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tercet.processes.process_count", lambda: 2)
    status, _, err = run("serve", "no-model", "--data", ".")
    assert status == 2 and "serve: works in one process; start it without a launcher" in err
