"""STS: correlations equal scipy's, intervals hold the truth, files are read with care."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tercet.data import read_similarity
from tercet.data.sts import SimilarityTask
from tercet.errors import UserError
from tercet.evaluation import cosines, read_comparisons, read_result, score_similarity
from tercet.evaluation.correlation import (
    compare_correlations,
    correlation_interval,
    pearson,
    spearman,
)
from tests.conftest import Run, answer
from tests.encoders import save_encoder

HEADER = "score\tsentence1\tsentence2\n"
GOOD = HEADER + "".join(f"{n % 4}\t{answer(n)}\t{answer(n * 3 % 40)}\n" for n in range(12))


def test_correlations_are_scipys_with_ties_and_by_row() -> None:
    generator = np.random.default_rng(0)
    a = generator.integers(0, 6, (20, 50)).astype(float)
    b = a + generator.normal(0, 2, (20, 50)).round()
    for x, y, rho, r in zip(a, b, spearman(a, b), pearson(a, b), strict=True):
        assert rho == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
        assert r == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)


def test_cosines_are_of_any_length_of_vector() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 5, 8)).astype(np.float32)
    want = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    assert cosines(a * 3, b) == pytest.approx(want, abs=1e-6)
    assert cosines(np.zeros((1, 8), np.float32), b[:1]).tolist() == [0.0]


def task_of(gold: np.ndarray) -> SimilarityTask:
    texts = [f"text {i}" for i in range(len(gold))]
    return SimilarityTask("toy", "test", texts, texts, gold)


def score(gold: np.ndarray, given: np.ndarray):
    return score_similarity(task_of(gold), given, model="m", fingerprints={}, prompts={})


def test_the_interval_holds_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(2)
    rho = 0.7
    truth = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's of two normal variables
    held = 0
    for _ in range(120):
        x = generator.normal(size=120)
        y = rho * x + np.sqrt(1 - rho**2) * generator.normal(size=120)
        low, high = correlation_interval(spearman, x, y, draws=300)
        assert low <= spearman(x, y) <= high
        held += low <= truth <= high
    assert 0.88 <= held / 120 <= 0.99


def test_a_difference_is_that_of_the_same_drawn_pairs() -> None:
    """The definition, a draw at a time, with scipy's correlation."""
    generator = np.random.default_rng(4)
    gold = generator.integers(0, 6, 40).astype(float)
    a, b = (gold + generator.normal(0, noise, 40) for noise in (3.0, 2.0))
    found = compare_correlations(gold, a, b, draws=60, seed=5)
    drawn = np.random.default_rng(5).integers(0, 40, (60, 40))

    def difference(some: np.ndarray) -> float:
        near, far = (stats.spearmanr(gold[some], side[some])[0] for side in (a, b))
        return float(far) - float(near)  # type: ignore[arg-type]

    want = [difference(some) for some in drawn]
    assert found.mean == pytest.approx(difference(np.arange(40)))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(want, [0.025, 0.975])))
    beyond = min(np.sum(np.array(want) <= 0), np.sum(np.array(want) >= 0))
    assert found.p == pytest.approx(2 * (beyond + 1) / 61)
    assert found.queries == 40 and found.effect is None
    assert compare_correlations(gold, a, a, draws=60).p == 1.0


def test_models_that_are_as_good_are_seldom_called_different() -> None:
    generator = np.random.default_rng(6)
    called = 0
    truth = generator.normal(size=(150, 80))
    for one in truth:
        gold, a, b = (one + generator.normal(0, 0.8, 80) for _ in range(3))
        called += compare_correlations(gold, a, b, draws=200).p < 0.05
    assert called / 150 <= 0.1
    good, better = (truth[0] + generator.normal(0, noise, 80) for noise in (0.8, 0.1))
    assert compare_correlations(truth[0], good, better, draws=200).p < 0.05


def test_equal_similarities_have_no_order() -> None:
    with pytest.raises(UserError, match="m gives every pair of toy the same similarity"):
        score(np.arange(5.0), np.ones(5))


def test_the_command_scores_a_file(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "animals").mkdir()
    file = tmp_path / "animals" / "dev.tsv"
    file.write_text(GOOD)
    status, out, err = run("evaluate", tiny_model, "--sts", "animals/dev.tsv")
    assert status == 0, err
    result = read_result(tmp_path / "results" / tiny_model.parent.name / "animals.dev.json")
    assert result.main == "spearman" and result.counts == {"pairs": 12}
    assert "Spearman" in out and f"{result.means['spearman'].mean:.3f}" in out
    from sentence_transformers import SentenceTransformer

    task = read_similarity(file)
    model = SentenceTransformer(str(tiny_model), device="cpu")
    first, second = model.encode(task.first), model.encode(task.second)
    want = stats.spearmanr((first * second).sum(axis=1), task.scores)[0]
    assert result.means["spearman"].mean == pytest.approx(want, abs=1e-3)


def test_a_model_is_compared_with_another_on_pairs(
    run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "test.tsv").write_text(GOOD)
    other = save_encoder("bert", tmp_path / "other")
    words = ("evaluate", tiny_model, "--against", other, "--sts", "animals/test.tsv")
    status, out, err = run(*words)
    assert status == 0, err
    (found,) = read_comparisons(tmp_path / "results")
    name = tiny_model.parent.name
    mine, theirs = (
        read_result(tmp_path / "results" / folder / "animals.test.json")
        for folder in (name, other.parent.name)
    )
    assert mine.similarities is not None and len(mine.similarities.gold) == 12
    difference = mine.means["spearman"].mean - theirs.means["spearman"].mean
    assert found.delta.mean == pytest.approx(difference)
    assert found.delta.low <= found.delta.mean <= found.delta.high
    line = f"{name} - {other.parent.name}: Spearman {difference:+.3f} ["
    assert line in out and "12 pairs" in out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "0 pairs; a correlation needs at least 3"),
        (GOOD.replace("sentence2", "sentence_2"), "line 1: no column 'sentence2'.*'sentence_2'"),
        (HEADER + "1\ta\n", "line 2: 2 cells between tabs under a header of 3"),
        (HEADER + "high\ta\tb\n", "line 2: score 'high' is not a number"),
        (HEADER + "nan\ta\tb\n", "line 2: score 'nan' is not a number"),
        (HEADER + "1\ta\t \n", "line 2: a sentence is empty"),
        (HEADER + "2\ta\tb\n" * 4, "every pair has the score 2; there is no order"),
    ],
)
def test_a_mistake_in_the_file_is_named(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "test.tsv"
    path.write_text(text)
    with pytest.raises(UserError, match=expected) as caught:
        read_similarity(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_columns_in_another_order(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_similarity(tmp_path / "test.tsv")
    path = tmp_path / "test.tsv"
    path.write_text('id\tsentence2\tscore\tsentence1\n1\t"b\t1\ta\n2\td\t2.5\tc\n\n3\tf\t0\te\n')
    task = read_similarity(path)
    assert (task.first, task.second) == (["a", "c", "e"], ['"b', "d", "f"])
    assert task.scores.tolist() == [1.0, 2.5, 0.0] and task.name == tmp_path.name


def test_the_real_file_is_read_whole() -> None:
    root = os.environ.get("TERCET_SHARED_DATA") or Path(__file__).parents[1].parent / "shared/data"
    folder = Path(root) / "stsb_en"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set TERCET_SHARED_DATA")
    task = read_similarity(folder / "test.tsv")
    assert (task.name, task.split) == ("stsb_en", "test")
    assert len(task) == 1_379 and task.scores.max() == 5.0
