"""A teacher's scores that come with the data: read, looked up batch by batch, learnt, refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tercet import stages
from tercet.configs import Config, load
from tercet.data import TrainingSet, with_mined
from tercet.data.scores import PairScores, ScoreTable
from tercet.errors import UserError
from tercet.train.objective import objective
from tercet.train.rows import batches_of, read_rows
from tercet.train.step import Share
from tercet.train.tracking import read_log
from tests.conftest import NAMES, answer, question, write_lines

CPU = torch.device("cpu")
COUNT = 12
COLUMNS = "negative: negative, positive_score: liked, negative_score: disliked"
LEARN = ["distil.scores=data", "distil.align=0", "distil.listwise_kl=1"]
pytestmark = pytest.mark.usefixtures("one_thread")


def logit(query: int, document: int) -> float:
    """What the teacher says; its own answers best."""
    return 4.0 * (query == document) - 0.25 * ((3 * query + document) % 7)


def scored_pairs(path: Path, **change: Any) -> Path:
    """Questions, their answers and two wrong ones, each with its score."""
    rows = []
    for n in range(COUNT):
        wrong = [(n + 1) % COUNT, (n + 5) % COUNT]
        row = {"query": question(n), "positive": answer(n), "negative": [answer(w) for w in wrong]}
        row |= {"liked": logit(n, n), "disliked": [logit(n, w) for w in wrong]}
        rows.append(row | (change if n == 3 else {}))
    return write_lines(path, rows)


def config_of(tiny_model: Path, data: Path, out: Path, *more: str) -> Config:
    train = f"data.train=[{{path: {data}, columns: {{{COLUMNS}}}}}]"
    where = [f"output={out}", f"model.path={tiny_model}", "data.negatives_per_row=2"]
    return load("tiny", [train, *where, *LEARN, *more])


def write_mined(path: Path, data: TrainingSet, **change: Any) -> Path:
    """As `tercet mine` writes it with a cross-encoder: the next two answers as negatives."""
    ids, count = data.documents.ids, len(data)
    near = [[(n + 1) % count, (n + 2) % count] for n in range(count)]
    columns: dict[str, list[Any]] = {
        "query_id": data.queries.ids,
        "positive_ids": [[ids[n]] for n in range(count)],
        "positive_rescores": [[logit(n, n)] for n in range(count)],
        "negative_ids": [[ids[w] for w in near[n]] for n in range(count)],
        "negative_rescores": [[logit(n, w) for w in near[n]] for n in range(count)],
    }
    for name, value in change.items():
        columns[name][3] = value
    pq.write_table(pa.table(columns), path)
    return path


def test_a_table_finds_each_pair_once() -> None:
    scores = PairScores.of([(1, 0, 0.5), (0, 2, -1.0), (2, 0, 0.5)])
    same = np.array([0, 1, 1]), np.array([0, 1, 2])  # queries 1 and 2 are one text
    table = ScoreTable(scores, *same)
    found = table.of(np.array([0, 1, 0, 1]), np.array([2, 0, 0, 2]))
    np.testing.assert_array_equal(found, [-1.0, 0.5, np.nan, np.nan])
    with pytest.raises(UserError, match="1 pairs .* have two scores, the first 0.5 and 3"):
        ScoreTable(scores.and_also(PairScores.of([(1, 0, 3.0)])), *same)
    assert np.isnan(ScoreTable(PairScores.of(()), *same).of(np.array([0]), np.array([0]))).all()


@pytest.mark.parametrize("mined", [False, True], ids=["columns", "mined"])
def test_the_loss_learns_the_scores_of_the_data(
    mined: bool, tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    """KL and margins of logits against plain torch, whole and in shares."""
    data = scored_pairs(tmp_path / "scored.jsonl")
    temperatures = ["distil.teacher_temperature=2", "distil.margin_temperature=0.1"]
    more = ["distil.margin_mse=0.5", "batch.size=5", *temperatures]
    config = config_of(tiny_model, data, tmp_path, *more)
    rows = read_rows(config.data)
    if mined:
        rows = read_rows(load("tiny", [f"data.train={pairs}", f"output={tmp_path}"]).data)
        rows = with_mined(rows, write_mined(tmp_path / "mined.parquet", rows))
    batch = batches_of(config, rows)(0)
    generator = torch.Generator().manual_seed(0)
    count, numbers = len(batch.queries), {answer(n): n for n in range(len(NAMES))}
    shown = [numbers[rows.documents.texts[d]] for d in batch.documents]
    raw = torch.randn(count + len(batch.documents), 8, generator=generator)

    def sides(raw: Tensor) -> tuple[Tensor, Tensor]:
        unit = F.normalize(raw, dim=1)
        return unit[:count], unit[count:]

    def plain(raw: Tensor) -> Tensor:
        q, d = sides(raw)
        cosines, lists, margins = q @ d.T, [], []
        for i, query in enumerate(batch.queries.tolist()):
            own = [j for pair in (batch.positives, batch.negatives) for a, j in pair if a == i]
            said = torch.tensor([logit(query, shown[j]) for j in own])
            p = (said / 2).softmax(0)
            lists.append((p * (p.log() - (cosines[i, own] / 0.05).log_softmax(0))).sum())
            best = cosines[i, own[0]] - cosines[i, own[1:]]
            margins.append((best / 0.1 - (said[0] - said[1:])) ** 2)
        return torch.stack(lists).mean() + 0.5 * torch.cat(margins).mean()

    loss = objective(config, batch, 0.05, CPU)
    for world in (1, 3):
        ours, theirs = (raw.clone().requires_grad_() for _ in range(2))
        found = [loss(*sides(ours), Share(rank, world)) for rank in range(world)]
        torch.testing.assert_close(
            torch.stack([part.loss for part in found]).sum(), plain(theirs), rtol=1e-5, atol=1e-6
        )
        torch.stack([part.loss for part in found]).sum().backward()
        plain(theirs).backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
        assert found[0].sums.keys() == {"loss/listwise_kl", "loss/margin_mse"}


def test_a_student_learns_from_scores_alone(tiny_model: Path, tmp_path: Path) -> None:
    data = scored_pairs(tmp_path / "scored.jsonl")
    more = ["train.steps=40", "train.learning_rate=0.003", "train.dropout=0"]
    model = stages.distil(config_of(tiny_model, data, tmp_path / "run", *more))
    lines = read_log(tmp_path / "run" / "run.jsonl")
    assert lines[-1]["loss/listwise_kl"] < lines[0]["loss/listwise_kl"] / 2
    assert (model / "modules.json").exists()


@pytest.mark.parametrize("curated", [True, False])
def test_mining_scores_what_it_finds_and_the_negatives_of_the_rows(
    curated: bool, tiny_model: Path, judge: Path, tmp_path: Path
) -> None:
    """Before the run and inside it; pairs alone, and rows with negatives of their own."""
    data = scored_pairs(tmp_path / "pairs.jsonl")
    plain = f"data.train=[{{path: {data}, columns: {{COLUMN}}, ignore: [liked, disliked]}}]"
    mining = ["mining.refresh_every=2", f"mining.rescore.model={judge}", "mining.negatives=2"]
    mining += ["mining.relative_margin=null", "mining.rescore.veto_margin=null"]
    own = plain.replace("COLUMN", "negative: negative")
    alone = plain.replace("COLUMN", "query: query").replace("liked,", "liked, negative,")
    words = [own if curated else alone, *mining]
    before = [word for word in words if "refresh" not in word]
    mined = stages.mine(config_of(tiny_model, data, tmp_path / "mined", *before)).path
    for name, more in {"before": [*before, f"data.mined={mined}"], "inside": words}.items():
        model = stages.distil(config_of(tiny_model, data, tmp_path / name, *more))
        lines = read_log(tmp_path / name / "run.jsonl")
        assert (model / "modules.json").exists()
        assert all(np.isfinite(line["loss/listwise_kl"]) for line in lines if "loss" in line)


MISTAKES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "nan": ({"liked": float("nan")}, [], r"line 4, column 'liked': nan is not a finite number"),
    "text": ({"disliked": [1.0, "high"]}, [], "column 'disliked': 'high' is not a finite number"),
    "null": ({"liked": None}, [], "column 'liked': None is not a finite number"),
    "length": ({"disliked": [1.0]}, [], "line 4: column 'disliked' has 1 scores for 2 texts"),
    "no scores": ({}, ["data.train=PAIRS", "data.mined=PLAIN"], "the data holds none; mine with"),
    "some scores": ({}, ["data.train=PAIRS", "data.mined=HALF"], "12 of 36 pairs have no score"),
    "constant": ({}, ["data.train=PAIRS", "data.mined=FLAT"], "12 lists holds one value only"),
    "mined nan": ({}, ["data.train=PAIRS", "data.mined=NAN"], "row 4, column 'negative_rescores'"),
    "mined length": ({}, ["data.train=PAIRS", "data.mined=SHORT"], "not one score for each of"),
    "vectors": ({}, ["distil.align=1"], "align and relational learn a teacher's vectors"),
    "nothing": ({}, ["distil.listwise_kl=0"], "scores: data are learnt by listwise_kl"),
    "refreshed": ({}, ["mining.refresh_every=2"], "name a cross-encoder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_scores_that_cannot_teach_are_one_line(
    mistake: str, tiny_model: Path, tmp_path: Path
) -> None:
    change, words, complaint = MISTAKES[mistake]
    data = scored_pairs(tmp_path / "scored.jsonl", **change)
    plain = write_lines(
        tmp_path / "plain.jsonl",
        [{"query": question(n), "positive": answer(n)} for n in range(COUNT)],
    )
    rows = read_rows(load("tiny", [f"data.train={plain}", "output=x"]).data)
    places = {"PAIRS": plain} | {
        name: tmp_path / f"{name}.parquet" for name in ("PLAIN", "HALF", "FLAT", "NAN", "SHORT")
    }
    _write_all(places, rows)
    for name, path in places.items():
        words = [word.replace(name, str(path)) for word in words]
    with pytest.raises(UserError, match=complaint) as error:
        stages.distil(config_of(tiny_model, data, tmp_path / "run", *words))
    assert "\n" not in str(error.value)


def _write_all(places: dict[str, Path], rows: TrainingSet) -> None:
    """A mined set without scores, without some, with equal ones, and with damaged ones."""
    table = pq.read_table(write_mined(places["FLAT"], rows))
    none = pa.nulls(len(table), pa.list_(pa.float64()))
    without = table.set_column(2, "positive_rescores", none)
    pq.write_table(without.set_column(4, "negative_rescores", none), places["PLAIN"])
    flat = pa.array([[1.0, 1.0]] * len(table))
    ones = table.set_column(2, "positive_rescores", pa.array([[1.0]] * len(table)))
    pq.write_table(ones.set_column(4, "negative_rescores", flat), places["FLAT"])
    pq.write_table(without, places["HALF"])
    write_mined(places["NAN"], rows, negative_rescores=[1.0, float("nan")])
    write_mined(places["SHORT"], rows, negative_rescores=[1.0])
