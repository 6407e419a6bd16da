"""`tercet student` and `tercet merge`: what they write, what they say, what they refuse."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from tercet import stages
from tercet.configs import ModelConfig
from tercet.models import encode, load_encoder
from tests.conftest import Run, answer, question

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [question(3), answer(4), "", "zebra"]


def test_trimming_says_what_it_cut(run: Run, tiny_model: Path, pairs: Path) -> None:
    words = ["student", "trim_vocab", f"model.path={tiny_model}", f"data.train={pairs}"]
    words += ["student.vocabulary=90", "output=small"]
    status, out, err = run(*words)
    assert status == 0, err
    assert "90" in out and "parameters" in out and "% of the tokens" in out
    facts = json.loads(Path("small/student.json").read_text())
    assert facts["after"]["tokens"] == 90 < facts["before"]["tokens"]
    assert facts["after"]["megabytes"] < facts["before"]["megabytes"]
    assert 0.5 < facts["covered"] < 1
    model = SentenceTransformer("small/model", device="cpu")
    assert len(model.tokenizer) == 90
    card = Path("small/model/README.md").read_text()
    assert "vocabulary: 90" in card and "| parameters |" in card and "small" in card
    assert yaml.safe_load(Path("small/student.yaml").read_text())["student"]["vocabulary"] == 90
    status, _, err = run(*words)
    assert status == 2 and "small/model exists" in err
    assert run(*words, "overwrite=true")[0] == 0


def test_a_static_student_of_unlabelled_texts(run: Run, tiny_model: Path) -> None:
    Path("texts.txt").write_text("\n".join(map(answer, range(20))), encoding="utf-8")
    words = ["student", "student_static", f"model.path={tiny_model}", "data.train=[]"]
    status, out, err = run(*words, "student.corpus=texts.txt", "student.dims=8", "output=s")
    assert status == 0, err
    model = SentenceTransformer("s/model", device="cpu")
    assert model.get_embedding_dimension() == 8
    ours = encode(load_encoder(ModelConfig(path="s/model")), TEXTS, "query")
    np.testing.assert_allclose(model.encode(TEXTS), ours, atol=1e-6)
    assert "transformer layers" in out
    assert stages.export("s/model", Path("again")).difference < 1e-6


def test_asking_for_nothing_writes_the_same_model(run: Run, tiny_model: Path) -> None:
    status, _, err = run("student", "tiny", f"model.path={tiny_model}", "output=same")
    assert status == 2 and "pairs.jsonl" in err  # what the recipe trains on is not there
    words = [f"model.path={tiny_model}", "data.train=[]", "model.max_length=null", "output=same"]
    status, _, err = run("student", "tiny", *words)
    assert status == 0, err
    whole = SentenceTransformer(str(tiny_model), device="cpu").encode(TEXTS)
    assert np.array_equal(SentenceTransformer("same/model", device="cpu").encode(TEXTS), whole)


MISTAKES = {
    "no such layer": (["student.layers=[0,2]"], "student.layers: .*layers 0 to 1"),
    "no such choice": (["student.layers=odd"], "student.layers: should be all, even, first:3"),
    "a layer twice": (["student.layers=[1,1]"], "student.layers: names a layer twice"),
    "vocabulary too small": (["student.vocabulary=9"], "student.vocabulary: 9 tokens are fewer"),
    "dims too many": (["student.dims=33"], "student.dims: 33 is more than the model's width 32"),
    "no texts": (["student.dims=4", "data.train=[]"], "student.corpus is missing"),
    "no such texts": (["student.dims=4", "student.corpus=absent.txt"], "absent.txt"),
    "too few texts": (["student.dims=20", "student.corpus=few.txt"], "needs more texts"),
    "layers of a static one": (
        ["student.kind=static", "student.layers=even"],
        "layers are chosen for kind: cut",
    ),
    "heads": (["student.scratch.heads=7"], "width 384 cannot be shared by 7 heads"),
    "a shape without its kind": (["student.scratch.layers=1"], "is the shape of kind: scratch"),
    "weights without a table": (["student.sif=0.1"], "sif and centre are of kind: static"),
    "characters of all tokens": (
        ["student.characters=used"],
        "that is cut: set student.vocabulary",
    ),
    "no such model": (["model.path=./absent"], "model.path: ./absent does not exist"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(
    mistake: str, run: Run, tiny_model: Path, pairs: Path
) -> None:
    words, expected = MISTAKES[mistake]
    Path("few.txt").write_text("one\ntwo\n", encoding="utf-8")
    base = [f"model.path={tiny_model}", f"data.train={pairs}", "output=out"]
    status, _, err = run("student", "tiny", *base, "model.max_length=null", *words)
    last = err.strip().splitlines()[-1]
    assert status == 2 and last.startswith("error: ")
    assert re.search(expected, last), last
    assert not Path("out/model").exists()


def test_a_model_without_layers_is_refused(run: Run, tiny_model: Path, pairs: Path) -> None:
    base = [f"data.train={pairs}", "model.max_length=null"]
    static = [*base, f"model.path={tiny_model}", "student.kind=static", "output=s"]
    assert run("student", "tiny", *static)[0] == 0
    for what in ("layers=first:1", "vocabulary=80", "kind=static", "kind=scratch"):
        words = [*base, "model.path=s/model", f"student.{what}", "output=t"]
        status, _, err = run("student", "tiny", *words)
        assert status == 2 and "StaticEmbedding holds no transformer layers" in err, what
    assert run("student", "tiny", *base, "model.path=s/model", "student.dims=8", "output=t")[0] == 0


def test_merge_writes_the_mean(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    tuned = SentenceTransformer(str(tiny_model), device="cpu")
    for parameter in tuned.parameters():
        parameter.data *= 1.1
    tuned.save(str(tmp_path / "tuned"), create_model_card=False)
    status, out, err = run("merge", tiny_model, "tuned", "--weights", "1,3", "--out", "m")
    assert status == 0 and "model: m" in out, err
    merged = SentenceTransformer("m", device="cpu").state_dict()
    for name, tensor in SentenceTransformer(str(tiny_model), device="cpu").state_dict().items():
        if tensor.is_floating_point():
            np.testing.assert_allclose(merged[name], tensor * 1.075, rtol=1e-5)
    assert "| tuned | 3 |" in Path("m/README.md").read_text()
    status, _, err = run("merge", tiny_model, "tuned", "--out", "m")
    assert status == 2 and "m: exists" in err
    status, _, err = run("merge", tiny_model, "tuned", "--out", "tuned", "--overwrite")
    assert status == 2 and "tuned: replacing it would delete tuned" in err
    assert run("merge", tiny_model, "tuned", "--out", "m", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--weights", "1,x"], "--weights: numbers with commas between"),
        (["--weights", "1"], "weights: 1 for 2 models"),
        (["--weights", ""], "--weights: numbers with commas between, got ''"),
        (["--weights", "1e308,1e308"], "weights: their sum must be positive and finite, got inf"),
        (["--weights", "nan,1"], "weights: their sum must be positive and finite, got nan"),
    ],
)
def test_weights_that_do_not_fit(
    run: Run, tiny_model: Path, words: list[str], complaint: str
) -> None:
    status, _, err = run("merge", tiny_model, tiny_model, "--out", "m", *words)
    assert status == 2 and complaint in err and not Path("m").exists()
