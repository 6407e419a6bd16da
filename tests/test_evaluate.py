"""`tercet evaluate`: what is refused, what is said, and what is in the files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from tercet.data import RetrievalTask, Texts, read_task, text_hash, write_task
from tercet.errors import UserError
from tercet.evaluation import read_comparisons, read_result, run_of, score_runs, search
from tercet.evaluation.results import FORMAT
from tercet.files import write_json
from tercet.mining.search import PAIR_BYTES
from tercet.stages.tasks import Search, check
from tests.conftest import Run, answer, question, write_lines
from tests.test_stages import small_task

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> Path:
    return small_task(pairs, tmp_path_factory.mktemp("data") / "pets", "test")


def same_ids(folder: Path, answers_itself: bool) -> Path:
    """Queries and documents of the same ids, as in ArguAna."""
    ids = [f"x{n}" for n in range(16)]
    shift = 0 if answers_itself else 1
    task = RetrievalTask(
        folder.name,
        "test",
        Texts(ids, [question(n) for n in range(16)]),
        Texts(ids[:8], [question(n) for n in range(8)]),
        {f"x{n}": {f"x{n + shift}": 1} for n in range(8)},
    )
    write_task(task, folder)
    return folder


def test_mistakes_are_one_line_and_write_nothing(
    run: Run, tiny_model: Path, pets: Path, tmp_path: Path
) -> None:
    own = same_ids(tmp_path / "own", answers_itself=True)
    twin = shutil.copytree(tiny_model, tmp_path / "BM25" / "model")
    file, page = pets / "corpus.jsonl", tmp_path / "page"
    write_json(page / "results.json", {})
    for words, said in (
        (("--data", pets, "--depth", 9), "--depth: 9 documents a query do not tell ndcg@10"),
        (("--data", own, "--skip-self"), "own: document 'x0' answers the query of the same id (8"),
        (("--data", pets, "--against", twin), "two models are called 'BM25'"),
        (("--data", pets, "--against", tiny_model), f"{tiny_model}: given twice; name each model"),
        (("--data", pets, "--data", pets), "two tasks are called 'pets.test'"),
        (("--data", pets, "--out", file), f"--out: {file}: cannot write there (it is a file)"),
        (("--data", pets, "--rerank-depth", 5), "--rerank-depth: is of --rerank"),
        (("--data", pets, "--out", pets), f"--out: {pets}: holds a BEIR folder (corpus.jsonl)"),
        (("--data", pets, "--out", page), f"--out: {page}: holds a comparison of"),
        (("--check-with-mteb", "--sts", "x.tsv"), "--check-with-mteb: is of BEIR folders"),
        ((), "nothing to evaluate on"),
    ):
        status, _, err = run("evaluate", tiny_model, *words)
        assert status == 2 and said in err and err.count("\n") == 1, err
    assert not list(tmp_path.rglob("*.run"))


def test_what_others_wrote_is_not_replaced(
    run: Run, tiny_model: Path, pets: Path, tmp_path: Path
) -> None:
    name = tiny_model.parent.name
    newer = {"task_name": "pets", "tercet": {"format": FORMAT + 1}}
    for place, content, said in (
        (f"{name}/pets.test.json", newer, "written by a newer version of tercet"),
        ("BM25/pets.test.json", {"mine": 1}, "not a result of `tercet evaluate`"),
        ("comparisons.json", {"mine": 1}, "not the comparisons of `tercet evaluate`"),
    ):
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        write_json(tmp_path / "results" / place, content)
        status, _, err = run("evaluate", tiny_model, "--data", pets)
        assert status == 2 and said in err and err.startswith("error: --out: "), err
        assert json.loads((tmp_path / "results" / place).read_text()) == content


def test_the_least_depth_tells_what_it_can(
    run: Run, tiny_model: Path, pets: Path, tmp_path: Path
) -> None:
    status, out, err = run("evaluate", tiny_model, "--data", pets, "--depth", 10)
    assert status == 0, err
    found = read_result(tmp_path / "results" / tiny_model.parent.name / "pets.test.json")
    assert found.counts["depth"] == 10
    assert "recall@10" in found.means and not {"recall@100", "map"} & found.means.keys()
    assert "nDCG@10" in out and "MAP" not in out


def test_less_memory_than_one_block_takes_is_refused(
    run: Run, tiny_model: Path, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = read_task(pets)
    least = len(task.queries) * len(task.documents) * PAIR_BYTES  # all of a small task
    check(task, Search(memory=least))
    with pytest.raises(UserError, match="^--search-memory: .+ MB do not hold one block .* pets"):
        check(task, Search(memory=least - 1))
    monkeypatch.setattr("tercet.stages.scoring.load_encoder", lambda *_: 1 / 0)  # it comes first
    words = ("evaluate", tiny_model, "--data", pets, "--out", tmp_path / "out")
    status, _, err = run(*words, "--search-memory", "1")
    assert status == 2 and "--depth 1,000; give 1MB or a lower depth" in err, err
    assert not (tmp_path / "out").exists()
    status, _, err = run(*words, "--against", tmp_path / "absent")
    assert status == 2 and f"error: --against: {tmp_path / 'absent'} does not exist" in err


def test_queries_that_are_not_scored_are_counted_aloud(
    run: Run, tiny_model: Path, pets: Path, tmp_path: Path
) -> None:
    task = read_task(pets)
    first, second, *_ = task.qrels
    few = shutil.copytree(pets, tmp_path / "few")
    rows = [f"{q}\t{d}\t{int(q != second)}" for q in (first, second) for d in task.qrels[q]]
    (few / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n")
    status, _, err = run("evaluate", tiny_model, "--data", few)
    assert status == 0, err
    assert "few: 46 of 48 queries have no judgement in split 'test' and are not scored" in err
    found = read_result(tmp_path / "results" / tiny_model.parent.name / "few.test.json")
    counts = found.counts
    assert (counts["queries"], counts["without_judgement"], counts["without_answer"]) == (1, 46, 1)


def test_prompts_stand_before_the_texts(
    run: Run, tiny_model: Path, pets: Path, tmp_path: Path
) -> None:
    prompts = {"query": "city: ", "document": "the river "}
    words = ("--query-prompt", prompts["query"], "--document-prompt", prompts["document"])
    status, out, err = run("evaluate", tiny_model, "--data", pets, *words)
    assert status == 0, err
    found = read_result(tmp_path / "results" / tiny_model.parent.name / "pets.test.json")
    assert found.prompts == prompts
    task, model = read_task(pets), SentenceTransformer(str(tiny_model), device="cpu")
    asked, shown = (
        np.asarray(model.encode([prompts[role] + text for text in texts]))
        for role, texts in (("query", task.queries.texts), ("document", task.documents.texts))
    )
    want = score_runs(task.qrels, run_of(task, search(task, asked, shown, 100)))["ndcg@10"]
    assert list(found.scores["ndcg@10"].values()) == pytest.approx(want.tolist(), abs=1e-6)
    assert f"{tiny_model.parent.name} puts before each query 'city: ', document 'the river '" in out
    run("evaluate", tiny_model, "--data", pets, "--out", "plain")
    plain = read_result(tmp_path / "plain" / tiny_model.parent.name / "pets.test.json")
    assert plain.scores["ndcg@10"] != found.scores["ndcg@10"]
    status, out, err = run("evaluate", tiny_model, "--data", pets)
    assert status == 0 and "puts before each" not in out
    assert f"pets.test.json: made with prompts {prompts}, is replaced by one with" in err
    assert run("evaluate", tiny_model, "--data", pets)[2].count("is replaced by") == 0


def test_results_of_other_contents_are_kept(
    run: Run, tiny_model: Path, pets: Path, tmp_path: Path
) -> None:
    mine = shutil.copytree(pets, tmp_path / "mine")
    assert run("evaluate", tiny_model, "--data", mine)[0] == 0
    before = {file: file.read_bytes() for file in (tmp_path / "results").rglob("*.json")}
    with (mine / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"_id": "new", "text": "another document"}\n')
    status, _, err = run("evaluate", tiny_model, "--data", mine)
    assert status == 2 and "mine.test.json: of other contents of mine than --data holds now" in err
    assert {file: file.read_bytes() for file in (tmp_path / "results").rglob("*.json")} == before


def test_results_with_and_without_skip_self_are_told_apart(
    run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    folder = same_ids(tmp_path / "same", answers_itself=False)
    other = shutil.copytree(tiny_model, tmp_path / "other")
    assert run("evaluate", other, "--data", folder)[0] == 0
    status, out, err = run("evaluate", tiny_model, "--data", folder, "--skip-self")
    assert status == 0, err
    results = {f.parent.name: read_result(f) for f in (tmp_path / "results").glob("*/*.json")}
    assert {name: found.skip_self for name, found in results.items()} == {
        "other": False,
        "BM25": True,
        tiny_model.parent.name: True,
    }
    assert [(c.model, c.base) for c in read_comparisons(tmp_path / "results")] == [
        (tiny_model.parent.name, "BM25")
    ]
    assert "BM25 and other cannot be compared: --skip-self True against False" in err


def test_skip_self_marks_nothing_where_it_leaves_nothing_out(
    run: Run, tiny_model: Path, pets: Path, tmp_path: Path
) -> None:
    status, _, err = run("evaluate", tiny_model, "--data", pets, "--skip-self")
    assert status == 0 and "pets: no document has the id of a query; --skip-self leaves" in err
    for name in ("BM25", tiny_model.parent.name):
        assert not read_result(tmp_path / "results" / name / "pets.test.json").skip_self


def test_a_second_run_adds_to_the_comparisons(
    run: Run, tiny_model: Path, pets: Path, tmp_path: Path
) -> None:
    name = tiny_model.parent.name
    more = shutil.copytree(pets, tmp_path / "more")
    assert run("evaluate", tiny_model, "--data", pets)[0] == 0
    status, out, err = run("evaluate", tiny_model, "--data", more)
    assert status == 0, err
    found = read_comparisons(tmp_path / "results")
    assert [(c.task, c.model, c.base) for c in found] == [
        ("more", name, "BM25"),
        ("pets", name, "BM25"),
    ]
    assert found[0].holm >= found[0].delta.p
    assert out.count(f"{name} - BM25: nDCG@10") == 1  # of this run's task alone


def config(folder: Path, **data: object) -> Path:
    path = folder / f"config{len(list(folder.iterdir()))}.yaml"
    path.write_text(yaml.safe_dump({"output": "run", **data}))
    return path


def test_leaks_are_looked_for_in_all_that_was_trained_on(
    run: Run, tiny_model: Path, pets: Path, tmp_path: Path
) -> None:
    """Each kind of training data brings one test text more."""
    rows = [{"query": question(0), "positive": "something else"}, {"query": "a", "positive": "b"}]
    train = write_lines(tmp_path / "train.jsonl", [*rows, {"query": "c", "positive": answer(1)}])
    corpus = write_lines(tmp_path / "corpus.jsonl", [{"text": answer(n)} for n in (1, 2)])
    mined = {"query_id": [text_hash("a")], "negative_ids": [[text_hash(answer(1))]]}
    pq.write_table(pa.table(mined), tmp_path / "mined.parquet")
    few = write_lines(tmp_path / "few.jsonl", rows)
    folder = shutil.copytree(pets, tmp_path / "folder")
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "train.tsv")
    shared = {"train": str(few), "corpus": [str(corpus)]}
    student = {"distil": {"teacher": "embedded"}}
    cases = (
        ([train], 1, 1),
        ([few], 1, 0),
        ([config(tmp_path, data={"train": str(few)})], 1, 0),
        ([config(tmp_path, data=shared)], 1, 0),  # the corpus is mined from, and nothing was
        ([config(tmp_path, data=shared | {"mined": str(tmp_path / "mined.parquet")})], 1, 1),
        ([config(tmp_path, data={"corpus": [str(corpus)]}, **student)], 0, 2),
        ([few, config(tmp_path, data={"corpus": [str(corpus)]}, **student)], 1, 2),
        ([folder], 48, 48),
    )
    name = tiny_model.parent.name
    for trained_on, queries, documents in cases:
        words = [word for path in trained_on for word in ("--trained-on", path)]
        status, out, err = run("evaluate", tiny_model, "--data", pets, *words)
        assert status == 0, err
        leak = read_result(tmp_path / "results" / name / "pets.test.json").leakage
        assert leak is not None
        assert (leak.queries_by_hash, leak.documents_by_hash) == (queries, documents), trained_on
        told = " ".join(out.split())
        counts = f"{queries} / {queries} of 48 queries, {documents} / {documents} of 48 answers"
        assert f"pets: seen in training, word for word / mostly: {counts}" in told
        left = "no query is left" if queries == 48 else "nDCG@10 0."
        assert f"without the {len(leak.touched)} queries concerned: " in told and left in told
    assert read_result(tmp_path / "results" / "BM25" / "pets.test.json").leakage is None


def test_training_data_that_is_not_there_is_one_line(
    run: Run, tiny_model: Path, pets: Path, tmp_path: Path
) -> None:
    nothing = config(tmp_path, data={})
    for path, said in (
        ("absent.jsonl", "--trained-on: absent.jsonl: no such file"),
        (nothing, f"--trained-on: {nothing}: this config names neither data.train nor"),
    ):
        status, _, err = run("evaluate", tiny_model, "--data", pets, "--trained-on", path)
        assert status == 2 and said in err and err.count("\n") == 1, err


def test_names_are_what_results_are_filed_under(tmp_path: Path, run: Run, pets: Path) -> None:
    """`a b` and `a_b` would be the same folder."""
    for name in ("a b", "a_b"):
        (tmp_path / name).mkdir()
    status, _, err = run("evaluate", "./a b", "--against", "./a_b", "--data", pets)
    assert status == 2 and "two models are called 'a_b'" in err
