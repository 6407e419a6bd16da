"""`tercet mine` in processes of their own, one and two: the same bytes, and nothing paid twice."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.test_mine_stage import NO_LIMIT, settings, write_animals
from tests.workers.launch import ROOT


@pytest.fixture(scope="module")
def launched(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    other_model: Path,
    judge: Path,
) -> tuple[Path, dict[str, Any]]:
    """The folder of several runs, in processes of their own, and what each counted."""
    folder = tmp_path_factory.mktemp("launched")
    beir = write_animals(folder / "animals")
    every = [
        NO_LIMIT,
        "mining.sources=[model,bm25]",
        "mining.depth=20",
        "mining.sampling=softmax",
        "mining.too_few=fill",
        "mining.near_duplicate=0.999",
        f"mining.rescore.model={judge}",
        "mining.rescore.depth=9",
        "mining.rescore.relabel=true",
        "mining.rescore.relabel_above=0.6",
    ]
    stricter = ["mining.skip=2", "mining.rescore.veto_margin=-0.1"]

    def job(name: str, world: int, cache: str, model: Path, out: str, *more: str) -> dict[str, Any]:
        told = settings(beir, model, folder / out, *every, *more)
        place = {"name": name, "world": world, "cache": str(folder / cache), "out": str(folder)}
        return place | {"recipe": "tiny", "set": told}

    jobs = [
        job("one", 1, "cache-1", tiny_model, "one"),
        job("two", 2, "cache-2", tiny_model, "two"),
        job("again", 2, "cache-1", tiny_model, "again"),
        job("stricter", 1, "cache-1", tiny_model, "stricter", *stricter),
        job("other", 1, "cache-1", other_model, "other"),
        job("repeated", 2, "cache-1", tiny_model, "again"),
        job("refused", 2, "cache-1", tiny_model, "one", "mining.negatives=3"),
    ]
    for world in (1, 2):  # each with a cache of its own: nothing is read from the other
        more = [NO_LIMIT, f"mining.sources=[model,{other_model}]"]
        if find_spec("faiss"):
            more.append("mining.index=hnsw")
        told = settings(beir, tiny_model, folder / f"models-{world}", *more)
        place = {"name": f"models-{world}", "world": world, "out": str(folder)}
        cache = str(folder / f"cache-models-{world}")
        jobs.append(place | {"cache": cache, "recipe": "tiny", "set": told, "smallest": 8})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    subprocess.run(
        [sys.executable, "-m", "tests.workers.mining", str(folder / "jobs.json")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        check=True,
        timeout=300,
    )
    return folder, {p.stem: json.loads(p.read_text()) for p in folder.glob("[!j]*.json")}


def test_one_and_two_processes_write_the_same_bytes(launched: tuple[Path, dict[str, Any]]) -> None:
    folder, found = launched
    for file in ("mined.parquet", "mining.json", "mining.html"):
        assert (folder / "one" / file).read_bytes() == (folder / "two" / file).read_bytes()
    for what in ("kept", "queries", "texts", "pairs"):
        assert found["one"][what] == found["two"][what]
    assert found["one"]["queries"] == 30
    assert 60 < found["one"]["kept"] < 4 * 30  # of some queries the judge refuses nearly all


def test_an_index_and_a_second_model_give_the_same_bytes_too(
    launched: tuple[Path, dict[str, Any]],
) -> None:
    folder, found = launched
    for file in ("mined.parquet", "mining.json", "mining.html"):
        one, two = (folder / f"models-{world}" / file for world in (1, 2))
        assert one.read_bytes() == two.read_bytes()
    assert found["models-1"]["texts"] == found["models-2"]["texts"] > found["one"]["texts"]
    summary = json.loads((folder / "models-1" / "mining.json").read_text())
    assert len(summary["recall"]) == (2 if find_spec("faiss") else 0)


def test_a_second_run_pays_for_nothing(launched: tuple[Path, dict[str, Any]]) -> None:
    folder, found = launched
    paid = ("texts", "searches", "pairs")
    assert all(found["one"][name] > 0 for name in paid)
    assert [found["again"][name] for name in paid] == [0, 0, 0]
    assert found["repeated"] == found["again"]
    for file in ("mined.parquet", "mining.json"):
        assert (folder / "one" / file).read_bytes() == (folder / "again" / file).read_bytes()


def test_other_rules_pay_for_nothing_but_what_fills_the_lists(
    launched: tuple[Path, dict[str, Any]],
) -> None:
    _, found = launched
    assert [found["stricter"][name] for name in ("texts", "searches")] == [0, 0]
    assert 0 < found["stricter"]["kept"] < found["one"]["kept"]
    assert found["stricter"]["pairs"] < found["one"]["pairs"] / 2


def test_other_weights_share_nothing_but_pairs(launched: tuple[Path, dict[str, Any]]) -> None:
    _, found = launched
    assert [found["other"][name] for name in ("texts", "searches")] == [
        found["one"][name] for name in ("texts", "searches")
    ]


def test_every_process_says_why_it_stops(launched: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = launched
    said = [(folder / f"refused-{rank}.txt").read_text() for rank in range(2)]
    assert said[0] == said[1] and said[0].endswith("choose another folder or say overwrite=true")
