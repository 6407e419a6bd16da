"""Distillation inside the loop: what is learnt, from what, and the same on every process."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor

from tercet import stages
from tercet.configs import Config, ModelConfig, load
from tercet.data import read_training
from tercet.data.batch import Batches, TextBatches
from tercet.errors import UserError
from tercet.models import add_dense, encode, load_encoder
from tercet.models.layers import layer_count
from tercet.train.objective import objective
from tercet.train.rows import batches_of, read_rows
from tercet.train.step import Share
from tercet.train.teacher import load_teacher
from tercet.train.tracking import read_log
from tests.conftest import NAMES, answer, question
from tests.encoders import save_encoder
from tests.workers.launch import ROOT, run_jobs

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def wide(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of 48 dimensions."""
    teacher = load_encoder(ModelConfig(path=str(tiny_model)))
    weight = np.random.default_rng(1).normal(0, 0.2, (48, 32)).astype(np.float32)
    add_dense(teacher, torch.from_numpy(weight))
    folder = tmp_path_factory.mktemp("wide") / "model"
    teacher.save(str(folder), create_model_card=False)
    return folder


def config_of(tiny_model: Path, teacher: Path, pairs: Path, out: Path, *more: str) -> Config:
    where = [f"output={out}", f"model.path={tiny_model}", f"data.train={pairs}"]
    learn = [f"distil.teacher={teacher}", "train.dropout=0.0", "train.learning_rate=0.003"]
    return load("tiny", [*where, *learn, *more])


def texts() -> list[str]:
    return [question(n) for n in range(len(NAMES))] + [answer(n) for n in range(len(NAMES))]


def nearness(model: str | Path, teacher: Path) -> float:
    """Mean cosine of a model's vectors to the teacher's."""
    own, other = (
        encode(load_encoder(ModelConfig(path=str(path))), texts(), "document")
        for path in (model, teacher)
    )
    return float((own * other).sum(axis=1).mean())


def test_a_student_is_cut_and_learns_the_teachers_vectors(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    more = ["student.layers=[0]", "train.steps=40", "train.log_every=1", "batch.size=16"]
    out = tmp_path / "run"
    model = stages.distil(config_of(tiny_model, tiny_model, pairs, out, *more))
    lines = read_log(out / "run.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    assert lines[0]["loss/align"] == lines[0]["loss"]
    assert "in_batch_accuracy" not in lines[0]
    assert nearness(model, tiny_model) > nearness(out / "student" / "model", tiny_model)
    assert json.loads((out / "student" / "student.json").read_text())["after"]["layers"] == 1
    assert layer_count(SentenceTransformer(str(model), device="cpu")) == 1


def test_a_wider_teacher_gets_a_projection_that_is_saved(
    tiny_model: Path, wide: Path, pairs: Path, tmp_path: Path
) -> None:
    more = ["train.steps=60", "batch.size=16"]
    model = stages.distil(config_of(tiny_model, wide, pairs, tmp_path / "run", *more))
    assert nearness(model, wide) > 0.9
    vectors = SentenceTransformer(str(model), device="cpu").encode(texts()[:3])
    assert vectors.shape == (3, 48)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_the_students_tokenizer_may_be_another(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    """Vectors are by text; a student of byte pairs learns those of a teacher of word pieces."""
    student = save_encoder("roberta", tmp_path / "roberta")
    out, more = tmp_path / "run", ["train.steps=60", "batch.size=16"]
    model = stages.distil(config_of(student, tiny_model, pairs, out, *more))
    assert nearness(model, tiny_model) > 0.8
    assert load_encoder(ModelConfig(path=str(model))).get_embedding_dimension() == 32


def test_texts_alone_are_enough(tiny_model: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "texts.txt"
    corpus.write_text("\n".join([*texts(), texts()[0]]), encoding="utf-8")
    where = [
        f"output={tmp_path / 'run'}",
        f"model.path={tiny_model}",
        f"data.corpus=[{corpus}]",
        "data.train=[]",
    ]
    config = load("tiny", [*where, f"distil.teacher={tiny_model}", "student.layers=[1]"])
    model = stages.distil(config)
    assert (model / "modules.json").exists()
    rows = read_rows(config.data)
    assert (len(rows), len(rows.documents)) == (0, len(set(texts())))


def test_an_epoch_draws_each_text_once(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    config = config_of(tiny_model, tiny_model, pairs, tmp_path, "batch.size=10")
    rows = read_training(config.data.train)
    batches = batches_of(config, rows)
    assert isinstance(batches, TextBatches)
    drawn = [batches(step) for step in range(batches.order.steps_per_epoch)]
    queries, documents = (np.concatenate([b[i] for b in drawn]) for i in (1, 2))
    assert sorted(queries) == list(range(len(rows.queries)))
    assert sorted(documents) == list(range(len(rows.documents)))
    assert all(len(b.positives) == 0 for b in drawn)
    paired = config_of(tiny_model, tiny_model, pairs, tmp_path, "distil.infonce=1")
    assert isinstance(batches_of(paired, rows), Batches)


def test_the_loss_is_the_weighted_sum_of_its_terms(
    tiny_model: Path, wide: Path, pairs: Path, tmp_path: Path
) -> None:
    """All terms, on pairs with one in-batch document as a negative, against plain torch."""
    weights = ["distil.infonce=0.5", "distil.align=2", "distil.listwise_kl=3"]
    more = [*weights, "distil.margin_mse=0.25", "distil.relational=0.0", "batch.size=6"]
    config = config_of(tiny_model, wide, pairs, tmp_path, *more)
    rows = read_rows(config.data)
    batch = batches_of(config, rows)(0)
    rivals = np.array([[i, j] for i, j in batch.positives])
    rivals[:, 1] = np.roll(rivals[:, 1], 1)
    batch = batch._replace(negatives=rivals)
    teacher = load_teacher(config, rows, CPU)
    assert teacher is not None
    tq, td = teacher.of(batch.queries, batch.documents, CPU)
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(len(tq) + len(td), 48, generator=generator)

    def sides(raw: Tensor) -> tuple[Tensor, Tensor]:
        unit = F.normalize(raw, dim=1)
        return unit[: len(tq)], unit[len(tq) :]

    def plain(raw: Tensor) -> Tensor:
        q, d = sides(raw)
        scores, opinion = q @ d.T, tq @ td.T
        contrast, kl, margin = [], [], []
        for (i, j), (_, k) in zip(batch.positives, batch.negatives, strict=True):
            contrast.append(F.cross_entropy(scores[i][None] / 0.05, torch.tensor([j])))
            both = torch.tensor([j, k])
            p = (opinion[i, both] / 0.05).softmax(0)
            kl.append((p * (p.log() - (scores[i, both] / 0.05).log_softmax(0))).sum())
            margin.append((scores[i, j] - scores[i, k] - opinion[i, j] + opinion[i, k]) ** 2)
        near = (torch.cat([q, d]) - torch.cat([tq, td])).square().sum(dim=1).mean()
        parts = (torch.stack(terms).mean() for terms in (contrast, kl, margin))
        return sum(w * part for w, part in zip((0.5, 3, 0.25), parts, strict=True)) + 2 * near

    loss = objective(config, batch, 0.05, CPU, None, teacher)
    for world in (1, 3):
        ours, theirs = (raw.clone().requires_grad_() for _ in range(2))
        found = [loss(*sides(ours), Share(rank, world)) for rank in range(world)]
        total = torch.stack([part.loss for part in found]).sum()
        want = plain(theirs)
        torch.testing.assert_close(total, want, rtol=1e-5, atol=1e-6)
        total.backward()
        want.backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
        assert set(found[0].sums) >= {f"loss/{t}" for t in ("infonce", "align", "margin_mse")}


@pytest.mark.parametrize("combine", ["concatenate", "average"])
def test_several_teachers_are_one(
    tiny_model: Path, wide: Path, pairs: Path, tmp_path: Path, combine: str
) -> None:
    second = wide if combine == "concatenate" else tiny_model
    more = [f"distil.teacher=[{tiny_model},{second}]", f"distil.combine={combine}"]
    config = config_of(tiny_model, wide, pairs, tmp_path, *more)
    rows = read_rows(config.data)
    teacher = load_teacher(config, rows, CPU)
    assert teacher is not None and teacher.width == (80 if combine == "concatenate" else 32)
    found = teacher.of(np.array([0, 3]), np.array([1]), CPU)[0]
    own, other = (
        encode(load_encoder(ModelConfig(path=str(p))), [question(0), question(3)], "query")
        for p in (tiny_model, second)
    )
    both = np.hstack([own, other]) / 2**0.5 if combine == "concatenate" else own
    np.testing.assert_allclose(found.numpy(), both, atol=1e-5)


def test_a_teacher_encodes_once(
    tiny_model: Path, wide: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tiny_model, wide, pairs, tmp_path)
    rows = read_rows(config.data)
    load_teacher(config, rows, CPU)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a forward pass")

    monkeypatch.setattr(SentenceTransformer, "forward", never)
    load_teacher(config, rows, CPU)


def test_processes_agree_and_a_killed_run_goes_on(
    tiny_model: Path, wide: Path, pairs: Path, tmp_path: Path
) -> None:
    """The projection trains inside DDP, is checkpointed, and comes back."""
    base = [f"model.path={tiny_model}", f"data.train={pairs}", f"distil.teacher={wide}"]
    terms = ["distil.infonce=1", "distil.relational=1", "loss.learn_temperature=true"]
    some = [*base, *terms, "train.steps=6", "train.save_every=2", "train.learning_rate=0.001"]
    jobs = [
        {
            "world": world,
            "recipe": str(ROOT / "configs" / "tiny.yaml"),
            "set": [f"output={tmp_path / name}", *some],
            "kill_after": kill,
        }
        for name, world, kill in (
            ("one", 1, None),
            ("two", 2, None),
            ("cut", 2, 3),
            ("cut", 2, None),
        )
    ]
    run_jobs(jobs, tmp_path)
    one, two, cut = (
        {
            file: load_file(tmp_path / name / "checkpoints/step-00000006/model" / file)
            for file in ("model.safetensors", "2_Dense/model.safetensors")
        }
        for name in ("one", "two", "cut")
    )
    projection = "2_Dense/model.safetensors"
    assert all(torch.equal(two[f][k], cut[f][k]) for f in two for k in two[f])
    for name, tensor in one[projection].items():
        torch.testing.assert_close(tensor, two[projection][name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (["distil.teacher=null"], "distil.teacher is missing"),
        (["distil.teacher=/no/such/model"], "distil.teacher: .*does not exist"),
        (
            ["distil.teacher=no-such/model"],
            "distil.teacher: no-such/model is no folder, not in the hub's cache",
        ),
        (["distil.teacher=no such model"], "distil.teacher: no such model is neither a folder"),
        (["distil.align=0"], "every weight of it is 0"),
        (["data.train=[]", "distil.infonce=1"], "data.train is missing"),
        (["distil.combine=average"], "distil.combine: average"),
        (["distil.margin_mse=1"], "the rows have none"),
        (["mining.refresh_every=2"], "draws single texts"),
        (["distil.projection=false"], "distil.projection: false, but"),
    ],
)
def test_mistakes_are_one_line(
    tiny_model: Path, wide: Path, pairs: Path, tmp_path: Path, change: list[str], complaint: str
) -> None:
    teachers = f"distil.teacher=[{tiny_model},{wide}]"
    with pytest.raises(UserError, match=complaint):
        stages.distil(config_of(tiny_model, wide, pairs, tmp_path / "run", teachers, *change))
