"""Distillation inside the loop: what is learnt, from what, and the same on every process."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor

from tercet import stages
from tercet.configs import Config, ModelConfig, Prompts, load, save
from tercet.data import read_training
from tercet.data.batch import Batches, TextBatches
from tercet.errors import UserError
from tercet.losses import relational
from tercet.models import add_dense, encode, load_encoder
from tercet.models.layers import layer_count
from tercet.models.store import stores_folder
from tercet.train.frozen import load_teacher
from tercet.train.objective import objective
from tercet.train.rows import batches_of, read_rows
from tercet.train.step import Share
from tercet.train.tracking import read_log
from tests.conftest import NAMES, Run, answer, question
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


def test_models_that_cut_their_vectors_teach_and_learn_what_is_left(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    cut = SentenceTransformer(str(tiny_model), device="cpu", truncate_dim=16)
    cut.save(str(tmp_path / "cut"), create_model_card=False)
    for student, teacher, width in (("cut", "cut", 16), ("cut", "whole", 32), ("whole", "cut", 16)):
        paths = {"cut": tmp_path / "cut", "whole": tiny_model}
        out = tmp_path / f"{student}-{teacher}"
        more = ["train.steps=40", "batch.size=16"]
        config = config_of(paths[student], paths[teacher], pairs, out, *more)
        model = stages.distil(config)
        lines = read_log(out / "run.jsonl")
        assert lines[-1]["loss"] < 0.1, (student, teacher)
        assert SentenceTransformer(str(model), device="cpu").encode(texts()[:2]).shape == (2, width)


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
    weights += ["distil.margin_mse=0.25", "distil.relational=0.125", "distil.relations.gram=50"]
    more = [*weights, "distil.student_temperature=0.1", "batch.size=6"]
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
            kl.append((p * (p.log() - (scores[i, both] / 0.1).log_softmax(0))).sum())
            margin.append((scores[i, j] - scores[i, k] - opinion[i, j] + opinion[i, k]) ** 2)
        near = (torch.cat([q, d]) - torch.cat([tq, td])).square().sum(dim=1).mean()
        parts = (torch.stack(terms).mean() for terms in (contrast, kl, margin))
        alike = relational(torch.cat([q, d]), torch.cat([tq, td]), gram=50)
        paired = sum(w * part for w, part in zip((0.5, 3, 0.25), parts, strict=True))
        return paired + 2 * near + 0.125 * alike

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
        terms = ("infonce", "align", "relational", "listwise_kl", "margin_mse")
        assert set(found[0].sums) >= {f"loss/{t}" for t in terms}


def test_every_width_learns_from_the_teacher(
    tiny_model: Path, wide: Path, pairs: Path, tmp_path: Path
) -> None:
    """A prefix learns the teacher's prefix by align, and all of its similarities by relational."""
    dims = "loss.matryoshka={dims: [48, 16], weights: [1, 0.5]}"
    more = [dims, "distil.relational=0.5", "distil.relations.margin=0.1", "batch.size=8"]
    config = config_of(tiny_model, wide, pairs, tmp_path, *more)
    rows = read_rows(config.data)
    batch = batches_of(config, rows)(0)
    teacher = load_teacher(config, rows, CPU)
    assert teacher is not None
    want = torch.cat(teacher.of(batch.queries, batch.documents, CPU))
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(len(want), 48, generator=generator)

    def plain(raw: Tensor) -> Tensor:
        total = torch.zeros(())
        for width, weight in ((48, 1.0), (16, 0.5)):
            own = F.normalize(raw[:, :width], dim=1)
            near = (own - F.normalize(want[:, :width], dim=1)).square().sum(dim=1).mean()
            cosine = 10.0 if width == 48 else 0.0
            alike = relational(own, want, cosine=cosine, margin=0.1)
            total = total + weight * (near + 0.5 * alike)
        return total

    loss = objective(config, batch, 0.05, CPU, None, teacher)
    ours, theirs = (raw.clone().requires_grad_() for _ in range(2))
    unit = F.normalize(ours, dim=1)
    found = loss(unit[: len(batch.queries)], unit[len(batch.queries) :], Share(0, 1))
    torch.testing.assert_close(found.loss, plain(theirs), rtol=1e-5, atol=1e-6)
    found.loss.backward()
    plain(theirs).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def second(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of 32 dimensions."""
    model = load_encoder(ModelConfig(path=str(tiny_model)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    folder = tmp_path_factory.mktemp("second") / "model"
    model.save(str(folder), create_model_card=False)
    return folder


@pytest.mark.parametrize("combine", ["concatenate", "average"])
def test_several_teachers_are_one(
    tiny_model: Path, wide: Path, second: Path, pairs: Path, tmp_path: Path, combine: str
) -> None:
    other_path = wide if combine == "concatenate" else second
    more = [f"distil.teacher=[{tiny_model},{other_path}]", f"distil.combine={combine}"]
    config = config_of(tiny_model, wide, pairs, tmp_path, *more)
    rows = read_rows(config.data)
    teacher = load_teacher(config, rows, CPU)
    assert teacher is not None and teacher.width == (80 if combine == "concatenate" else 32)
    found = teacher.of(np.array([0, 3]), np.array([1]), CPU)[0]
    own, other = (
        encode(load_encoder(ModelConfig(path=str(p))), [question(0), question(3)], "query")
        for p in (tiny_model, other_path)
    )
    both = np.hstack([own, other]) if combine == "concatenate" else own + other
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    np.testing.assert_allclose(found.numpy(), both, atol=1e-5)


def test_a_teacher_reads_texts_as_it_is_told(
    tiny_model: Path, wide: Path, pairs: Path, tmp_path: Path
) -> None:
    told = "prompts: {query: 'where: '}, max_length: 8, dtype: bfloat16"
    teachers = f"distil.teacher=[{{path: {tiny_model}, {told}}}, {tiny_model}]"
    config = config_of(tiny_model, wide, pairs, tmp_path, teachers)
    assert load(str(saved(config, tmp_path / "config.yaml"))) == config
    teacher = load_teacher(config, read_rows(config.data), CPU)
    assert teacher is not None
    found = teacher.of(np.array([0, 3]), np.array([1]), CPU)
    prompts, asked = Prompts(query="where: "), [question(0), question(3)]
    first = load_encoder(
        ModelConfig(path=str(tiny_model), prompts=prompts, max_length=8, dtype="bfloat16")
    )
    other = load_encoder(ModelConfig(path=str(tiny_model)))
    for side, texts, role in ((found[0], asked, "query"), (found[1], [answer(1)], "document")):
        both = np.hstack([encode(m, texts, role) for m in (first, other)])  # type: ignore[arg-type]
        both /= np.linalg.norm(both, axis=1, keepdims=True)
        np.testing.assert_allclose(side.numpy(), both, atol=1e-3)
    assert np.abs(encode(first, asked, "query") - encode(other, asked, "query")).max() > 0.01


def saved(config: Config, path: Path) -> Path:
    save(config, path)
    return path


def test_only_what_pairs_need_is_encoded(
    tiny_model: Path, wide: Path, pairs: Path, tmp_path: Path
) -> None:
    """Of a large corpus the documents that rows name; all of it if it is stored anyway."""
    corpus = tmp_path / "more.txt"
    corpus.write_text("\n".join(["a zebra", "a cow", *map(answer, range(9))]), encoding="utf-8")
    more = [f"data.corpus=[{corpus}]", "distil.infonce=1"]
    config = config_of(tiny_model, wide, pairs, tmp_path, *more)
    rows = read_rows(config.data)
    assert len(rows.documents) == len(NAMES) + 2
    wanted = np.array([5, 0, 47])
    some = load_teacher(config, rows, CPU)
    stores = sorted(p.name for p in stores_folder().iterdir() if p.is_dir())
    assert len(stores) == 2  # the queries, and the documents of the rows
    load_teacher(config_of(tiny_model, wide, pairs, tmp_path, more[0]), rows, CPU)
    every = load_teacher(config, rows, CPU)
    assert some is not None and every is not None and some.width == every.width == 48
    seen = [teacher.of(wanted, wanted, CPU) for teacher in (some, every)]
    for ours, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    texts = [rows.documents.texts[i] for i in wanted]
    plain = encode(load_encoder(ModelConfig(path=str(wide))), texts, "document")
    np.testing.assert_allclose(seen[0][1].numpy(), plain, atol=1e-6)
    assert sum(p.is_dir() for p in stores_folder().iterdir()) == 3


def test_queries_without_an_answer_are_learnt_as_queries(
    tiny_model: Path, wide: Path, pairs: Path, tmp_path: Path
) -> None:
    file = tmp_path / "asked.txt"
    file.write_text(f"where is the zebra\n{question(0)}\n", encoding="utf-8")
    config = config_of(tiny_model, wide, pairs, tmp_path, f"data.queries=[{file}]")
    rows = read_rows(config.data)
    assert rows.queries.texts == [*map(question, range(len(NAMES))), "where is the zebra"]
    assert (len(rows), len(rows.documents)) == (len(NAMES), len(NAMES))
    batches = batches_of(config, rows)
    drawn = [batches(step).queries for step in range(batches.order.steps_per_epoch)]
    assert sorted(np.concatenate(drawn)) == list(range(len(NAMES) + 1))


def forbid_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a forward pass")

    monkeypatch.setattr(SentenceTransformer, "forward", never)


def test_a_teacher_encodes_once(
    tiny_model: Path, wide: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tiny_model, wide, pairs, tmp_path)
    rows = read_rows(config.data)
    load_teacher(config, rows, CPU)
    forbid_forward_passes(monkeypatch)
    load_teacher(config, rows, CPU)


def test_processes_agree_and_a_killed_run_goes_on(
    tiny_model: Path, wide: Path, pairs: Path, tmp_path: Path
) -> None:
    """The projection trains inside DDP and FSDP, is checkpointed, and comes back."""
    base = [f"model.path={tiny_model}", f"data.train={pairs}", f"distil.teacher={wide}"]
    terms = ["distil.infonce=1", "distil.relational=1", "loss.learn_temperature=true"]
    some = [*base, *terms, "train.steps=6", "train.save_every=2", "train.learning_rate=0.001"]
    jobs = [
        {
            "world": world,
            "recipe": str(ROOT / "configs" / "tiny.yaml"),
            "set": [f"output={tmp_path / name}", *some],
            "kill_after": kill,
            "sharded": name == "sharded",
            "weights": None if name == "sharded" else str(tmp_path / f"{name}-rank"),
        }
        for name, world, kill in (
            ("one", 1, None),
            ("two", 2, None),
            ("cut", 2, 3),
            ("cut", 2, None),
            ("sharded", 2, None),
        )
    ]
    run_jobs(jobs, tmp_path)
    projection = "2_Dense/model.safetensors"
    one, two, cut, sharded = (
        {
            file: load_file(tmp_path / name / "checkpoints/step-00000006/model" / file)
            for file in ("model.safetensors", "2_Dense/model.safetensors")
        }
        for name in ("one", "two", "cut", "sharded")
    )
    assert all(torch.equal(two[f][k], cut[f][k]) for f in two for k in two[f])
    for name in ("two", "cut"):  # every rank ends with the same bits, the projection's too
        ranks = [load_file(tmp_path / f"{name}-rank{rank}") for rank in (0, 1)]
        assert any("linear" in key for key in ranks[0])
        assert all(torch.equal(ranks[0][key], ranks[1][key]) for key in ranks[0])
        saved = two[projection]["linear.weight"]
        assert torch.equal(ranks[0]["2.linear.weight"], saved)
    for part, tensors in one.items():
        for name, tensor in tensors.items():
            if not name.endswith("key.bias"):  # their gradient is rounding alone
                torch.testing.assert_close(tensor, two[part][name], rtol=0, atol=1e-5)
                torch.testing.assert_close(tensor, sharded[part][name], rtol=0, atol=1e-5)


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
        (
            ["distil.teacher=[{path: TINY, max_length: 99}]"],
            "distil.teacher.max_length: 99 is more",
        ),
        (["distil.teacher=DAMAGED"], "distil.teacher: .*damaged: .* not finite for 48 texts"),
        (["distil.margin_mse=1"], "the rows have none"),
        (["mining.refresh_every=2"], "draws single texts"),
        (["distil.projection=false"], "distil.projection: false, but"),
        (["student.dims=8"], "student.dims: 8, but align needs the teacher's 80 dimensions"),
    ],
)
def test_mistakes_are_one_line(
    tiny_model: Path, wide: Path, pairs: Path, tmp_path: Path, change: list[str], complaint: str
) -> None:
    teachers = f"distil.teacher=[{tiny_model},{wide}]"
    damaged = SentenceTransformer(str(tiny_model), device="cpu")
    with torch.no_grad():
        next(damaged.parameters()).fill_(torch.nan)
    damaged.save(str(tmp_path / "damaged"), create_model_card=False)
    places = {"TINY": str(tiny_model), "DAMAGED": str(tmp_path / "damaged")}
    for name, path in places.items():
        change = [word.replace(name, path) for word in change]
    with pytest.raises(UserError, match=complaint):
        stages.distil(config_of(tiny_model, wide, pairs, tmp_path / "run", teachers, *change))


def test_a_narrower_student_learns_by_similarities(
    tiny_model: Path, wide: Path, pairs: Path, tmp_path: Path
) -> None:
    """No projection widens it again: Jasper's short vectors."""
    more = ["student.dims=8", "distil.align=0", "distil.relational=1", "train.steps=40"]
    config = config_of(tiny_model, wide, pairs, tmp_path / "run", *more, "batch.size=24")
    model = stages.distil(config)
    lines = read_log(tmp_path / "run" / "run.jsonl")
    assert lines[-1]["loss/relational"] < lines[0]["loss/relational"]
    assert load_encoder(ModelConfig(path=str(model))).get_embedding_dimension() == 8
    projected = [*more, "distil.projection=true", "overwrite=true", "train.steps=2"]
    model = stages.distil(config_of(tiny_model, wide, pairs, tmp_path / "run", *projected))
    assert load_encoder(ModelConfig(path=str(model))).get_embedding_dimension() == 48


def test_the_saved_config_can_be_run_again(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    """It says what the student is cut from and how, not where it was put."""
    more = ["student.layers=[1]", "model.prompts.query='where: '", "train.steps=3"]
    models = []
    config = config_of(tiny_model, tiny_model, pairs, tmp_path / "first", *more)
    for _ in range(2):
        models.append(stages.distil(config))
        config = load(tmp_path / "first" / "config.yaml", [f"output={tmp_path / 'second'}"])
    assert config.model.path == str(tiny_model) and config.student.layers == (1,)
    one, two = (load_file(model / "model.safetensors") for model in models)
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert load_encoder(ModelConfig(path=str(models[1]))).prompts["query"] == "where: "


@pytest.mark.parametrize("kind", ["static", "scratch"])
def test_what_a_student_has_not_is_not_asked_of_it(
    kind: str, tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    """Maximum length, pooling and prompts are those of the model it is made of."""
    body = tmp_path / "plain"
    transformer: Transformer = SentenceTransformer(str(tiny_model), device="cpu")[0]  # type: ignore[assignment]
    transformer.save(str(body))
    plain = ["model.pooling=cls", "model.max_length=16", "model.prompts.query='where: '"]
    shape = ["student.scratch={layers: 1, width: 32, heads: 2}"] if kind == "scratch" else []
    shape += [f"student.kind={kind}"]
    out = tmp_path / "run"
    model = stages.distil(config_of(body, tiny_model, pairs, out, *plain, *shape))
    made = load_encoder(ModelConfig(path=str(model)))
    assert layer_count(made) == (1 if kind == "scratch" else 0)
    assert (made.prompts.get("query") or "") == ("where: " if kind == "scratch" else "")


def test_weights_without_a_teacher_are_told(run: Run, tiny_model: Path, pairs: Path) -> None:
    words = [f"model.path={tiny_model}", f"data.train={pairs}", "output=out", "train.steps=1"]
    status, _, err = run("finetune", "tiny", *words, "distil.listwise_kl=1")
    assert status == 0 and "warning: distil.teacher is not set" in err
    status, _, err = run("finetune", "tiny", *words, "overwrite=true")
    assert status == 0 and "distil.teacher" not in err


def test_a_student_is_not_fine_tuned(run: Run, tiny_model: Path, pairs: Path) -> None:
    words = [f"model.path={tiny_model}", f"data.train={pairs}", "output=out", "student.layers=[0]"]
    status, _, err = run("finetune", "tiny", *words)
    assert status == 2 and "student: finetune trains model.path as it is" in err


RECIPES = {  # recipe -> command, what a model of two layers and few words needs
    "distil_align": ("distil", ["student.layers=[0]"]),
    "distil_2layer": ("distil", ["student.layers=[1]"]),
    "distil_many": ("distil", ["student.layers=[0]", "model.max_length=16"]),
    "distil_kl": ("distil", []),
    "student_static": ("distil", []),
    "student_3layer": ("student", ["student.layers=[0]"]),
    "trim_vocab": ("student", ["student.vocabulary=90"]),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_run_as_it_is_typed(
    recipe: str, run: Run, tiny_model: Path, pairs: Path
) -> None:
    command, more = RECIPES[recipe]
    words = [f"model.path={tiny_model}", f"data.train={pairs}", "output=out"]
    if recipe == "distil_kl":
        status, _, err = run("mine", recipe, *words, "output=mined", "mining.relative_margin=null")
        assert status == 0, err
        more = ["data.mined=mined/mined.parquet"]
    if command == "distil":
        more = [*more, f"distil.teacher={tiny_model}", "train.steps=2"]
    status, out, err = run(command, recipe, *words, *more)
    assert status == 0 and "model: out/model" in out, err
    made = SentenceTransformer("out/model", device="cpu")
    assert made.encode([question(0)]).shape == (1, 32)
    if command == "distil" and recipe != "distil_kl":
        assert re.search(r"student: [\d,]+ of [\d,]+ parameters", err), err


def test_a_plan_is_that_of_the_student(
    run: Run, tiny_model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"model.path={tiny_model}", f"data.train={pairs}", f"distil.teacher={tiny_model}"]
    config = load("tiny", [*words, "output=out", "student.layers=[0]"])
    with stages.with_student(config) as planned:
        assert layer_count(load_encoder(planned.model)) == 1
        made = Path(planned.model.path)
    assert not made.exists() and not Path("out").exists()
    status, out, err = run("plan", "tiny", *words, "output=out", "student.layers=[0]")
    assert status == 0 and "steps" in out, err
    assert not Path("out").exists()
    forbid_forward_passes(monkeypatch)
    load_teacher(config, read_rows(config.data), CPU)  # the run finds what the plan has encoded
