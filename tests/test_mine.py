"""The mining stage: what its files hold, and that nothing known is ever a negative."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tercet.configs.schema import MiningConfig
from tercet.data.mined import with_mined
from tercet.data.rows import Ragged, RetrievalTask, Texts, TrainingSet, text_key
from tercet.errors import UserError
from tercet.files import sha256
from tercet.mining import MODEL, MinedCounts, Space, asked_queries, mine, searchable
from tercet.mining.facts import Asked, evidence, lowest_scores, positive_scores
from tercet.mining.rescore import first_unlabelled
from tercet.mining.select import ABSENT, CODE, KEPT, RULES, VERDICTS, select
from tercet.mining.settle import settle
from tercet.mining.summary import BINS, count, histograms
from tercet.mining.table import SCHEMA

DOCUMENTS = [
    "Fix a flat tyre",
    "fix a  flat tyre",
    "pump up a tyre",
    "bake bread",
    "FIX A FLAT TYRE",
]


def rows() -> TrainingSet:
    """Two queries; document 0 answers the first, and 1 and 4 are the same text as 0."""
    return TrainingSet(
        queries=Texts(["q0", "q1"], ["my tyre is flat", "how is bread made"]),
        documents=Texts([f"d{i}" for i in range(len(DOCUMENTS))], DOCUMENTS),
        row_query=np.array([0, 1, 0]),
        positives=Ragged.of([[0], [3], [0]]),
        negatives=Ragged.of([[], [], []]),
        source_offsets=np.array([0, 3]),
    )


def space() -> Space:
    queries = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    documents = np.array([[0.8, 0.1], [0.8, 0.1], [0.6, 0.2], [0.1, 0.9], [0.8, 0.1]])
    return Space(queries, documents.astype(np.float32), "two axes")


def mined(
    out: Path, asked: Asked | None = None, round_number: int = 0, **settings: Any
) -> tuple[MinedCounts, list[dict[str, Any]]]:
    """Counts, and the rows of the file."""
    asked = asked or asked_queries(rows())
    sides = (np.asarray(side) for side in (space().queries, space().documents))
    queries, documents = (side[rows] for side, rows in zip(sides, (asked.queries, asked.taken)))  # noqa: B905
    there = Space(queries, documents, f"two axes, {asked.taken.tolist()}")
    config = MiningConfig(**settings)
    counts = mine(asked, {MODEL: there}, config, out, miner="abc", round_number=round_number)
    return counts, pq.read_table(out).to_pylist()


def test_the_mined_set_says_what_was_kept_and_why(tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"  # depth is above the corpus
    counts, (first, second) = mined(out, negatives=2, depth=10, relative_margin=0.9)
    assert pq.read_table(out).schema == SCHEMA
    assert first["query_id"] == "q0"
    assert first["positive_ids"] == ["d0", "d1", "d4"]
    assert first["negative_ids"] == ["d2", "d3"]  # 0.6 <= 0.9 * 0.8 = 0.72
    assert first["negative_scores"] == pytest.approx([0.6, 0.1])
    assert first["negative_ranks"] == [4, 5]
    assert first["negative_rules"] == ["top of ranks 1-10, score <= 0.9 of lowest positive"] * 2
    assert first["positive_score"] == pytest.approx(0.8)
    assert first["positive_rescores"] is None and first["relabelled_ids"] == []
    assert (first["miner"], first["round"], first["outcome"]) == ("abc", 0, "full")
    assert second["negative_ids"] == ["d2", "d0"]  # d1 and d4 say what d0 says
    assert (counts.queries, counts.kept, counts.short, counts.without) == (2, 4, 0, 0)
    assert {rule: n for rule, n in counts.dropped.items() if n} == {"known": 4, "repeat": 2}
    assert counts.candidates == 10 and tuple(counts.dropped) == RULES


def test_a_bit_that_was_flipped_is_found_when_the_set_is_read(tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    mined(out, negatives=2, depth=10)
    whole, group = out.read_bytes(), pq.ParquetFile(out).metadata.row_group(0)
    for column in map(group.column, range(group.num_columns)):
        if not column.path_in_schema.startswith(("negative_ids", "negative_scores", "outcome")):
            continue
        start = column.dictionary_page_offset or column.data_page_offset
        damaged = bytearray(whole)
        damaged[start + column.total_compressed_size - 1] ^= 1  # the last byte of its last page
        out.write_bytes(damaged)
        with pytest.raises(
            UserError, match="not readable as Parquet after row 0 .*; write it again"
        ):
            with_mined(rows(), out)


def test_the_summary_beside_it_agrees(tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    # 0.2 * 0.8 = 0.16 leaves d3 to q0 (d2 has 0.6), 0.2 * 0.9 = 0.18 leaves d0 to q1 (d2 has 0.2)
    counts, _ = mined(out, round_number=3, negatives=2, relative_margin=0.2)
    summary = json.loads((tmp_path / "mining.json").read_text())
    assert summary["counts"] == vars(counts)
    assert summary["sha256"] == sha256(out) and summary["file"] == out.name
    assert (summary["miner"], summary["round"]) == ("abc", 3)
    assert MiningConfig(**summary["settings"]) == MiningConfig(negatives=2, relative_margin=0.2)
    assert (counts.short, counts.without, counts.dropped["relative_margin"]) == (2, 0, 2)
    assert summary["score_percentiles"]["lowest_positive"]["0"] == pytest.approx(0.8)
    assert summary["score_percentiles"]["negatives"]["100"] == pytest.approx(0.1)
    assert summary["false_negatives"] is None
    charts = summary["histograms"]
    totals = {n: sum(v) for n, v in charts["scores"].items() if n != "edges"}
    assert totals == {"positive": 2, "kept": 2, "dropped": 8}
    assert sum(charts["ranks"]["kept"]) == 2 and charts["ranks"]["edges"] == [1, 2, 3, 4, 5, 6]
    assert len(summary["samples"]["kept"]) == 2
    one = summary["samples"]["kept"][0]
    assert one["query"] == "my tyre is flat" and one["positive"]["text"] == "Fix a flat tyre"
    assert one["document"] == {"id": "d3", "text": "bake bread", "score": 0.1} and one["rank"] == 5


def test_lists_of_ids_in_many_arrays_are_the_same_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow holds at most 2 GiB of text in one array, which 10^8 ids exceed."""
    asked, there = many()
    config = MiningConfig(depth=40, negatives=5, too_few="fill", relative_margin=0.5)

    def written(name: str) -> tuple[list[int], list[dict[str, Any]]]:
        mine(asked, {MODEL: there}, config, tmp_path / name, miner="m")
        found = pq.read_table(tmp_path / name)
        assert found.schema == SCHEMA
        return [len(line) for line in found["negative_ids"].to_pylist()], found.to_pylist()

    _, whole = written("whole.parquet")
    made: list[tuple[Any, ...]] = []
    plain = pa.array
    monkeypatch.setattr("tercet.mining.table.QUERIES", 7)

    def watched(*given: Any, **how: Any) -> Any:
        made.append(given)
        return plain(*given, **how)

    monkeypatch.setattr(pa, "array", watched)
    counts, parts = written("parts.parquet")
    assert parts == whole and 0 in {rank for line in whole for rank in line["negative_ranks"]}
    texts = [given[0] for given in made if given[1:] == (pa.string(),)]
    assert max(map(len, texts)) == len(asked) and len(texts) > 4 * len(asked) // 7  # no corpus
    for query, line in enumerate(whole):
        assert line["positive_ids"] == [f"d{d}" for d in asked.positives[query]]
        assert line["own_ids"] == [f"d{d}" for d in asked.own[query]]
        assert len(line["negative_rules"]) == counts[query]
        filled = [rule == "random fill" for rule in line["negative_rules"]]
        assert filled == [rank == 0 for rank in line["negative_ranks"]]


def test_a_query_without_survivors_keeps_its_line_and_is_counted(tmp_path: Path) -> None:
    counts, found = mined(tmp_path / "m.parquet", relative_margin=0.01)
    assert counts.without == 2 and counts.kept == 0
    assert [(line["negative_ids"], line["outcome"]) for line in found] == [([], "short")] * 2


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        mined(tmp_path / name / "m.parquet", sampling="random", negatives=1)
    for file in ("m.parquet", "mining.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_only_queries_that_a_row_asks_are_mined(tmp_path: Path) -> None:
    one = replace(
        rows(),
        row_query=np.array([1]),
        positives=Ragged.of([[3]]),
        negatives=Ragged.of([[]]),
        source_offsets=np.array([0, 1]),
    )
    counts, found = mined(tmp_path / "m.parquet", asked_queries(one))
    assert counts.queries == 1 and [line["query_id"] for line in found] == ["q1"]


def test_a_corpus_of_one_document_has_no_negative_to_give(tmp_path: Path) -> None:
    one = TrainingSet(
        Texts(["q"], ["a"]),
        Texts(["d"], ["b"]),
        np.array([0]),
        Ragged.of([[0]]),
        Ragged.of([[]]),
        np.array([0, 1]),
    )
    vectors = np.ones((1, 2), dtype=np.float32)
    for too_few in ("keep", "fill"):
        counts = mine(
            asked_queries(one),
            {MODEL: Space(vectors, vectors, "one")},
            MiningConfig(too_few=too_few),
            tmp_path / "m.parquet",
            miner="m",
        )
        assert (counts.candidates, counts.kept, counts.without) == (1, 0, 1)
    assert with_mined(one, tmp_path / "m.parquet").negatives[0].tolist() == []


def test_rows_take_the_mined_negatives_after_their_own(tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    brought = replace(rows(), negatives=Ragged.of([[2], [], []]))
    _, found = mined(out, asked_queries(brought), negatives=2, relative_margin=0.9)
    assert found[0]["negative_ids"] == ["d3"]  # d2 is its own, and needs no mining
    more = with_mined(brought, out)
    assert [more.negatives[r].tolist() for r in range(3)] == [[2, 3], [2, 0], [3]]


def test_positives_known_elsewhere_are_no_negatives(tmp_path: Path) -> None:
    elsewhere = TrainingSet(
        Texts(["other"], ["My  tyre is FLAT"]),
        Texts(["a", "b"], ["Pump up a tyre", "not in the corpus"]),
        np.array([0]),
        Ragged.of([[0, 1]]),
        Ragged.of([[]]),
        np.array([0, 1]),
    )
    asked = asked_queries(rows(), known=[elsewhere])
    _, (first, second) = mined(tmp_path / "m.parquet", asked, relative_margin=0.9)
    assert first["positive_ids"] == ["d0", "d1", "d2", "d4"]
    assert first["negative_ids"] == ["d3"]
    assert first["positive_score"] == pytest.approx(0.6)
    assert second["negative_ids"] == ["d2", "d0"]  # it answers the other query alone


def test_documents_that_only_held_out_queries_ask_for_are_never_negatives(tmp_path: Path) -> None:
    dev = RetrievalTask(
        "dev",
        "dev",
        Texts(["x", "y", "z"], ["PUMP up a tyre", "bake  bread", "something else"]),
        Texts(["e"], ["flat?"]),
        {"e": {"x": 1, "y": 1, "z": 0}},
    )
    taken = searchable(rows(), [dev])
    assert taken.tolist() == [0, 1, 3, 4]  # bread is trained on
    asked = asked_queries(rows(), taken=taken)
    counts, (first, second) = mined(tmp_path / "m.parquet", asked, relative_margin=None)
    assert first["negative_ids"] == ["d3"] and second["negative_ids"] == ["d0"]
    assert first["negative_ranks"] == [4] and counts.candidates == 8  # it takes no place
    summary = json.loads((tmp_path / "mining.json").read_text())
    assert summary["held_out"] == {"left_out": 0, "marked": 1}


def test_what_other_splits_say_is_known(tmp_path: Path) -> None:
    told = replace(rows(), elsewhere=((text_key("My  tyre is FLAT"), 2), (text_key("else"), 3)))
    _, (first, second) = mined(tmp_path / "m.parquet", asked_queries(told), relative_margin=0.9)
    assert first["positive_ids"] == ["d0", "d1", "d2", "d4"] and first["negative_ids"] == ["d3"]
    assert second["positive_ids"] == ["d3"]


def test_a_mined_set_says_what_it_came_from(tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    config = MiningConfig(negatives=2)
    mine(asked_queries(rows()), {MODEL: space()}, config, out, miner="abc", made_by={"data": "d"})
    metadata = pq.read_schema(out).metadata
    noted = json.loads(metadata[b"tercet"])
    written = json.loads((tmp_path / "mining.json").read_text())
    assert noted == written["provenance"] | {"settings": written["settings"]}
    assert noted["sources"] == {MODEL: "two axes"} and noted["data"] == "d"
    assert MiningConfig(**noted["settings"]) == config and noted["cross_encoder"] is None


def test_ids_that_name_other_texts_by_now_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    mined(out, negatives=2, relative_margin=0.9)
    same = replace(rows(), documents=Texts(rows().documents.ids, [f" {t}" for t in DOCUMENTS]))
    assert with_mined(same, out).negatives[0].tolist() == [2, 3]  # equal but for a space
    edited = [*DOCUMENTS[:2], "another text", *DOCUMENTS[3:]]
    with pytest.raises(UserError, match="row 1: negative 'd2' was another text when this was"):
        with_mined(replace(rows(), documents=Texts(rows().documents.ids, edited)), out)
    asked = Texts(["q0", "q1"], ["my tyre is flat", "who bakes?"])
    with pytest.raises(UserError, match="row 2: query 'q1' was another text"):
        with_mined(replace(rows(), queries=asked), out)
    edited = [*DOCUMENTS[:4], "another text"]  # a known positive, whose score may be learnt
    with pytest.raises(UserError, match="row 1: positive 'd4' was another text"):
        with_mined(replace(rows(), documents=Texts(rows().documents.ids, edited)), out)


@pytest.mark.parametrize("sampling", ["top", "random", "softmax"])
def test_the_order_of_a_file_changes_nothing(sampling: Any, tmp_path: Path) -> None:
    """Scores of whole numbers tie within the lists and at their ends; lists are filled as well."""
    generator = np.random.default_rng(8)
    count, queries = 60, 12
    documents = generator.integers(-2, 3, (count, 4)).astype(np.float32)
    sides = generator.integers(-2, 3, (queries, 4)).astype(np.float32)

    def of_order(order: list[int]) -> list[dict[str, Any]]:
        data = TrainingSet(
            Texts([f"q{i}" for i in range(queries)], [f"query {i}" for i in range(queries)]),
            Texts([f"d{i}" for i in order], [f"text {i}" for i in order]),
            np.arange(queries),
            Ragged.of([[order.index(q)] for q in range(queries)]),
            Ragged.of([[order.index(q + 20)] for q in range(queries)]),
            np.array([0, queries]),
        )
        asked = asked_queries(data, taken=searchable(data))
        there = Space(sides, documents[order][asked.taken], f"{order}")
        config = MiningConfig(depth=12, negatives=6, max_score=4, sampling=sampling, too_few="fill")
        mine(asked, {MODEL: there}, config, tmp_path / "m.parquet", miner="m")
        return pq.read_table(tmp_path / "m.parquet").to_pylist()

    plain = of_order(list(range(count)))
    assert {0} < {rank for line in plain for rank in line["negative_ranks"]}
    for seed in range(3):
        assert of_order(np.random.default_rng(seed).permutation(count).tolist()) == plain


def many(seed: int = 3, queries: int = 40, documents: int = 300) -> tuple[Asked, Space]:
    """Random vectors and labels, some of several positives, in eight dimensions."""
    generator = np.random.default_rng(seed)
    texts = [f"text {i % 280}" for i in range(documents)]  # some occur twice
    positives = [generator.integers(0, documents, generator.integers(1, 4)) for _ in range(queries)]
    data = TrainingSet(
        Texts([f"q{i}" for i in range(queries)], [f"query {i}" for i in range(queries)]),
        Texts([f"d{i}" for i in range(documents)], texts),
        np.arange(queries),
        Ragged.of([np.unique(p).tolist() for p in positives]),
        Ragged.of([generator.integers(0, documents, 2).tolist() for _ in range(queries)]),
        np.array([0, queries]),
    )
    sides = [generator.normal(size=(n, 8)).astype(np.float32) for n in (queries, documents)]
    return asked_queries(data), Space(sides[0], sides[1], f"random {seed}")


def test_the_stage_does_what_the_pure_rules_say_block_by_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tercet.mining.facts.BLOCK", 7)
    asked, there = many()
    config = MiningConfig(depth=60, near_duplicate=0.7, sampling="softmax", relative_margin=0.9)
    settled = settle(asked, {MODEL: there}, config)
    products = np.asarray(there.queries) @ np.asarray(there.documents).T
    for query in range(len(asked)):
        positives = asked.positives[query]
        order = np.argsort(-products[query], kind="stable")[:60]
        assert settled.found.positions[query].tolist() == order.tolist()
        assert settled.lowest[query] == pytest.approx(products[query][positives].min(), rel=1e-5)
        unit = np.asarray(there.documents)
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        like = (unit[order] @ unit[positives].T).max(axis=1)
        known = evidence(
            asked, settled.found, there, settled.lowest, slice(query, query + 1), config
        )
        assert known.likeness is not None
        np.testing.assert_allclose(known.likeness[0], like, atol=1e-6)
        texts = asked.documents.same
        assert known.known[0].tolist() == np.isin(texts[order], texts[positives]).tolist()
        assert known.own[0].tolist() == np.isin(texts[order], texts[asked.own[query]]).tolist()
        assert settled.verdicts[query].tolist() == select(known, config)[0].tolist()
    found = {VERDICTS[code] for code in np.unique(settled.verdicts)}
    assert found >= {"kept", "known", "repeat", "own", "near_duplicate", "relative_margin"}
    lowest = lowest_scores(asked, positive_scores(asked, there))
    assert lowest.tolist() == settled.lowest.tolist()


def test_what_is_counted_by_blocks_is_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tercet.mining.facts.BLOCK", 7)
    asked, there = many()
    config = MiningConfig(depth=60, near_duplicate=0.7, relative_margin=0.9)
    settled = settle(asked, {MODEL: there}, config)
    settled.verdicts[3:5, 40:] = ABSENT
    verdicts = settled.verdicts
    counts = count(settled, np.zeros(len(asked), np.int64), config.negatives)
    for rule, found in counts.dropped.items():
        assert found == (verdicts == CODE[rule]).sum()
    assert counts.candidates == verdicts.size - 40
    dropped = (verdicts != KEPT) & (verdicts != ABSENT)
    scores = {
        "positive": settled.lowest,
        "kept": settled.negatives.scores,
        "dropped": np.asarray(settled.found.scores)[dropped],
    }
    ranks = {"kept": settled.negatives.ranks, "dropped": np.nonzero(dropped)[1] + 1}
    together = np.concatenate(list(scores.values()))
    span = np.linspace(float(together.min()), float(together.max()), BINS + 1)
    charts = histograms(settled)
    for name, groups, edges in (("scores", scores, span), ("ranks", ranks, np.arange(1, 63, 2))):
        assert charts[name].pop("edges") == pytest.approx(edges, abs=1e-6)
        assert charts[name] == {g: np.histogram(v, edges)[0].tolist() for g, v in groups.items()}
    open_ = settled.labels == KEPT
    want = open_ & (np.cumsum(open_, axis=1) <= 10)
    assert np.array_equal(first_unlabelled(settled.labels, 10), want)


def test_counting_holds_no_number_for_each_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tercet.mining.facts.BLOCK", 500)
    asked, there = many(queries=20_000)
    settled = settle(asked, {MODEL: there}, MiningConfig(depth=50))
    outcome = np.zeros(len(asked), np.int64)
    tracemalloc.start()
    count(settled, outcome, 8)
    histograms(settled)
    first_unlabelled(settled.labels, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * settled.verdicts.size  # bytes: of one int64 each


def test_lists_that_are_too_short_are_filled_from_outside_the_candidates() -> None:
    asked, there = many()
    settings = {"depth": 30, "negatives": 6, "relative_margin": None, "max_score": 3.0}
    kept = settle(asked, {MODEL: there}, MiningConfig(**settings)).negatives
    config = MiningConfig(too_few="fill", **settings)
    filled = settle(asked, {MODEL: there}, config)
    again = settle(asked, {MODEL: there}, config)
    negatives, same = filled.negatives, asked.documents.same
    assert (kept.counts(len(asked)) < 6).any()
    assert negatives.counts(len(asked)).tolist() == [6] * len(asked)
    assert negatives.documents.tolist() == again.negatives.documents.tolist()
    assert negatives.documents[negatives.ranks > 0].tolist() == kept.documents.tolist()
    assert (np.diff(negatives.queries) >= 0).all()
    products = np.asarray(there.queries) @ np.asarray(there.documents).T
    expected = products[negatives.queries, negatives.documents]
    np.testing.assert_allclose(negatives.scores, expected, rtol=1e-5, atol=1e-6)
    for query in range(len(asked)):
        own = negatives.queries == query
        drawn = negatives.documents[own & (negatives.ranks == 0)]
        banned = [filled.found.positions[query], asked.positives[query], asked.own[query]]
        assert not set(same[drawn]) & set(same[np.concatenate(banned)])
        assert len(set(same[negatives.documents[own]])) == 6


@pytest.mark.parametrize(
    "rule",
    [{"relative_margin": 0.9}, {"absolute_margin": 1.0}, {"max_score": 0.5}, {"min_score": 8.0}],
)
def test_what_fills_a_list_keeps_to_the_rules_on_scores(rule: dict[str, float]) -> None:
    """A positive far down the list: much of the corpus scores above it. min_score asks for less."""
    asked, there = many()
    settings: dict[str, Any] = {"depth": 8, "negatives": 6, "relative_margin": None, **rule}
    config = MiningConfig(**settings, too_few="fill")
    settled = settle(asked, {MODEL: there}, config)
    negatives = settled.negatives
    filled = negatives.ranks == 0
    lowest = settled.lowest[negatives.queries[filled]]
    highest = {
        "relative_margin": lowest - 0.1 * np.abs(lowest),
        "absolute_margin": lowest - 1.0,
        "max_score": np.full_like(lowest, 0.5),
        "min_score": np.full_like(lowest, np.inf),
    }
    (name,) = rule
    assert filled.sum() > 50
    assert (negatives.scores[filled] <= highest[name] + 1e-6).all()
    products = np.asarray(there.queries) @ np.asarray(there.documents).T
    refused = products[negatives.queries[filled]] > highest[name][:, None]
    assert name == "min_score" or refused.mean() > 0.2  # there was much to refuse


def test_a_dropped_query_is_not_trained_on(tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    settings = {"negatives": 2, "relative_margin": 0.7}  # d2 has 0.6 > 0.7 * 0.8 for q0
    counts, found = mined(out, too_few="drop", **settings)
    assert [line["outcome"] for line in found] == ["dropped", "full"]
    assert (counts.given_up, counts.kept, counts.dropped["too_few"]) == (1, 2, 1)
    left = with_mined(rows(), out)
    assert left.row_query.tolist() == [1] and left.source_offsets.tolist() == [0, 1]
    assert [left.positives[0].tolist(), left.negatives[0].tolist()] == [[3], [2, 0]]
    mined(out, too_few="drop", negatives=2, relative_margin=0.01)
    with pytest.raises(UserError, match="every query was dropped.*mining.too_few=keep"):
        with_mined(rows(), out)


def test_what_was_relabelled_becomes_a_positive_of_every_row_of_its_query(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.parquet"
    mined(out, negatives=2, relative_margin=0.9)
    table = pq.read_table(out)
    column = table.schema.get_field_index("relabelled_ids")
    table = table.set_column(column, SCHEMA.field(column), [[["d2"], []]])
    pq.write_table(table, out)
    more = with_mined(rows(), out)
    assert [more.positives[r].tolist() for r in range(3)] == [[0, 2], [3], [0, 2]]
    assert more.negatives[0].tolist() == [3]  # d2 was a negative, and is an answer by now
    assert "1 relabelled documents become positives" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"skip": 5, "depth": 5}, "skip 5 leaves nothing of depth 5"),
        ({"sources": ()}, "at least one"),
        ({"sources": ("bm25", "bm25")}, "none twice"),
        ({"rescore": {"relabel": True}}, "relabel needs rescore.model"),
        ({"min_score": 0.5, "max_score": 0.4}, "min_score 0.5 is above max_score 0.4"),
        ({"negatives": 8, "depth": 10, "skip": 3}, "negatives 8 are more than the 7"),
        ({"negatives": 9, "rescore": {"model": "m", "depth": 8}}, "more than the 8 candidates"),
        ({"sources": ("model", "a/b", {"path": "a/b", "max_length": 9})}, "none twice"),
    ],
)
def test_settings_that_leave_nothing_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        MiningConfig(**settings)


def test_vectors_that_are_not_finite_are_named(tmp_path: Path) -> None:
    broken = np.array(space().documents)
    broken[3, 1] = np.nan
    with pytest.raises(UserError, match="document vectors, row 3: not finite"):
        mine(
            asked_queries(rows()),
            {MODEL: replace(space(), documents=broken, fingerprint="broken")},
            MiningConfig(),
            tmp_path / "m.parquet",
            miner="m",
        )
    assert not (tmp_path / "m.parquet").exists()
