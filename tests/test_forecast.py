"""`tercet plan` tells what a run then takes: tokens, memory; under a launcher too."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tercet.configs import load
from tercet.train import sizing
from tercet.train.scale import workload
from tercet.train.tracking import read_log
from tests.conftest import NAMES, write_lines
from tests.test_finetune import write_mined
from tests.workers.launch import ROOT, run_jobs


def forecast(world: int, out: Path, *words: str, sharded: bool = False) -> dict[str, Any]:
    launch = [*(["--sharded"] if sharded else []), str(world), str(out)]
    subprocess.run(
        [sys.executable, "-m", "tests.workers.forecasts", *launch, *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        check=True,
        timeout=120,
    )
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize("micro_tokens", [4_096, 10**6])  # many micro-batches, one micro-batch
def test_the_peak_of_memory_is_foreseen(
    micro_tokens: int, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run whose steps take several hundred megabytes, all of whose graphs are kept."""
    # By itself glibc keeps some of what was freed, another share each time.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**18))
    random = np.random.default_rng(0)
    lines = [
        {side: " ".join(random.choice(NAMES, 30)) for side in ("query", "positive")}
        for _ in range(1_500)
    ]
    words = [
        f"model.path={tiny_model}",
        f"data.train={write_lines(tmp_path / 'many.jsonl', lines)}",
        "batch.size=1500",
        f"batch.micro_tokens={micro_tokens}",
        "batch.keep_tokens=1000000000",
    ]
    found = forecast(1, tmp_path / "found.json", "tiny", *words)
    recipe = str(ROOT / "configs" / "tiny.yaml")
    settings = [*words, f"output={tmp_path / 'run'}", "train.steps=3"]
    run_jobs([{"world": 1, "recipe": recipe, "set": settings}], tmp_path)
    logged = read_log(tmp_path / "run" / "run.jsonl")
    peak = max(line["peak_megabytes"] for line in logged if "peak_megabytes" in line)
    graphs = found["tokens_per_batch"] * found["bytes_per_token"] / 2**20
    assert graphs > 200
    assert abs(found["peak_megabytes"] - peak) < 0.15 * graphs, (found, peak)


def test_two_processes_foresee_the_same_run(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    words = ("tiny", f"model.path={tiny_model}", f"data.train={pairs}", "batch.micro_tokens=64")
    one, two = (forecast(world, tmp_path / f"{world}.json", *words) for world in (1, 2))
    assert (one["processes"], two["processes"]) == (1, 2)
    for same in ("rows", "steps", "texts_per_batch", "tokens_per_batch", "truncated_share"):
        assert one[same] == two[same]
    assert two["micro_batches"] < one["micro_batches"]
    shards = forecast(2, tmp_path / "shards.json", *words, sharded=True)
    # Matrices that are gathered for a layer go after it: no graph holds them.
    assert shards["bytes_per_token"] == pytest.approx(two["bytes_per_token"], rel=0.1)
    cut = (f"distil.teacher={tiny_model}", "student.layers=[0]")  # one process makes the student
    student = forecast(2, tmp_path / "student.json", *words, *cut)
    assert student["processes"] == 2 and student["bytes_per_token"] < two["bytes_per_token"]


def test_mined_negatives_are_counted(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    words = [f"model.path={tiny_model}", f"data.train={pairs}", "batch.micro_tokens=64"]
    write_mined(tmp_path / "mined.parquet", words)
    mined = [*words, f"data.mined={tmp_path / 'mined.parquet'}", "data.negatives_per_row=2"]
    here = forecast(1, tmp_path / "found.json", "tiny", *mined)
    elsewhere = workload(load("tiny", mined))
    assert np.mean([lengths.sum() for lengths in elsewhere.lengths]) == here["tokens_per_batch"]
    plain = workload(load("tiny", words))
    assert sum(map(len, elsewhere.lengths)) > sum(map(len, plain.lengths))


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({"memory.max": "1000", "memory.current": "700", "memory.stat": "inactive_file 200"}, 500),
        ({"memory.max": "max", "memory.current": "700", "memory.stat": "anon 1"}, sys.maxsize),
        (
            {
                "memory/memory.limit_in_bytes": "900",
                "memory/memory.usage_in_bytes": "950",
                "memory/memory.stat": "cache 5\ntotal_inactive_file 10",
            },
            0,
        ),
        ({}, sys.maxsize),
    ],
)
def test_a_containers_limit_bounds_what_is_free(
    files: dict[str, str], room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(sizing, "CGROUP", tmp_path)
    assert sizing._container_room() == room
