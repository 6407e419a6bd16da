"""`tercet pair`: two encoders in one checkpoint, each answering for its role."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tercet import stages
from tercet.configs import ModelConfig, load
from tercet.errors import UserError
from tercet.models import (
    add_dense,
    encode,
    load_encoder,
    model_fingerprint,
    route,
    single_encoder,
    vectors,
)
from tercet.models.layers import keep_layers
from tercet.models.store import stores_folder
from tests.conftest import NAMES, Run, answer, question, write_task

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [question(3), answer(4), "zebra"]
DOCUMENTS = [answer(n) for n in range(len(NAMES))]


@pytest.fixture(scope="module")
def student(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first layer of the tiny model, with a prompt for queries."""
    model = load_encoder(ModelConfig(path=str(tiny_model)))
    keep_layers(model, "first:1")
    model.prompts["query"] = "where: "
    folder = tmp_path_factory.mktemp("student") / "student"
    model.save(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def static(tiny_model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static student of the same width."""
    out = tmp_path_factory.mktemp("static")
    words = [f"model.path={tiny_model}", f"data.train={pairs}", "student.kind=static"]
    stages.student(load("tiny", [f"output={out}", "model.max_length=null", *words]))
    return out / "model"


@pytest.fixture(scope="module")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("animals") / "animals", "test")


@pytest.mark.parametrize("small", ["student", "static"])
def test_each_side_is_the_model_it_was_made_of(
    small: str, tiny_model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(small)
    stages.pair(str(folder), str(tiny_model), tmp_path / "pair")
    queries, documents = (SentenceTransformer(str(p), device="cpu") for p in (folder, tiny_model))
    theirs = SentenceTransformer(str(tmp_path / "pair"), device="cpu")
    ours = load_encoder(ModelConfig(path=str(tmp_path / "pair")))
    one = single_encoder(ours, "query")
    alone = np.concatenate([one(text) for text in TEXTS])
    for found in (theirs.encode_query(TEXTS), encode(ours, TEXTS, "query"), alone):
        np.testing.assert_allclose(found, queries.encode_query(TEXTS), atol=1e-6)
    for found in (theirs.encode_document(TEXTS), encode(ours, TEXTS, "document")):
        np.testing.assert_allclose(found, documents.encode_document(TEXTS), atol=1e-6)


def test_the_store_tells_the_sides_apart_and_shares_the_index(
    student: Path, tiny_model: Path, tmp_path: Path
) -> None:
    stages.pair(str(student), str(tiny_model), tmp_path / "pair")
    small, large, pair = (
        load_encoder(ModelConfig(path=str(p))) for p in (student, tiny_model, tmp_path / "pair")
    )
    prints = [model_fingerprint(model) for model in (small, large, pair)]
    assert len(set(prints)) == 3
    assert [model_fingerprint(route(pair, role)) for role in ("query", "document")] == prints[:2]
    index = vectors(large, DOCUMENTS, "document")
    stored = set(stores_folder().iterdir())
    again = vectors(pair, DOCUMENTS, "document")
    assert again.fingerprint == index.fingerprint and set(stores_folder().iterdir()) == stored
    asked = vectors(pair, DOCUMENTS, "query")
    assert asked.fingerprint != index.fingerprint
    np.testing.assert_allclose(asked[:], encode(small, DOCUMENTS, "query"), atol=1e-6)


def test_a_pair_is_evaluated_beside_both(
    run: Run, student: Path, tiny_model: Path, beir: Path
) -> None:
    status, out, err = run("pair", student, tiny_model, "--out", "pair")
    assert status == 0 and "queries: " in out and "model: pair" in out, err
    card = Path("pair/README.md").read_text()
    assert "| queries | student |" in card and "encode_document" in card
    status, out, err = run(
        "evaluate", "pair", "--data", beir, "--against", student, "--out", "results"
    )
    assert status == 0, err
    found = json.loads(Path("results/pair/animals.test.json").read_text())
    score = found["tercet"]["means"]["ndcg@10"]["mean"]
    small, large = (load_encoder(ModelConfig(path=str(p))) for p in (student, tiny_model))
    asked = [question(n) for n in range(len(NAMES))]
    ranks = encode(small, asked, "query") @ encode(large, DOCUMENTS, "document").T
    place = (ranks > np.diag(ranks)[:, None]).sum(axis=1)
    gains = np.where(place < 10, 1 / np.log2(place + 2), 0)
    assert score == pytest.approx(gains.mean(), abs=1e-6)
    assert found["tercet"]["prompts"] == {"query": "where: ", "document": ""}


def test_what_cannot_be_paired_is_one_line(
    run: Run, student: Path, tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    wide = load_encoder(ModelConfig(path=str(tiny_model)))
    add_dense(wide, torch.ones(48, 32))
    wide.save("wide", create_model_card=False)
    dot = load_encoder(ModelConfig(path=str(tiny_model), normalize=False))
    dot.save("dot", create_model_card=False)
    assert run("pair", student, tiny_model, "--out", "pair")[0] == 0
    for words, complaint in (
        ((student, "wide"), "student gives 32 dimensions and wide 48; train the query model"),
        (("dot", tiny_model), "dot is compared by dot, the other by cosine"),
        (("pair", tiny_model), "pair: pair is a pair of encoders"),
        (("./absent", tiny_model), "pair: ./absent does not exist"),
    ):
        status, _, err = run("pair", *words, "--out", "other")
        last = err.strip().splitlines()[-1]
        assert status == 2 and complaint in last and not Path("other").exists(), last
    status, _, err = run("pair", student, tiny_model, "--out", "pair")
    assert status == 2 and "pair: exists" in err
    words = ["model.path=pair", f"data.train={pairs}", "model.max_length=null", "output=out"]
    for command in ("finetune", "student"):
        status, _, err = run(command, "tiny", *words, "student.layers=all")
        assert status == 2 and "model.path is a pair of encoders" in err, err


def test_a_side_that_cuts_its_vectors_still_does(
    student: Path, tiny_model: Path, tmp_path: Path
) -> None:
    sides = {}
    for name, path in (("small", student), ("large", tiny_model)):
        sides[name] = SentenceTransformer(str(path), device="cpu", truncate_dim=16)
        sides[name].save(str(tmp_path / name), create_model_card=False)
    stages.pair(str(tmp_path / "small"), str(tmp_path / "large"), tmp_path / "pair")
    pair = SentenceTransformer(str(tmp_path / "pair"), device="cpu")
    unit = {"normalize_embeddings": True}
    for found, want in (
        (pair.encode_query(TEXTS), sides["small"].encode_query(TEXTS, **unit)),
        (pair.encode_document(TEXTS), sides["large"].encode_document(TEXTS, **unit)),
    ):
        assert found.shape == (len(TEXTS), 16)
        np.testing.assert_allclose(found, want, atol=1e-6)
    with pytest.raises(UserError, match="student gives 32 dimensions and large 16"):
        stages.pair(str(student), str(tmp_path / "large"), tmp_path / "other")


def test_a_router_without_a_side_is_named(student: Path, tiny_model: Path, tmp_path: Path) -> None:
    stages.pair(str(student), str(tiny_model), tmp_path / "pair")
    pair = load_encoder(ModelConfig(path=str(tmp_path / "pair")))
    del pair[0].sub_modules["query"]  # type: ignore[union-attr]
    with pytest.raises(UserError, match="no route for a query; its routes are document"):
        encode(pair, TEXTS, "query")
