"""`tercet merge --dev`: the line between two models, scored, and the point that is chosen."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tercet import stages
from tercet.configs import ModelConfig
from tercet.data import RetrievalTask, read_task
from tercet.evaluation import PerQuery
from tercet.models import encode, load_encoder, merge_models
from tercet.stages.merging import Point, best_share
from tests.conftest import NAMES, Run, answer, question, write_lines

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 24


def write_folder(folder: Path, split: str, seed: int) -> Path:
    """A few animals, each asked for once."""
    numbers = np.random.default_rng(seed).permutation(len(NAMES))[:COUNT].tolist()
    (folder / "qrels").mkdir(parents=True)
    write_lines(folder / "corpus.jsonl", ({"_id": f"d{n}", "text": answer(n)} for n in numbers))
    write_lines(folder / "queries.jsonl", ({"_id": f"q{n}", "text": question(n)} for n in numbers))
    lines = "".join(f"q{n}\td{n}\t1\n" for n in numbers)
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    return folder


@pytest.fixture
def tuned(tiny_model: Path, tmp_path: Path) -> Path:
    model = SentenceTransformer(str(tiny_model), device="cpu")
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.05)
    model.save(str(tmp_path / "tuned"), create_model_card=False)
    return tmp_path / "tuned"


def point(share: float, **scores: list[float]) -> Point:
    return Point(share, {task: {str(n): s for n, s in enumerate(v)} for task, v in scores.items()})


def test_the_least_that_has_most_of_the_gain_is_chosen() -> None:
    base = point(0.0, dev=[0.2] * 20, other=[0.5] * 20)
    better = point(0.4, dev=[0.3] * 20, other=[0.5] * 19 + [0.4])  # p is about 1
    best = point(0.7, dev=[0.5] * 20, other=[0.4] * 20)  # p < 0.001
    assert best_share([base, better, best], "dev") == 0.4
    assert best_share([base, better, point(0.5, dev=[0.3] * 20, other=[0.5] * 20)], "dev") == 0.4
    nearly = point(0.2, dev=[0.295] * 20, other=[0.5] * 20)  # 0.95 of the gain
    assert best_share([base, nearly, better, best], "dev") == 0.2
    alone = [Point(p.share, {"dev": p.scores["dev"]}) for p in (base, better, best)]
    assert best_share(alone, "dev") == 0.7
    assert best_share([base, point(1.0, dev=[0.1] * 20, other=[0.9] * 20)], "dev") == 0.0


def test_the_curve_is_what_the_means_score(
    run: Run, tiny_model: Path, tuned: Path, tmp_path: Path
) -> None:
    dev = write_folder(tmp_path / "near", "dev", 0)
    other = write_folder(tmp_path / "far", "test", 1)
    words = [tiny_model, tuned, "--dev", dev, "--keep", other, "--points", 3, "--out", "m"]
    status, out, err = run("merge", *words)
    assert status == 0 and "near (decides)" in out and "chosen: " in out, err
    found = json.loads(Path("m/results.json").read_text())
    assert [p["share"] for p in found["points"]] == [0, 0.5, 1]
    for share, at in ((0.5, 1), (1.0, 2)):
        pair = [load_encoder(ModelConfig(path=str(path))) for path in (tiny_model, tuned)]
        model = merge_models(pair, [1 - share, share], ["base", "tuned"])
        for folder, split in ((dev, "dev"), (other, "test")):
            task = read_task(folder, split)
            sides = (task.queries.texts, "query"), (task.documents.texts, "document")
            queries, documents = (encode(model, texts, role) for texts, role in sides)  # type: ignore[arg-type]
            scores = queries @ documents.T
            answers = [task.documents.index[next(iter(task.qrels[q]))] for q in task.queries.ids]
            own = scores[np.arange(len(scores)), answers]
            place = (scores > own[:, None]).sum(axis=1)
            gains = np.where(place < 10, 1 / np.log2(place + 2), 0)
            assert found["points"][at]["tasks"][task.name]["mean"] == pytest.approx(gains.mean())
    want = [load_encoder(ModelConfig(path=str(path))) for path in (tiny_model, tuned)]
    chosen = merge_models(want, [1 - found["chosen"], found["chosen"]], ["base", "tuned"])
    got = SentenceTransformer("m", device="cpu").encode([question(0)])
    np.testing.assert_allclose(got, encode(chosen, [question(0)], "query"), atol=1e-6)
    assert "(chosen)" in Path("m/README.md").read_text()
    status, _, err = run("merge", *words)
    assert status == 2 and "m: exists" in err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--keep", "dev"], "--keep: belongs to a choice of weights; say --dev FOLDER"),
        (["--split", "dev"], "--split: belongs to a choice"),
        (["--keep-split", "dev"], "--keep-split: belongs to a choice"),
        (["--points", "0"], "--points: belongs to a choice"),
        (["--dev", "dev", "--weights", "1,1"], "--dev chooses the weights of two models"),
        (["--dev", "dev", "--points", "1"], "--points: 1 is no curve"),
        (["--dev", "absent"], "absent"),
        (["--dev", "dev", "--keep", "dev", "--keep-split", "dev"], "two collections are called"),
        (["--dev", "dev", "--split", "train"], "train"),
    ],
)
def test_what_makes_no_curve_is_one_line(
    run: Run, tiny_model: Path, tmp_path: Path, words: list[str], complaint: str
) -> None:
    write_folder(tmp_path / "dev", "dev", 0)
    status, _, err = run("merge", tiny_model, tiny_model, "--out", "m", *words)
    last = err.strip().splitlines()[-1]
    assert status == 2 and last.startswith("error: ") and complaint in last
    assert not Path("m").exists()


def test_python_has_it_too(tiny_model: Path, tuned: Path, tmp_path: Path) -> None:
    dev = write_folder(tmp_path / "near", "dev", 0)
    words = str(tiny_model), str(tuned), dev, tmp_path / "m"
    curve = stages.merge_curve(*words, points=2)
    assert [p.share for p in curve.points] == [0, 1] and curve.chosen in (0, 1)
    asked: list[float] = []

    def score(
        share: float, model: SentenceTransformer, tasks: Sequence[RetrievalTask]
    ) -> dict[str, PerQuery]:
        asked.append(share)
        return {task.name: stages.per_query(model, task) for task in tasks}

    assert stages.merge_curve(*words, points=2, overwrite=True, score=score) == curve
    assert asked == [0, 1]
