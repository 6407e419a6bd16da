"""Without a network: local paths work, a hub name fails at once, and a misspelling is guessed."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from typer.main import get_command

from tercet.cli.app import app
from tercet.models.hub import nearest_to
from tests.conftest import Run, answer, question, write_lines, write_task
from tests.workers.launch import ROOT


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("all-MiniLM-L6-v3", "sentence-transformers/all-MiniLM-L6-v2"),
        ("BAAI/bge-smal-en-v1.5", "BAAI/bge-small-en-v1.5"),
        ("embeded", "embedded"),
    ],
)
def test_a_misspelt_name_is_guessed(name: str, nearest: str, run: Run, pairs: Path) -> None:
    start = time.monotonic()
    words = (f"data.train={pairs}", "output=out", f"model.path={name}")
    status, _, err = run("finetune", "tiny", *words)
    assert status == 2 and time.monotonic() - start < 5
    last = err.strip().splitlines()[-1]
    assert f"model.path: {name} is no folder" in last and f"did you mean '{nearest}'?" in last


def test_a_misspelt_folder_is_guessed(run: Run, pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "students" / "small").mkdir(parents=True)
    (tmp_path / "students" / "small" / "config.json").write_text("{}")
    words = (f"data.train={pairs}", "output=out", f"model.path={tmp_path}/students/smal")
    status, _, err = run("finetune", "tiny", *words)
    assert status == 2 and f"did you mean '{tmp_path}/students/small'?" in err.replace("\n", "")
    assert nearest_to("nothing/like-it-at-all") is None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a hub that has every model and must not be asked for a file."""

    def model_info(self: HfApi, name: str, **_: object) -> None:
        return None

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("requests.Session.request", "httpx.Client.request", "httpx.Client.send"):
        package = name.split(".")[0]
        if importlib.util.find_spec(package):
            monkeypatch.setattr(name, lambda *_, **__: pytest.fail("the network was asked"))
    return tmp_path / "hf"


def cache_file(cache: Path, model: str, name: str, text: str) -> None:
    """A file as the hub's cache keeps it."""
    folder = cache / f"models--{model.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("a" * 40)
    place = folder / "snapshots" / ("a" * 40) / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("key", ["distil.teacher", "loss.false_negatives.guide", "mining.sources"])
def test_a_model_that_is_needed_later_is_not_fetched(
    key: str, run: Run, tiny_model: Path, pairs: Path, hub: Path
) -> None:
    """It is on the hub and not on this disk, or there in part: a line instead of a download."""
    command = {"distil.teacher": "distil", "mining.sources": "mine"}.get(key, "finetune")
    words = [f"data.train={pairs}", f"model.path={tiny_model}", "output=out", f"{key}=some/model"]
    status, _, err = run(command, "tiny", *words)
    assert status == 2 and f"{key}: some/model is not on this disk" in err
    assert "hf download some/model" in err
    settings = (tiny_model / "config.json").read_text(encoding="utf-8")
    cache_file(hub, "some/model", "config.json", settings)
    status, _, err = run(command, "tiny", *words)
    last = " ".join(err.split())
    assert status == 2 and f"{key}: some/model cannot be loaded: not all of it is on this" in last
    assert "hf download some/model" in last


def test_a_hub_that_does_not_answer_is_given_up_within_seconds(pairs: Path, tmp_path: Path) -> None:
    """A server that takes connections and says nothing, as behind a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"http://127.0.0.1:{silent.getsockname()[1]}"
        quiet = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": where, "HF_HOME": str(tmp_path / "hf")}
        words = ["finetune", "tiny", f"data.train={pairs}", "model.path=some/thing", "output=out"]
        start = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-m", "tercet", *words],
            cwd=tmp_path,
            env=os.environ | quiet | {"PYTHONPATH": str(ROOT), "no_proxy": "*"},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert ended.returncode == 2, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("error: model.path: some/thing is no folder") and "reached" in last
    assert "Traceback" not in ended.stderr and time.monotonic() - start < 60


PROGRAM = """
import _socket, _thread, json, signal, socket, sys, threading, time

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell's background job ignores
def refuse(*_, **__): raise OSError(101, 'Network is unreachable')
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse

def visit(port):  # from outside, as it were: what socket.socket is made of can still connect
    while True:
        caller = _socket.socket()
        try:
            caller.connect(('127.0.0.1', port))
            caller.sendall(b'GET / HTTP/1.0\\r\\nHost: 127.0.0.1:%d\\r\\n\\r\\n' % port)
            print('served', caller.recv(99).split()[1].decode(), flush=True)
            return _thread.interrupt_main()
        except OSError:
            time.sleep(0.05)

from tercet import cli
{before}
ends = []
for words in json.loads(sys.argv[1]):
    sys.argv, start, status = ['tercet', *words], time.monotonic(), 0
    if words[0] == 'serve':
        threading.Thread(target=visit, args=(int(words[-1]),), daemon=True).start()
    try: cli.main()
    except SystemExit as end: status = end.code or 0
    ends.append([status, time.monotonic() - start])
print('ends', json.dumps(ends))
"""


def without_network(
    words: list[list[str]], tmp_path: Path, before: str = "", seconds: float = 200
) -> list[list[float]]:
    """Status and seconds of each command where every connection is refused and nothing says so."""
    quiet = {"HF_HUB_OFFLINE": "", "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{before}", before), json.dumps(words)],
        cwd=tmp_path,
        env=os.environ | quiet | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    (tmp_path / "said").write_text(ended.stdout + ended.stderr, encoding="utf-8")
    return json.loads(ended.stdout.rpartition("ends ")[2])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def every_command(tiny_model: Path, pairs: Path, task: Path) -> list[list[str]]:
    where = [f"data.train={pairs}", f"model.path={tiny_model}"]
    tiny, on = str(tiny_model), ["--data", str(task), "--split", "dev"]
    return [
        ["finetune", "tiny", *where, "output=run", f"evaluation.dev={task}"],
        ["mine", "tiny", *where, "output=mined"],
        ["plan", "tiny", *where, "output=planned", "--device", "h100"],
        ["student", "tiny", *where, "output=small", "student.layers=[0]"],
        ["distil", "tiny", *where, "output=taught", f"distil.teacher={tiny}", "train.steps=2"],
        ["merge", tiny, "run/model", "--out", "merged"],
        ["pair", "small/model", tiny, "--out", "paired"],
        ["evaluate", "run/model", *on, "--out", "results"],
        ["compare", tiny, "run/model", *on, "--dims", "8", "--out", "compared"],
        ["retention", "small/model", "--teacher", tiny, *on, "--rounds", "1", "--dims", "8"],
        ["calibrate", "merged", "--data", str(task), "--dims", "8"],
        ["export", "run", "--out", "exported"],
        ["index", "run/model", "--data", str(task), "--out", "indexed"],
        ["data", "check", str(pairs)],
        [
            "data",
            "code",
            "typer",
            "--dev",
            "click",
            "--test",
            "rich",
            "--limit-test",
            "9",
            "--out",
            "code",
        ],
        ["store", "list"],
        ["store", "verify"],
        ["store", "prune", "--keep-bytes", "0"],
        ["serve", "run/model", "--data", str(task), "--port", str(free_port())],
    ]


def test_local_paths_need_no_network(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="the ann extra is not installed")
    words = every_command(tiny_model, pairs, write_task(tmp_path / "task"))
    hub = ["finetune", "tiny", f"data.train={pairs}", "output=run2", "model.path=some/thing"]
    ends = without_network([*words, hub], tmp_path)
    said = (tmp_path / "said").read_text()
    assert [status for status, _ in ends] == [0] * len(words) + [2], said
    assert "served 200" in said
    assert ends[-1][1] < 20, ends  # a name that cannot be resolved is given up within seconds


def test_every_command_is_tried_without_a_network(tiny_model: Path, pairs: Path) -> None:
    typed = {" ".join(words[:2]) for words in every_command(tiny_model, pairs, Path("task"))}
    typed |= {name.split()[0] for name in typed} | {"demo"}
    commands: set[str] = set()
    for name, command in getattr(get_command(app), "commands").items():  # noqa: B009
        commands |= {f"{name} {part}".strip() for part in getattr(command, "commands", [""])}
    assert commands <= typed, commands - typed
    assert len(commands) > 15


@pytest.mark.faults
def test_the_demo_needs_no_network(tmp_path: Path) -> None:
    """On fewer pairs than it takes by itself."""
    fewer = "import tercet.demo as demo\n"
    fewer += "demo.TRAIN_PAIRS, demo.DEV_PAIRS, demo.TEST_PAIRS = 64, 20, 40\n"
    ends = without_network([["demo", "--out", "demo"]], tmp_path, fewer, seconds=550)
    assert [status for status, _ in ends] == [0], (tmp_path / "said").read_text()
    assert (tmp_path / "demo" / "model" / "modules.json").exists()


def test_a_cached_name_waits_once_for_a_hub_that_is_away(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    """All of the model is in the cache; no file of it is asked for again."""
    place = tmp_path / "hf" / "hub" / "models--some--thing"
    shutil.copytree(tiny_model, place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    where = [f"data.train={pairs}", "model.path=some/thing", "output=run"]
    (status, seconds), *_ = without_network([["finetune", "tiny", *where]], tmp_path)
    said = (tmp_path / "said").read_text()
    assert status == 0 and seconds < 20, said
    assert said.count("the hub does not answer; the cached files are used") == 1


MISTAKES = {
    "evaluation.dev=/nope": "evaluation.dev: /nope",
    "data.held_out=[/nope]": "data.held_out: /nope",
    "data.mined=pairs.jsonl": "data.mined: pairs.jsonl is no mined set",
    "data.mined=/nope": "data.mined: /nope: no such file; `tercet mine` writes one",
    "data.mined=.": "data.mined: . is a folder; name the file in it",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_names_its_key(mistake: str, run: Run, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"query": question(n), "positive": answer(n)} for n in range(9)]
    write_lines(tmp_path / "pairs.jsonl", rows)
    words = ("data.train=pairs.jsonl", f"model.path={tiny_model}", "output=out", mistake)
    status, _, err = run("finetune", "tiny", *words)
    assert status == 2 and f"error: {MISTAKES[mistake]}" in err.strip().splitlines()[-1]


def test_mining_names_its_key(run: Run, tiny_model: Path, pairs: Path) -> None:
    words = (f"data.train={pairs}", f"model.path={tiny_model}", "output=out", "mining.known=/nope")
    status, _, err = run("mine", "tiny", *words)
    assert status == 2 and "error: mining.known: /nope" in err.strip().splitlines()[-1]


@pytest.mark.parametrize("command", ["mine", "finetune"])
def test_an_absent_faiss_is_found_before_any_text_is_encoded(
    command: str, run: Run, tiny_model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr("tercet.stages.mining.vectors", lambda *_, **__: pytest.fail("encoded"))
    more = ("mining.index=hnsw", "mining.refresh_every=2", "output=out")
    words = (f"data.train={pairs}", f"model.path={tiny_model}", *more)
    status, _, err = run(command, "tiny", *words)
    assert status == 2 and "pip install 'tercet[ann]'" in err


def test_what_else_is_cached_is_pruned_too(run: Run, tiny_model: Path, pairs: Path) -> None:
    words = (f"data.train={pairs}", f"model.path={tiny_model}", "output=out")
    assert run("mine", "tiny", *words)[0] == 0
    assert run("finetune", "tiny", *words, "output=out2")[0] == 0
    out = run("store", "list")[1]
    assert all(kind in out for kind in ("query", "candi", "token"))
    status, out, _ = run("store", "prune", "--keep-bytes", "0")
    assert status == 0 and "candidates" in out.replace("\n", "")
    left = [p for p in Path(os.environ["TERCET_CACHE"]).rglob("*") if p.is_file()]
    assert left == []
    assert run("mine", "tiny", *words, "overwrite=true")[0] == 0
    assert json.loads(Path("out/mining.json").read_text())["documents"] == 48
