"""`tercet mine` from files to files in one process: what is left out, and bad input."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from tercet import stages
from tercet.cache import LOCK, locked
from tercet.configs import Config, Source, load
from tercet.data import TrainingSet, read_training, with_mined
from tercet.errors import UserError
from tercet.files import cache_folder
from tercet.models.housekeeping import all_stored
from tercet.train.frozen import load_guide
from tests.conftest import Run, answer, question, write_beir, write_lines
from tests.disk import full_disk

SPLITS = {"train": range(0, 30), "dev": range(28, 36), "test": range(36, 48)}
NO_LIMIT = "mining.relative_margin=null"


@pytest.fixture(scope="session")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_animals(tmp_path_factory.mktemp("beir"))


def write_animals(folder: Path) -> Path:
    """48 animals: 30 are asked for in train, 8 in dev (2 of them in train as well), 12 in test."""
    return write_beir(folder, {split: [(n, n) for n in part] for split, part in SPLITS.items()})


def config(beir: Path, model: Path, out: Path, *more: str) -> Config:
    return load("tiny", settings(beir, model, out, *more))


def settings(beir: Path, model: Path, out: Path, *more: str) -> list[str]:
    return [f"data.train={beir}", f"model.path={model}", f"output={out}", *more]


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
    texts = {"x": f"  {answer(5).upper()}", "of-test": answer(6), "of-train": answer(7)}
    write_lines(dev / "corpus.jsonl", ({"_id": id_, "text": text} for id_, text in texts.items()))
    write_lines(dev / "queries.jsonl", [{"_id": "y", "text": "who?"}])
    for split, document in (("dev", "x"), ("test", "of-test"), ("train", "of-train")):
        lines = f"query-id\tcorpus-id\tscore\ny\t{document}\t1\n"
        (dev / "qrels" / f"{split}.tsv").write_text(lines)
    (dev / "qrels" / "none.tsv").write_text("query-id\tcorpus-id\tscore\ny\tof-train\t0\n")
    train = copy_of(beir, tmp_path / "train") / "qrels"
    (train / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t1\n")
    many = [NO_LIMIT, "mining.negatives=46"]
    for name, held in (("dev", f"evaluation.dev={dev}"), ("test", f"data.held_out=[{dev}]")):
        out = tmp_path / f"mined-{name}"
        told = config(tmp_path / "train", tiny_model, out, *many, held)
        mined = stages.mine(told)
        assert not {"d5", "d6"} & negatives(mined.path) and "d7" in negatives(mined.path)
        summary = json.loads((out / "mining.json").read_text())
        assert summary["held_out"]["marked"] == 2 and mined.counts.candidates == 2 * 46
    allowed = [*many, f"evaluation.dev={dev}", "mining.held_out=true"]
    mined = stages.mine(config(tmp_path / "train", tiny_model, tmp_path / "b", *allowed))
    assert {"d5", "d6"} <= negatives(mined.path)
    kept = Counter(store.kind for store in all_stored())
    assert kept == {"vectors": 2, "candidates": 2}  # searched anew, with the vectors that are there


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


def test_answers_in_other_splits_of_the_folder_are_known(
    beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """The dev split asks train's first question again, under another id, and accepts more."""
    train = copy_of(beir, tmp_path / "train")
    with (train / "queries.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "again", "text": question(0).upper()}) + "\n")
    lines = "q0\td4\t1\nagain\td7\t1\nagain\td40\t1\n"  # d40 is no document of train
    (train / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    many = [NO_LIMIT, "mining.negatives=25"]
    mined = stages.mine(config(train, tiny_model, tmp_path / "a", *many))
    first = pq.read_table(mined.path).to_pylist()[0]
    assert first["query_id"] == "q0" and first["positive_ids"] == ["d0", "d4", "d7"]
    assert not {"d4", "d7"} & set(first["negative_ids"])


def test_lines_in_another_order_give_the_same_negatives(
    beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    plain, train = (copy_of(beir, tmp_path / name) for name in ("plain", "train"))
    lines = (beir / "corpus.jsonl").read_text().splitlines(keepends=True)
    (train / "corpus.jsonl").write_text("".join(lines[i * 7 % 48] for i in range(48)))
    drawn = [NO_LIMIT, "mining.sampling=random"]
    one, other = (
        pq.read_table(stages.mine(config(data, tiny_model, tmp_path / name, *drawn)).path)
        for name, data in (("a", plain), ("b", train))
    )
    same = ["query_id", "positive_ids", "negative_ids", "negative_ranks"]
    assert one.select(same).to_pylist() == other.select(same).to_pylist()


def test_ids_of_two_folders_are_not_taken_for_one_another(tiny_model: Path, tmp_path: Path) -> None:
    """Both number their texts 0, 1, ...; which keeps its ids depends on the order of sources."""
    for name, first in (("a", 0), ("b", 20)):
        (tmp_path / name / "qrels").mkdir(parents=True)
        for file, text in (("corpus", answer), ("queries", question)):
            rows = ({"_id": str(n), "text": text(first + n)} for n in range(12))
            write_lines(tmp_path / name / f"{file}.jsonl", rows)
        lines = "".join(f"{n}\t{n}\t1\n" for n in range(12))
        (tmp_path / name / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")

    def rows_of(*names: str) -> TrainingSet:
        return read_training([Source(path=str(tmp_path / name)) for name in names])

    both = f"data.train=[{tmp_path / 'a'},{tmp_path / 'b'}]"
    mined = stages.mine(config(tmp_path, tiny_model, tmp_path / "out", NO_LIMIT, both))
    taken = with_mined(rows_of("a", "b"), mined.path)
    assert all(len(taken.negatives[row]) == 4 for row in range(24))
    for names in (("b", "a"), ("b",)):
        with pytest.raises(UserError, match="was another text when this was mined; mine again"):
            with_mined(rows_of(*names), mined.path)


def test_a_guide_finds_the_vectors_that_mining_has_stored(
    beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    guide = f"loss.false_negatives.guide={tiny_model}"
    same = ["model.max_length=null", "model.prompts.query=null", "model.prompts.document=null"]
    settled = config(beir, tiny_model, tmp_path / "a", NO_LIMIT, guide, *same)
    stages.mine(settled)
    stores = sorted(path.name for path in (cache_folder() / "vectors").iterdir())
    found = load_guide(settled, read_training(settled.data.train), torch.device("cpu"))
    assert found is not None and len(found.documents) == 30
    assert sorted(path.name for path in (cache_folder() / "vectors").iterdir()) == stores


def test_a_second_model_may_have_a_prompt_and_a_length_of_its_own(
    beir: Path, tiny_model: Path, other_model: Path, tmp_path: Path
) -> None:
    told = f"{{path: {other_model}, max_length: 9, prompts: {{query: 'the '}}}}"
    stages.mine(config(beir, tiny_model, tmp_path / "a", f"mining.sources=[model,{told}]"))
    models = json.loads((tmp_path / "a" / "mining.json").read_text())["provenance"]["models"]
    assert models["model"]["prompts"] == {"query": "", "document": ""}
    second = models[str(other_model)]
    assert second["prompts"]["query"] == "the " and second["max_length"] == 9
    assert "the " in (tmp_path / "a" / "mining.html").read_text()


@pytest.mark.parametrize(
    ("room", "file", "left"), [(100, "mine.yaml", set()), (8000, "mined.parquet", {"mine.yaml"})]
)
def test_a_full_disk_is_one_line(
    room: int, file: str, left: set[str], beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Vectors and lists are there from a run before."""
    mined = stages.mine(config(beir, tiny_model, tmp_path / "a")).path
    assert mined.with_name("mine.yaml").stat().st_size < 8000 < mined.stat().st_size
    complaint = pytest.raises(UserError, match=f"b/{file}: cannot be written .*File too")
    with full_disk(room), complaint:
        stages.mine(config(beir, tiny_model, tmp_path / "b"))
    assert {path.name for path in (tmp_path / "b").iterdir()} - {LOCK} == left


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}


@pytest.mark.parametrize("at", ["mined.parquet", "mining.json", "mining.html"])
def test_the_same_command_goes_on_after_a_kill_and_repeats_the_end(
    at: str, beir: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed as it writes each of its files, alone or over an older set."""
    plain, lax = Path.replace, config(beir, tiny_model, tmp_path / "run", NO_LIMIT)
    stages.mine(lax)
    first = files(tmp_path / "run")
    strict = config(beir, tiny_model, tmp_path / "run", NO_LIMIT, "mining.negatives=2")

    def dying(path: Path, target: Path) -> Path:
        if Path(target).name == at:
            raise KeyboardInterrupt
        return plain(path, target)

    with pytest.raises(UserError, match="mined.parquet exists; choose another"):
        stages.mine(strict)
    assert files(tmp_path / "run") == first
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", dying)
        stages.mine(strict.model_copy(update={"overwrite": True}))
    with pytest.raises(UserError, match="mined.parquet exists; choose another"):
        stages.mine(lax)
    again = stages.mine(strict)
    whole = files(tmp_path / "run")
    assert whole["mined.parquet"] != first["mined.parquet"] and whole.keys() == first.keys()
    with monkeypatch.context() as patch:
        patch.setattr("tercet.models.store.encode_parts", lambda *_: pytest.fail("encoded"))
        assert stages.mine(strict) == again
    assert files(tmp_path / "run") == whole
    again.path.write_bytes(again.path.read_bytes()[:-1])
    assert stages.mine(strict) == again and files(tmp_path / "run") == whole


def test_a_recipe_of_ones_own_is_not_replaced(beir: Path, tiny_model: Path, tmp_path: Path) -> None:
    text = "# mine\noutput: .\n"
    (tmp_path / "mine.yaml").write_text(text)
    for more in ("overwrite=false", "overwrite=true"):
        with pytest.raises(UserError, match="mine.yaml is not of a run, which would replace it"):
            stages.mine(config(beir, tiny_model, tmp_path, more))
    assert (tmp_path / "mine.yaml").read_text() == text
    assert not (tmp_path / "mined.parquet").exists()


def test_the_command_says_when_nothing_is_left(
    run: Run, beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    rules = ["mining.max_score=-2", "mining.too_few=drop"]
    status, out, _ = run("mine", "tiny", *settings(beir, tiny_model, tmp_path / "a", *rules))
    assert status == 0 and out.startswith("0 negatives for 30 queries (30 got none)\n")
    assert "30 queries had too few and are left out of training\n" in out
    assert "no negative was kept: loosen the rules" in out


def test_two_at_once_in_one_folder_are_one_too_many(
    beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    told = config(beir, tiny_model, tmp_path / "run")
    with locked(tmp_path / "run"), pytest.raises(UserError, match="another run is at work in"):
        stages.mine(told)
    assert stages.mine(told).path.exists()


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


def copy_of(beir: Path, folder: Path) -> Path:
    """The folder without its other splits."""
    (folder / "qrels").mkdir(parents=True)
    for file in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv"):
        (folder / file).write_bytes((beir / file).read_bytes())
    return folder


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
    broken = copy_of(beir, tmp_path / "broken")
    change(broken)
    with pytest.raises(UserError, match=complaint) as error:
        stages.mine(config(broken, tiny_model, tmp_path / "a"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a" / "mined.parquet").exists()


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("mining.sources=[model,./absent]", "mining.sources: ./absent does not exist"),
        ("mining.sources=[model,BM25]", "there is no 'BM25'; did you mean 'bm25'"),
        ("mining.sources=modle", "there is no 'modle'; did you mean 'model'"),
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
