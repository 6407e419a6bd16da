"""Candidate lists: what they hold, and that none is searched for twice."""

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tercet.configs.schema import MiningConfig
from tercet.errors import UserError
from tercet.files import cache_folder
from tercet.mining import BM25, MODEL, Space, candidates
from tercet.mining.ann import AnnSettings
from tercet.mining.candidates import Picked, cosines, find_candidates, inner_products
from tercet.mining.fuse import reciprocal_rank_fusion
from tercet.mining.lexical import lexical_top_k
from tests.disk import full_disk

QUERIES = ["flat tyre", "bake bread", "zebra"]
DOCUMENTS = ["pump a flat tyre", "bake bread", "fix a tyre", "toast bread", "sail a boat"]


def space(seed: int = 0) -> Space:
    generator = np.random.default_rng(seed)
    sides = [generator.normal(size=(n, 4)).astype(np.float32) for n in (3, 5)]
    return Space(sides[0], sides[1], f"space {seed}")


def products(there: Space) -> NDArray[np.float32]:
    return np.asarray(there.queries) @ np.asarray(there.documents).T


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The depth of every dense search that is really made."""
    made: list[int] = []
    plain = candidates.shared_top_k

    def counting(queries: Any, documents: Any, k: int) -> Any:
        made.append(k)
        return plain(queries, documents, k)

    monkeypatch.setattr(candidates, "shared_top_k", counting)
    return made


def find(there: Space | None = None, **settings: Any) -> candidates.Candidates:
    spaces = {MODEL: there or space(), "other": space(7)}
    told: dict[str, Any] = {"negatives": 1} | settings
    return find_candidates(spaces, QUERIES, DOCUMENTS, MiningConfig(**told))


def test_a_second_search_is_read_from_the_first(searches: list[int]) -> None:
    first, second = find(depth=4), find(depth=4, relative_margin=0.5, negatives=2)
    assert searches == [4]
    assert np.array_equal(first.scores, second.scores)
    assert np.array_equal(first.positions, second.positions)
    order = np.argsort(-products(space()), axis=1)[:, :4]
    assert np.array_equal(first.positions, order)


def test_a_deeper_list_serves_a_shallower_search(searches: list[int]) -> None:
    deep, shallow = find(depth=5), find(depth=2)
    assert searches == [5]
    assert np.array_equal(deep.positions[:, :2], shallow.positions)
    find(depth=7)  # deeper than any there is, and than the corpus
    assert searches == [5, 7]


def test_other_vectors_never_hit(searches: list[int]) -> None:
    find(depth=4)
    other = find(space(1), depth=4)
    assert searches == [4, 4]
    assert np.array_equal(other.positions, np.argsort(-products(space(1)), axis=1)[:, :4])


@pytest.mark.parametrize("damage", ["flip", "cut", "manifest", "nested", "recall"])
def test_a_damaged_list_is_made_again(damage: str, own_cache: None, searches: list[int]) -> None:
    before = np.array(find(depth=4).scores)
    (folder,) = (cache_folder() / "candidates").glob("*/[!.]*")
    file = folder / ("scores.npy" if damage in ("flip", "cut") else "list.json")
    data = bytearray(file.read_bytes())
    flipped = bytearray([*data[:-3], data[-3] ^ 1, *data[-2:]])
    half, nested = data[: len(data) // 2], b"[" * 100_000
    other = data.replace(b'"recall": null', b'"recall": "all"')
    changed = {"flip": flipped, "cut": half, "manifest": half, "nested": nested, "recall": other}
    file.write_bytes(changed[damage])
    assert np.array_equal(find(depth=4).scores, before)
    assert searches == [4, 4]
    find(depth=4)
    assert searches == [4, 4]


def test_scores_are_the_models_whatever_found_the_candidates() -> None:
    found = find(sources=(BM25,), depth=3)
    _, positions = lexical_top_k(QUERIES, DOCUMENTS, 3)
    assert np.array_equal(found.positions, positions)
    assert found.positions[2].tolist() == [-1, -1, -1]  # no document has a zebra
    rows, columns = np.nonzero(positions >= 0)
    expected = products(space())[rows, positions[rows, columns]]
    np.testing.assert_allclose(found.scores[rows, columns], expected, rtol=1e-6)
    assert np.isneginf(found.scores[2]).all()


def test_several_sources_are_fused_by_rank() -> None:
    found = find(sources=(MODEL, BM25, "other"), depth=4)
    lists = [
        (np.zeros((3, 4), np.float32), np.argsort(-products(there), axis=1)[:, :4])
        for there in (space(), space(7))
    ]
    lists.insert(1, lexical_top_k(QUERIES, DOCUMENTS, 4))
    expected = reciprocal_rank_fusion(lists, 4)[1]
    assert np.array_equal(found.positions, expected)
    rows = np.arange(3)[:, None]
    np.testing.assert_allclose(found.scores, products(space())[rows, expected], rtol=1e-6)


def test_an_approximate_search_reports_its_recall() -> None:
    pytest.importorskip("faiss")
    found = find(index="hnsw", depth=3)
    assert found.recall == {MODEL: 1.0}  # so few documents are searched exactly
    assert np.array_equal(found.positions, find(depth=3).positions)


def test_an_index_with_other_settings_is_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    asked: list[int] = []
    plain = candidates.ann_top_k

    def counting(*given: Any, **more: Any) -> Any:
        asked.append(1)
        return plain(*given, **more)

    monkeypatch.setattr(candidates, "ann_top_k", counting)
    find(index="hnsw", depth=3)
    find(index="hnsw", depth=3)
    assert len(asked) == 1
    harder = AnnSettings(lists=1, probes=1, code_bytes=1, ef_search=512)
    monkeypatch.setattr(candidates, "settings_for", lambda *_: harder)
    find(index="hnsw", depth=3)
    assert len(asked) == 2


def test_a_list_of_a_newer_version_or_one_that_cannot_be_read_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find(depth=4)
    (path,) = (cache_folder() / "candidates").glob("*/*/list.json")

    def busy(_: object) -> str:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be read .Too many"):
        patch.setattr(candidates, "sha256", busy)
        find(depth=4)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="written by a newer version"):
        find(depth=4)
    assert (path.parent / "scores.npy").exists()


def test_a_full_disk_is_one_line_and_leaves_no_list() -> None:
    with full_disk(), pytest.raises(UserError, match=r"cannot be written \(File too large\); make"):
        find(depth=4)
    assert not list((cache_folder() / "candidates").glob("*/[!.]*"))
    assert find(depth=4).positions.shape == (3, 4)


def test_picked_rows_are_those_of_the_vectors() -> None:
    whole = np.arange(12, dtype=np.float32).reshape(6, 2)
    order = np.array([4, 0, 5])
    found = Picked(whole, order)
    assert found.shape == (3, 2) and len(found) == 3
    assert found[0:2].tolist() == whole[[4, 0]].tolist()
    assert found[np.array([2, 2, 0])].tolist() == whole[[5, 5, 4]].tolist()


def test_pairs_score_as_the_plain_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "PAIRS", 3)
    there = space()
    queries, documents = np.array([0, 2, 1, 1, 0, 2, 2]), np.array([4, 0, 0, 3, 1, 1, 4])
    got = inner_products(there, queries, documents)
    np.testing.assert_allclose(got, products(there)[queries, documents], rtol=1e-6)
    vectors = np.array([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0], [-6.0, -8.0]], dtype=np.float32)
    found = cosines(vectors, np.array([0, 0, 0, 0]), np.array([0, 1, 2, 3]))
    np.testing.assert_allclose(found, [1.0, 0.96, 0.0, -1.0], rtol=1e-6)


def test_the_list_says_what_it_is(own_cache: None) -> None:
    find(depth=4)
    (folder,) = (cache_folder() / "candidates").glob("*/[!.]*")
    facts = json.loads((folder / "list.json").read_text())
    assert folder.name == "00000004" and facts["recall"] is None
    assert set(facts["sha256"]) == {"scores.npy", "positions.npy"}
