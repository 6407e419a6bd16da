"""The second opinion: scores of a real cross-encoder, trained here, and what they decide."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

from tercet.cache import LOCK
from tercet.configs import ModelConfig
from tercet.configs.schema import MiningConfig
from tercet.data.rows import Ragged, Texts, TrainingSet
from tercet.errors import UserError
from tercet.mining import MODEL, Space, asked_queries, facts, mine
from tercet.mining.facts import Asked
from tercet.mining.rescore import (
    TOP_HITS,
    _estimate,
    first_unlabelled,
    judged_by_model,
    wilson,
)
from tercet.mining.select import CODE, KEPT, VERDICTS, select
from tercet.mining.settle import settle
from tercet.mining.summary import BINS
from tercet.models import cross, load_encoder
from tercet.models.cross import CrossScorer, cross_scores, load_scorer
from tests.conftest import NAMES, answer, question
from tests.disk import full_disk


@pytest.fixture
def scorer(judge: Path) -> CrossScorer:
    return load_scorer(str(judge))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many pairs went through the model, call by call."""
    made: list[int] = []
    plain = cross._predict

    def counting(scorer: CrossScorer, texts: Any) -> Any:
        made.append(len(texts))
        return plain(scorer, texts)

    monkeypatch.setattr(cross, "_predict", counting)
    yield made


def some_pairs(count: int = 60) -> list[tuple[str, str]]:
    generator = np.random.default_rng(1)
    numbers = generator.integers(0, len(NAMES), (count, 2))
    return [(question(a), " and ".join([answer(b)] * (1 + a % 3))) for a, b in numbers]


def test_weights_lie_where_they_do_in_every_process(tiny_model: Path, scorer: CrossScorer) -> None:
    """Mapped from a file, as one process alone has them, they round products differently."""
    encoder = load_encoder(ModelConfig(path=str(tiny_model)))
    for model in (encoder, scorer.model):
        assert {weight.data_ptr() % 64 for weight in model.parameters()} == {0}


def test_scores_are_the_models_logits_pair_by_pair(judge: Path, scorer: CrossScorer) -> None:
    pairs = some_pairs()
    got = cross_scores(scorer, pairs, batch_tokens=200)
    plain = CrossEncoder(str(judge), device="cpu")
    one_by_one = [plain.predict([pair], activation_fn=torch.nn.Identity())[0] for pair in pairs]
    np.testing.assert_allclose(got, one_by_one, atol=1e-5)
    as_trained = [plain.predict([pair])[0] for pair in pairs]
    np.testing.assert_allclose(scorer.probabilities(got), as_trained, atol=1e-6)
    assert scorer.probabilities(got).std() > 0.2  # it has learnt something
    assert scorer.calibration == "the sigmoid it was trained with, of its logit"


def test_a_pair_is_scored_once(scorer: CrossScorer, scored: list[int]) -> None:
    pairs = some_pairs()
    first = cross_scores(scorer, pairs[:40])
    assert sum(scored) == len(set(pairs[:40]))
    scored.clear()
    again = cross_scores(scorer, pairs[::-1])
    assert sum(scored) == len(set(pairs)) - len(set(pairs[:40]))
    assert again[::-1][:40].tolist() == first.tolist()
    scored.clear()
    cross_scores(scorer, [])
    cross_scores(scorer, pairs)
    assert scored == []


def test_a_killed_run_goes_on_where_it_was(
    scorer: CrossScorer, scored: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cross, "SHARD", 16)
    pairs = list(dict.fromkeys(some_pairs(80)))
    whole = cross_scores(scorer, pairs, folder=tmp_path / "whole")
    scored.clear()
    counting = cross._predict

    def dying(scorer: CrossScorer, texts: Any) -> Any:
        if sum(scored) >= 40:
            raise KeyboardInterrupt
        return counting(scorer, texts)

    monkeypatch.setattr(cross, "_predict", dying)
    with pytest.raises(KeyboardInterrupt):
        cross_scores(scorer, pairs, folder=tmp_path / "killed")
    monkeypatch.setattr(cross, "_predict", counting)
    whole_shards = len(list((tmp_path / "killed").glob("*/*.npz")))
    scored.clear()
    resumed = cross_scores(scorer, pairs, folder=tmp_path / "killed")
    assert 0 < sum(scored) == len(pairs) - 16 * whole_shards
    assert resumed.tolist() == whole.tolist()


def test_a_damaged_file_is_scored_again(
    scorer: CrossScorer, scored: list[int], tmp_path: Path
) -> None:
    pairs = some_pairs()
    before = cross_scores(scorer, pairs, folder=tmp_path)
    (file,) = tmp_path.glob("*/*.npz")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    scored.clear()
    assert cross_scores(scorer, pairs, folder=tmp_path).tolist() == before.tolist()
    assert sum(scored) == len(set(pairs))


@pytest.mark.parametrize("keep", [0, 3, 40, 0.5, -1])
def test_a_file_cut_anywhere_is_scored_again(
    keep: float, scorer: CrossScorer, tmp_path: Path
) -> None:
    pairs = some_pairs(10)
    before = cross_scores(scorer, pairs, folder=tmp_path)
    (file,) = tmp_path.glob("*/*.npz")
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if keep == 0.5 else int(keep)])
    assert cross_scores(scorer, pairs, folder=tmp_path).tolist() == before.tolist()


def test_a_file_that_cannot_be_read_now_is_kept(
    scorer: CrossScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = some_pairs(10)
    before = cross_scores(scorer, pairs, folder=tmp_path)

    def busy(_: Path) -> bytes:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be read .Too many"):
        patch.setattr(Path, "read_bytes", busy)
        cross_scores(scorer, pairs, folder=tmp_path)
    monkeypatch.setattr(cross, "_predict", None)  # nothing is scored again
    assert cross_scores(scorer, pairs, folder=tmp_path).tolist() == before.tolist()


def test_a_full_disk_is_one_line(scorer: CrossScorer, tmp_path: Path) -> None:
    with full_disk(), pytest.raises(UserError, match=r"cannot be written \(File too large\); make"):
        cross_scores(scorer, some_pairs(), folder=tmp_path)
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and f.name != LOCK]


def test_other_weights_or_lengths_are_another_judge(judge: Path, tmp_path: Path) -> None:
    own = load_scorer(str(judge)).fingerprint
    assert load_scorer(str(judge)).fingerprint == own
    assert load_scorer(str(judge), max_length=32).fingerprint != own
    model = CrossEncoder(str(judge), device="cpu")
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    model.save_pretrained(str(tmp_path / "changed"))
    assert load_scorer(str(tmp_path / "changed")).fingerprint != own


def saved(judge: Path, folder: Path, *, labels: int = 1, activation: Any = None) -> str:
    """The judge with another head or another activation."""
    model = CrossEncoder(
        str(judge), num_labels=labels, device="cpu", model_kwargs={"ignore_mismatched_sizes": True}
    )
    if activation is not None:
        model.activation_fn = activation
    model.save_pretrained(str(folder))
    return str(folder)


def test_the_kinds_of_output_are_told_apart(judge: Path, tmp_path: Path) -> None:
    pairs = some_pairs(20)
    sigmoid = load_scorer(str(judge))
    plain = load_scorer(saved(judge, tmp_path / "plain", activation=torch.nn.Identity()))
    assert plain.calibration == "sigmoid of its logit (its own activation is Identity)"
    logits = cross_scores(sigmoid, pairs)
    assert cross_scores(plain, pairs).tolist() == logits.tolist()

    path = saved(judge, tmp_path / "two", labels=2, activation=torch.nn.Identity())
    two = load_scorer(path)
    assert two.calibration == "softmax over its two labels, the second one's share"
    softmax = CrossEncoder(path, device="cpu").predict(pairs, apply_softmax=True)
    got = two.probabilities(cross_scores(two, pairs))
    np.testing.assert_allclose(got, np.asarray(softmax)[:, 1], atol=1e-6)

    own = load_scorer(str(judge), calibration="none")
    probabilities = cross_scores(own, pairs)
    np.testing.assert_allclose(probabilities, sigmoid.probabilities(logits), atol=1e-6)
    assert own.probabilities(probabilities) is probabilities
    with pytest.raises(UserError, match="use calibration: auto"):
        cross_scores(load_scorer(str(tmp_path / "plain"), calibration="none"), pairs)


def test_what_is_no_judge_is_refused(judge: Path, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(UserError, match="has 3 labels, none of which says relevant"):
        load_scorer(saved(judge, tmp_path / "three", labels=3))
    with pytest.raises(UserError, match="mining.rescore.model: .* does not exist"):
        load_scorer(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="no cross-encoder: .*; name one that has"):
        load_scorer(str(tiny_model))
    half = Path(shutil.copytree(judge, tmp_path / "half")) / "model.safetensors"
    half.write_bytes(half.read_bytes()[:-9])
    with pytest.raises(UserError, match="half cannot be loaded: Error while deserializing"):
        load_scorer(str(half.parent))


def places(own: list[list[int]] | None = None) -> tuple[Asked, Space]:
    """Each animal's question, its answer labelled; all others are candidates."""
    count = len(NAMES)
    data = TrainingSet(
        Texts([f"q{i}" for i in range(count)], [question(i) for i in range(count)]),
        Texts([f"d{i}" for i in range(count)], [answer(i) for i in range(count)]),
        np.arange(count),
        Ragged.of([[i] for i in range(count)]),
        Ragged.of(own or [[] for _ in range(count)]),
        np.array([0, count]),
    )
    generator = np.random.default_rng(5)
    sides = [generator.normal(size=(count, 8)).astype(np.float32) for _ in range(2)]
    return asked_queries(data), Space(sides[0], sides[1], "places")


@pytest.mark.parametrize("relabel", [False, True])
def test_the_judge_rules_as_its_own_predictions_say(
    judge: Path, scorer: CrossScorer, relabel: bool
) -> None:
    asked, there = places()
    plain = CrossEncoder(str(judge), device="cpu")
    second, third = plain.predict([(question(n), answer(n)) for n in (1, 2)]).tolist()
    sure = (second + third) / 2  # so that answers of the first two places are above it
    config = MiningConfig(
        depth=40,
        relative_margin=None,
        rescore={"model": "judge", "depth": 12, "relabel": relabel, "relabel_above": sure},  # type: ignore[arg-type]
    )
    settled = settle(asked, {MODEL: there}, config, scorer)
    seen = set()
    for query in range(len(asked)):
        documents = settled.found.positions[query]
        unlabelled = [d for d in documents.tolist() if d != query]
        pairs = [(question(query), answer(d)) for d in [query, *unlabelled[:12]]]
        positive, *others = plain.predict(pairs).tolist()
        p = dict(zip(unlabelled, others, strict=False))
        kept = 0
        for place, document in enumerate(documents.tolist()):
            if document == query:
                expected = "known"
            elif document not in p:
                expected = "unscored"
            elif abs(p[document] - positive) < 1e-5 or abs(p[document] - sure) < 1e-5:
                continue  # too close to call twice alike
            elif relabel and p[document] > positive and p[document] >= sure:
                expected = "relabelled"
            elif p[document] > positive:
                expected = "veto"
            else:
                kept += 1
                expected = "kept" if kept <= config.negatives else "surplus"
            got = settled.verdicts[query, place]
            if not (expected in ("kept", "surplus") and got in (KEPT, CODE["surplus"])):
                assert got == CODE[expected], (query, place)
            seen.add(expected)
    assert seen >= {"known", "unscored", "veto", "kept"} | ({"relabelled"} if relabel else set())


def test_its_scores_are_in_the_file_for_every_positive_and_negative(
    scorer: CrossScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setattr("tercet.mining.facts.BLOCK", 7)
    curated = [[(i + 1) % len(NAMES), (i + 7) % len(NAMES)] for i in range(len(NAMES))]
    asked, there = places(curated)
    config = MiningConfig(
        depth=20,
        negatives=6,
        relative_margin=None,
        too_few="fill",
        rescore={"model": "judge", "depth": 8, "relabel": True, "relabel_above": 0.5},  # type: ignore[arg-type]
    )
    counts = mine(asked, {MODEL: there}, config, tmp_path / "m.parquet", miner="m", scorer=scorer)
    assert counts.filled > 0 and counts.relabelled > 0 and counts.dropped["veto"] >= 0
    lines = pq.read_table(tmp_path / "m.parquet").to_pylist()
    place = {f"d{i}": i for i in range(len(NAMES))}
    for query, line in enumerate(lines):
        assert line["own_ids"] == [f"d{i}" for i in curated[query]]
        for side in ("positive", "negative", "own", "relabelled"):
            ids, scores = line[f"{side}_ids"], line[f"{side}_rescores"]
            pairs = [(question(query), answer(place[id_])) for id_ in ids]
            assert scores == cross_scores(scorer, pairs).tolist()
        assert not set(line["relabelled_ids"]) & {*line["negative_ids"], *line["positive_ids"]}
    summary = json.loads((tmp_path / "mining.json").read_text())
    assert summary["calibration"] == scorer.calibration
    rate = summary["false_negatives"]
    settled = settle(asked, {MODEL: there}, config, scorer)
    assert settled.rescored is not None
    logits = settled.rescored.candidates
    likely = scorer.probabilities(logits[~np.isnan(logits)])
    bars = summary["histograms"]["probabilities"]["all scored"]
    assert bars == np.histogram(likely, np.linspace(0, 1, BINS + 1))[0].tolist()
    hits = above = 0
    for query in range(len(asked)):
        labelled = {query, *curated[query]}
        unlabelled = [d for d in settled.found.positions[query].tolist() if d not in labelled][:8]
        pairs = [(question(query), answer(d)) for d in [query, *unlabelled]]
        positive, *others = cross_scores(scorer, pairs).tolist()
        hits, above = hits + len(others), above + sum(p > positive for p in others)
    assert (rate["hits"], rate["above"], rate["queries"]) == (hits, above, len(asked))
    assert 0 < rate["low"] < rate["rate"] < rate["high"] < 1


def test_likeness_to_positives_is_computed_once(
    scorer: CrossScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, there = places()
    config = MiningConfig(
        depth=20,
        near_duplicate=0.5,
        rescore={"model": "judge", "depth": 8, "relabel": True, "relabel_above": 0.5},  # type: ignore[arg-type]
    )
    every, made, plain = slice(0, len(asked)), [], facts.likeness

    def counting(*given: Any) -> Any:
        made.append(1)
        return plain(*given)

    monkeypatch.setattr(facts, "likeness", counting)
    settled = settle(asked, {MODEL: there}, config, scorer)
    assert len(made) == 1 and settled.rescored is not None
    all_facts = facts.evidence(asked, settled.found, there, settled.lowest, every, config)
    verdicts = select(all_facts, config, settled.rescored.opinion(asked, every))
    assert np.array_equal(settled.verdicts, verdicts)
    seen = {VERDICTS[code] for code in np.unique(verdicts)}
    assert seen >= {"near_duplicate", "unscored", "veto", "relabelled", "kept"}


def test_what_fills_a_list_is_judged_as_well(scorer: CrossScorer) -> None:
    """Nothing like a positive, nothing that the judge prefers to it or calls an answer."""
    asked, there = places()
    rescore = {"model": "judge", "depth": 6, "relabel": True, "relabel_above": 0.6}
    config = MiningConfig(
        depth=6,
        negatives=8,
        relative_margin=None,
        near_duplicate=0.5,
        too_few="fill",
        rescore=rescore,  # type: ignore[arg-type]
    )
    negatives = settle(asked, {MODEL: there}, config, scorer).negatives
    documents = np.asarray(there.documents)
    unit = documents / np.linalg.norm(documents, axis=1, keepdims=True)
    filled = negatives.ranks == 0
    assert filled.sum() > len(asked) and negatives.rescores is not None

    every = range(len(NAMES))
    logits = cross_scores(scorer, [(question(q), answer(d)) for q in every for d in every])
    p = scorer.probabilities(logits).reshape(len(NAMES), -1)
    refused = (unit @ unit.T > 0.5) | (p > np.diag(p)[:, None])
    assert refused.mean() > 0.3  # there was much to refuse
    assert not refused[negatives.queries[filled], negatives.documents[filled]].any()
    for query in every:
        own = negatives.documents[negatives.queries == query].tolist()
        assert len(own) == len(set(own)) and query not in own
    got = scorer.probabilities(negatives.rescores)
    np.testing.assert_allclose(got, p[negatives.queries, negatives.documents], atol=1e-6)


def test_a_second_model_estimates_the_rate_too() -> None:
    asked, there = places()
    generator = np.random.default_rng(9)
    second = Space(
        generator.normal(size=(len(NAMES), 8)).astype(np.float32),
        generator.normal(size=(len(NAMES), 8)).astype(np.float32),
        "second",
    )
    settled = settle(asked, {MODEL: there}, MiningConfig(depth=20))
    rate = judged_by_model("second", second, asked, settled.found, settled.labels)
    products = np.asarray(second.queries) @ np.asarray(second.documents).T
    above = 0
    for query in range(len(asked)):
        hits = [d for d in settled.found.positions[query].tolist() if d != query][:TOP_HITS]
        above += int((products[query, hits] > products[query, query]).sum())
    assert (rate.hits, rate.above) == (len(asked) * TOP_HITS, above)


def test_only_the_first_unlabelled_are_asked_about() -> None:
    labels = np.array([[0, 1, 0, 0], [1, 1, 0, 2]], dtype=np.int8)
    got = first_unlabelled(labels, 2)
    assert got.tolist() == [[True, False, True, False], [False, False, True, False]]


def test_the_interval_covers_and_is_wider_when_hits_of_a_query_agree() -> None:
    """Where a query's hits are drawn alike, 95 % intervals hold the truth about 95 % of the time.

    900 simulated runs: a share below 0.92 or above 0.98 would be four standard deviations off.
    """
    generator = np.random.default_rng(4)
    shape, runs = (200, 10), 900
    covered = {"alike": 0, "independent": 0}
    widths: dict[str, list[float]] = {name: [] for name in covered}
    for _ in range(runs):
        query = generator.beta(0.5, 2.0, (shape[0], 1))  # mean 0.2
        for name, p in (("alike", query), ("independent", 0.2)):
            above = generator.random(shape) < p
            found = _estimate("judge", np.ones(shape, dtype=bool), above)
            covered[name] += found.low <= 0.2 <= found.high
            widths[name].append(found.high - found.low)
    for name, count in covered.items():
        assert 0.92 < count / runs < 0.98, name
    assert np.mean(widths["alike"]) > 1.3 * np.mean(widths["independent"])


def test_an_interval_without_a_hit_or_without_a_doubt() -> None:
    hits = np.ones((30, 10), dtype=bool)
    none = _estimate("judge", hits, np.zeros((30, 10), dtype=bool))
    assert (none.rate, none.low) == (0.0, 0.0) and none.high == pytest.approx(wilson(0.0, 30)[1])
    empty = _estimate("judge", ~hits, hits)
    assert (empty.hits, empty.low, empty.high) == (0, 0.0, 1.0)
