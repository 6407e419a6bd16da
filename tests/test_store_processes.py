"""One store whoever makes it: processes, threads, killed runs and two runs at once.

Real processes (gloo where there are several); the jobs are run by workers/store.py.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tercet.data import RetrievalTask, Texts, write_task
from tercet.mining.search import CPU_TILE
from tercet.models.shards import rows_of_a_shard
from tests.conftest import NAMES, PLACES, answer

ROOT = Path(__file__).resolve().parent.parent
TEXTS = 12_000
SHARD = rows_of_a_shard(TEXTS)
UNDER_WAY = 150  # texts of the batches that were computed but not yet written
SMALL = 1_200  # 19 shards
LONG = "of the " * 40  # the only text as long as the model reads


def texts(count: int) -> list[str]:
    """Distinct, of 7 to 31 tokens."""
    random = np.random.default_rng(0)
    found = []
    for i in range(count):
        a, b, c = NAMES[i % 48], NAMES[i // 48 % 48], PLACES[i // 2_304 % 8]
        found.append(f"a {a} of the {b} lives in the {c}" + " river" * int(random.integers(0, 24)))
    return found


def many_queries(folder: Path) -> Path:
    """1,100 queries, each asking for the document of its first animal."""
    asked = texts(CPU_TILE[0] + 76)
    queries = Texts([f"q{i}" for i in range(len(asked))], asked)
    documents = Texts([f"d{n}" for n in range(len(NAMES))], [answer(n) for n in range(len(NAMES))])
    qrels = {f"q{i}": {f"d{i % len(NAMES)}": 1} for i in range(len(asked))}
    write_task(RetrievalTask("task", "test", documents, queries, qrels), folder)
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, pairs: Path) -> Path:
    folder = tmp_path_factory.mktemp("store-processes")
    some = texts(SMALL)
    lists = {"many": texts(TEXTS), "some": some, "spoilt": [*some[:720], LONG, *some[720:]]}
    for name, given in lists.items():
        (folder / f"{name}.json").write_text(json.dumps(given))

    def job(name: str, world: int, where: str, what: str, **options: Any) -> dict[str, Any]:
        paths = {"folder": str(folder / where), "texts": str(folder / f"{what}.json")}
        common = {"model": str(tiny_model), "out": str(folder)}
        return {"name": name, "world": world, **paths, **common, **options}

    jobs = [
        job("one", 1, "one", "many"),
        job("two", 2, "two", "many"),
        job("threads", 1, "threads", "some", threads=3),
        job("killed", 1, "killed", "many", kill_at=TEXTS * 6 // 10),
        job("again", 1, "killed", "many"),
        job("killed-pair", 2, "killed-pair", "many", kill_at=TEXTS * 3 // 10),
        job("again-pair", 2, "killed-pair", "many"),
        job("nan", 2, "nan", "spoilt", nan=True),
        job("first", 1, "shared", "some", slow=0.05, beside=True),
        job("second", 1, "shared", "some"),
    ]
    task = many_queries(folder / "task")
    mining = [f"data.train={pairs}", f"model.path={tiny_model}", "mining.relative_margin=null"]
    for world in (1, 2):
        results = ["--out", str(folder / f"results-{world}"), "--data", str(task)]
        mined = f"output={folder / f'mined-{world}'}"
        typed = {
            "evaluate": ["evaluate", str(tiny_model), *results],
            "mine": ["mine", "tiny", mined, *mining],
        }
        if find_spec("faiss"):
            place = ["--data", str(task), "--out", str(folder / f"index-{world}")]
            typed["index"] = ["index", str(tiny_model), "--vectors", "int8", *place]
        for name, argv in typed.items():
            cache = {"TERCET_CACHE": str(folder / f"cache-{name}-{world}")}
            jobs.append(
                {
                    "name": f"{name}-{world}",
                    "world": world,
                    "argv": argv,
                    "out": str(folder),
                    "env": cache,
                }
            )
    compared = ["compare", str(tiny_model), "--data", str(task), "--out", str(folder / "compared")]
    cache = {"TERCET_CACHE": str(folder / "cache-compare")}
    pair = {"name": "compare-2", "world": 2, "argv": compared, "out": str(folder), "env": cache}
    jobs.append(pair)
    plain = [f"model.path={tiny_model}", "model.max_length=null", "data.train=[]"]
    models = [str(tiny_model), str(tiny_model)]
    for name, argv in {
        "student": ["student", "tiny", *plain, f"output={folder / 'student'}"],
        "merge": ["merge", *models, "--dev", str(task), "--out", str(folder / "merge")],
        "pair": ["pair", *models, "--out", str(folder / "pair")],
    }.items():
        common = {"argv": argv, "env": {}, "out": str(folder), "refused": True}
        jobs.append({"name": f"refused-{name}", "world": 2, **common})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    subprocess.run(
        [sys.executable, "-m", "tests.workers.store", str(folder / "jobs.json")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    return folder


def told(out: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return json.loads((out / f"{name}-{rank}.json").read_text())


def bytes_of(out: Path, where: str) -> dict[str, bytes]:
    (place,) = (out / where).iterdir()
    return {file.name: file.read_bytes() for file in place.glob("*.npy")}


@pytest.mark.parametrize("other", ["two", "killed", "killed-pair"])
def test_the_bytes_are_the_same_whoever_made_them(out: Path, other: str) -> None:
    want = bytes_of(out, "one")
    assert len(want) == -(-TEXTS // SHARD)
    assert bytes_of(out, other) == want


def test_threads_leave_no_trace_in_the_bytes(out: Path) -> None:
    assert bytes_of(out, "threads") == bytes_of(out, "shared")


def test_two_processes_share_the_work(out: Path) -> None:
    shares = [told(out, "two", rank)["rows"] for rank in (0, 1)]
    assert sum(shares) == TEXTS
    assert abs(shares[0] - shares[1]) <= SHARD
    assert told(out, "two", 1)["shape"] == [TEXTS, 32]


@pytest.mark.parametrize(("name", "world"), [("again", 1), ("again-pair", 2)])
def test_kill_9_costs_each_process_the_shard_it_was_at(out: Path, name: str, world: int) -> None:
    """Killed when 60 % of all texts had gone through the model."""
    assert not (out / f"{name.replace('again', 'killed')}-0.json").exists()  # it was killed
    rows = sum(told(out, name, rank)["rows"] for rank in range(world))
    assert 0.4 * TEXTS - SHARD <= rows <= 0.4 * TEXTS + world * (SHARD + UNDER_WAY)
    assert rows <= 0.45 * TEXTS


def test_a_mistake_of_one_process_is_told_by_all(out: Path) -> None:
    """The text of row 720 is in shard 11, which the second process makes."""
    complaints = {told(out, "nan", rank)["complaint"] for rank in (0, 1)}
    assert len(complaints) == 1
    assert "not finite for 1 texts, the first in row 720: 'of the of the" in complaints.pop()


def test_a_second_run_waits_and_finds_all_done(out: Path) -> None:
    assert told(out, "first")["rows"] == SMALL
    assert told(out, "second")["rows"] == 0
    assert len(bytes_of(out, "shared")) == 19


@pytest.mark.parametrize("command", ["evaluate", "mine", "index", "compare"])
def test_commands_share_the_encoding_and_the_main_process_speaks(out: Path, command: str) -> None:
    if command == "index":
        pytest.importorskip("faiss", reason="the ann extra is not installed")
    assert (out / f"{command}-2-0.txt").read_text().splitlines()
    assert (out / f"{command}-2-1.txt").read_text() == ""


@pytest.mark.parametrize("command", ["student", "merge", "pair"])
def test_what_makes_one_model_is_refused_under_a_launcher(out: Path, command: str) -> None:
    """By all processes: one that left before the others had joined would keep them waiting."""
    complaint = f"error: {command}: works in one process; start it without a launcher\n"
    told = [(out / f"refused-{command}-{rank}.txt").read_text() for rank in (0, 1)]
    assert told == [complaint, ""] and not (out / command).exists()


def test_two_processes_index_the_same_bytes(out: Path) -> None:
    pytest.importorskip("faiss", reason="the ann extra is not installed")
    one, two = (out / f"index-{world}" for world in (1, 2))
    names = ["documents.jsonl", "index.faiss", "index.json"]
    assert sorted(file.name for file in two.iterdir()) == names
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_two_processes_evaluate_alike(out: Path) -> None:
    """More queries than one tile holds, so that each process searches some."""
    one, two = (files_of(out / f"results-{world}") for world in (1, 2))
    assert len(one) == 5  # a result and a run of the model and of BM25, and the comparison
    assert one == two


def test_two_processes_compare_what_one_evaluates(out: Path) -> None:
    found = json.loads((out / "compared" / "results.json").read_text())
    assert (out / "compared" / "report.html").exists()
    (task,) = found["tasks"]
    for row in task["quality"]:
        (file,) = (out / "results-1" / row["model"]).glob("*.test.json")
        assert row["means"] == json.loads(file.read_text())["tercet"]["means"]
    assert found["models"][0]["efficiency"]["documents_per_second"] > 0


def files_of(folder: Path) -> dict[str, Any]:
    """What is in the files, but for how long it took."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*.*")):
        name, text = str(file.relative_to(folder)), file.read_text()
        found[name] = json.loads(text) if file.suffix == ".json" else text
        if file.suffix == ".json" and file.parent != folder:
            assert found[name].pop("evaluation_time") == found[name]["tercet"].pop("seconds") > 0
    return found


def test_two_processes_mine_the_same_bytes(out: Path) -> None:
    one, two = (out / f"mined-{world}" / "mined.parquet" for world in (1, 2))
    assert one.read_bytes() == two.read_bytes()
