"""`tercet mine` from files to files: in one process and in two, again, and with bad input."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tercet import stages
from tercet.configs import Config, load
from tercet.data import read_training, with_mined
from tercet.errors import UserError
from tests.conftest import NAMES, answer, question, write_lines

ROOT = Path(__file__).resolve().parent.parent
SPLITS = {"train": range(0, 30), "dev": range(28, 36), "test": range(36, 48)}
NO_LIMIT = "mining.relative_margin=null"


@pytest.fixture(scope="session")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 animals: 30 are asked for in train, 8 in dev (2 of them in train as well), 12 in test."""
    folder = tmp_path_factory.mktemp("beir")
    count = range(len(NAMES))
    write_lines(folder / "corpus.jsonl", ({"_id": f"d{n}", "text": answer(n)} for n in count))
    write_lines(folder / "queries.jsonl", ({"_id": f"q{n}", "text": question(n)} for n in count))
    (folder / "qrels").mkdir()
    for split, numbers in SPLITS.items():
        lines = [f"q{n}\td{n}\t1\n" for n in numbers]
        (folder / "qrels" / f"{split}.tsv").write_text(
            "query-id\tcorpus-id\tscore\n" + "".join(lines)
        )
    return folder


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model, one of its weights a little off."""
    model = SentenceTransformer(str(tiny_model), device="cpu")
    with torch.no_grad():
        next(model.parameters())[9, 3] += 0.25
    folder = tmp_path_factory.mktemp("other") / "model"
    model.save(str(folder), create_model_card=False)
    return folder


def config(beir: Path, model: Path, out: Path, *more: str) -> Config:
    return load("tiny", settings(beir, model, out, *more))


def settings(beir: Path, model: Path, out: Path, *more: str) -> list[str]:
    return [f"data.train={beir}", f"model.path={model}", f"output={out}", *more]


@pytest.fixture(scope="module")
def launched(
    tmp_path_factory: pytest.TempPathFactory,
    beir: Path,
    tiny_model: Path,
    other_model: Path,
    judge: Path,
) -> tuple[Path, dict[str, Any]]:
    """The folder of several runs, in processes of their own, and what each counted."""
    folder = tmp_path_factory.mktemp("launched")
    every = [
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
    stricter = ["mining.relative_margin=0.5", "mining.rescore.veto_margin=-0.1"]

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
        job("refused", 2, "cache-1", tiny_model, "one"),
    ]
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
    assert found["one"]["kept"] == 4 * 30 == 4 * found["one"]["queries"]


def test_a_second_run_pays_for_nothing(launched: tuple[Path, dict[str, Any]]) -> None:
    folder, found = launched
    paid = ("texts", "searches", "pairs")
    assert all(found["one"][name] > 0 for name in paid)
    assert [found["again"][name] for name in paid] == [0, 0, 0]
    for file in ("mined.parquet", "mining.json"):
        assert (folder / "one" / file).read_bytes() == (folder / "again" / file).read_bytes()
    assert found["stricter"]["kept"] == 4 * 30


def test_other_rules_pay_for_nothing_but_what_fills_the_lists(
    launched: tuple[Path, dict[str, Any]],
) -> None:
    _, found = launched
    assert [found["stricter"][name] for name in ("texts", "searches")] == [0, 0]
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


def negatives(path: Path) -> set[str]:
    return {id_ for line in pq.read_table(path).to_pylist() for id_ in line["negative_ids"]}


def test_documents_of_other_splits_are_never_mined_unless_told(
    beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    unseen = {f"d{n}" for n in range(30, 48)}
    many = [NO_LIMIT, "mining.negatives=20"]
    mined = stages.mine(config(beir, tiny_model, tmp_path / "a", *many))
    assert not negatives(mined.path) & unseen
    summary = json.loads((tmp_path / "a" / "mining.json").read_text())
    assert summary["held_out"]["left_out"] == 18 and summary["documents"] == 30

    told = f"data.train=[{{path: {beir}, other_splits: true}}]"
    everything = config(beir, tiny_model, tmp_path / "b", *many, told)
    mined = stages.mine(everything)
    assert len(negatives(mined.path) & unseen) > 5
    rows = with_mined(read_training(everything.data.train), mined.path)
    assert len(rows.documents) == 48


def test_answers_of_the_dev_set_are_left_alone_wherever_they_stand(
    beir: Path, pairs: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """A BEIR folder gives the corpus; dev is another folder with some of the same texts."""
    dev = tmp_path / "dev"
    (dev / "qrels").mkdir(parents=True)
    write_lines(dev / "corpus.jsonl", [{"_id": "x", "text": f"  {answer(5).upper()}"}])
    write_lines(dev / "queries.jsonl", [{"_id": "y", "text": "who?"}])
    (dev / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\ny\tx\t1\n")
    (train := tmp_path / "train" / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (tmp_path / "train" / name).write_bytes((beir / name).read_bytes())
    (train / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t1\n")
    many = [NO_LIMIT, "mining.negatives=46", f"evaluation.dev={dev}"]
    mined = stages.mine(config(tmp_path / "train", tiny_model, tmp_path / "a", *many))
    assert "d5" not in negatives(mined.path) and mined.counts.dropped["held_out"] == 2
    allowed = [*many, "mining.held_out=true"]
    mined = stages.mine(config(tmp_path / "train", tiny_model, tmp_path / "b", *allowed))
    assert "d5" in negatives(mined.path)


def test_positives_of_other_files_are_known(beir: Path, tiny_model: Path, tmp_path: Path) -> None:
    more = write_lines(
        tmp_path / "more.jsonl", [{"query": question(0).upper(), "positive": answer(7)}]
    )
    mined = stages.mine(
        config(
            beir,
            tiny_model,
            tmp_path / "a",
            NO_LIMIT,
            "mining.negatives=30",
            f"mining.known={more}",
        )
    )
    first = pq.read_table(mined.path).to_pylist()[0]
    assert first["positive_ids"] == ["d0", "d7"] and len(first["negative_ids"]) == 28


def test_two_models_are_fused_and_the_second_estimates(
    beir: Path, tiny_model: Path, other_model: Path, tmp_path: Path
) -> None:
    source = f"mining.sources=[model,{other_model}]"
    stages.mine(config(beir, tiny_model, tmp_path / "a", NO_LIMIT, source))
    summary = json.loads((tmp_path / "a" / "mining.json").read_text())
    assert summary["false_negatives"]["judge"] == str(other_model)
    assert summary["false_negatives"]["hits"] == 300
    assert "ranks" in (tmp_path / "a" / "mining.html").read_text()


def test_a_mined_set_trains(beir: Path, tiny_model: Path, tmp_path: Path) -> None:
    mined = stages.mine(config(beir, tiny_model, tmp_path / "a", NO_LIMIT))
    trained = stages.finetune(
        config(beir, tiny_model, tmp_path / "b", f"data.mined={mined.path}", "train.steps=2")
    )
    assert (trained / "modules.json").exists()


def line(path: Path, number: int, change: Callable[[dict[str, Any]], Any]) -> None:
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    change(lines[number])
    write_lines(path, lines)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda f: line(f / "corpus.jsonl", 3, lambda d: d.update(_id="d2")), "duplicate|already"),
        (lambda f: line(f / "corpus.jsonl", 3, lambda d: d.update(text=" ")), "line 4: .* empty"),
        (
            lambda f: (f / "qrels" / "train.tsv").open("a").write("q1\tgone\t1\n"),
            "line 32: corpus-id 'gone' is in no text file",
        ),
    ],
)
def test_bad_input_is_one_line(
    beir: Path, tiny_model: Path, tmp_path: Path, change: Callable[[Path], Any], complaint: str
) -> None:
    broken = tmp_path / "broken"
    (broken / "qrels").mkdir(parents=True)
    for file in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv"):
        (broken / file).write_bytes((beir / file).read_bytes())
    change(broken)
    with pytest.raises(UserError, match=complaint) as error:
        stages.mine(config(broken, tiny_model, tmp_path / "a"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a" / "mined.parquet").exists()


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("mining.sources=[model,./absent]", "mining.sources: ./absent does not exist"),
        ("mining.rescore.model=./absent", "mining.rescore.model: ./absent does not exist"),
        ("mining.known=absent.jsonl", "absent.jsonl: no such file"),
        ("data.train=[]", "data.train is missing"),
    ],
)
def test_what_is_not_there_is_named_before_any_work(
    beir: Path, tiny_model: Path, tmp_path: Path, setting: str, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        stages.mine(config(beir, tiny_model, tmp_path / "a", setting))
