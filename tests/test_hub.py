"""Pushing to a hub, up to the network: a server on this machine takes what would be sent."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tercet.errors import UserError
from tercet.export import check_push, push
from tests.conftest import Run


class Hub(ThreadingHTTPServer):
    """Answers as a hub does, and remembers what it was sent."""

    def __init__(self, refuse: bool) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.refuse, self.created, self.files = refuse, [], {}  # type: ignore[var-annotated]
        self.address = f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub  # type: ignore[assignment]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.refuse:
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{self.server.address}/me/model", "id": "1"})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": file["path"], **plain} for file in asked]})
        elif "/commit/" not in self.path:  # it asks whether the card's header is valid
            self.answer({"errors": [], "warnings": []})
        else:
            for line in filter(None, body.splitlines()):
                item = json.loads(line)
                if item["key"] == "file":
                    value = item["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            address = f"{self.server.address}/me/model/commit/abc"
            self.answer({"success": True, "commitOid": "abc", "commitUrl": address})

    def do_GET(self) -> None:
        self.answer({"error": "Not found"}, 404)

    do_HEAD = do_GET

    def answer(self, value: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(params=[False, True], ids=["accepts", "refuses"])
def hub(request: pytest.FixtureRequest) -> Iterator[Hub]:
    server = Hub(request.param)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def test_every_file_is_sent_as_one_commit(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "none")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "tokenizer.json").write_text("{}")
    (tmp_path / "README.md").write_text("# a model")
    if hub.refuse:
        later = f"then upload {tmp_path}, which is whole: hf upload me/model {tmp_path}"
        refused = r"me/model: the hub refused \(Invalid username or password.\); log in or rename"
        with pytest.raises(UserError, match=f"{refused}, {later} --private$"):
            push(tmp_path, "me/model", endpoint=hub.address)
        with pytest.raises(UserError, match=f"{later}$"):
            push(tmp_path, "me/model", public=True, endpoint=hub.address)
        assert hub.files == {}
        return
    address = push(tmp_path, "me/model", endpoint=hub.address)
    assert address.endswith("/me/model/commit/abc")
    assert hub.created[0]["visibility"] == "private" and hub.created[0]["name"] == "model"
    assert hub.files == {"README.md": b"# a model", "onnx/tokenizer.json": b"{}"}


def test_nobody_logged_in_is_said_before_any_work(
    run: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    status, _, err = run("export", tiny_model, "--out", "out", "--push", "me/model")
    assert status == 2 and "--push: nobody is logged in; give `hf auth login`" in err
    assert not Path("out").exists()
    (tmp_path / "token").write_text("none")
    check_push("me/model")


def test_a_hub_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "none")
    with pytest.raises(UserError, match="offline mode is on; unset HF_HUB_OFFLINE"):
        push(tmp_path, "me/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match="--push: .*'a/b/c'"):
        push(tmp_path, "a/b/c")
    with pytest.raises(UserError, match="the hub cannot be reached"):
        push(tmp_path, "me/model", endpoint="http://127.0.0.1:9")
