"""`tercet store`: what is kept, whether it is sound, and making room."""

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from tercet.cache import locked
from tercet.configs import ModelConfig
from tercet.configs.schema import MiningConfig
from tercet.data.tokens import TokenCache, token_cache
from tercet.errors import UserError
from tercet.mining import MODEL, Space
from tercet.mining.candidates import Candidates, find_candidates
from tercet.models import Vectors, load_encoder, vectors
from tercet.models.cross import cross_scores, load_scorer
from tercet.models.housekeeping import Stored, all_stored, damaged, read_bytes, remove, to_prune
from tests.conftest import Run

TEXTS = ["a bamex is an animal", "where does the bamex live", "of"]
DAY = 86_400


@pytest.fixture
def kept(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three stores: of one, two and three texts, last used today, ten and twenty days ago."""
    model = load_encoder(ModelConfig(path=str(tiny_model)))
    for count in (1, 2, 3):
        vectors(model, TEXTS[:count], "query")
    folder = Path(os.environ["TERCET_CACHE"]) / "vectors"
    for store in all_stored():
        assert store.manifest is not None
        then = time.time() - (store.manifest.rows - 1) * 10 * DAY
        os.utime(store.place / "manifest.json", (then, then))
    return folder


def rows(stores: list) -> list[int]:
    return [store.manifest.rows for store in stores]


def test_list_shows_what_is_kept(kept: Path, run: Run, tiny_model: Path) -> None:
    (next(kept.iterdir()).parent / "stray").mkdir()
    status, out, err = run("store", "list")
    assert (status, err) == (0, "")
    lines = [line for line in out.splitlines() if "query" in line]
    assert len(lines) == 3 and all("complete" in line and " 32 " in line for line in lines)
    assert tiny_model.parent.name in out
    assert "unreadable" in out
    assert out.splitlines()[-1].startswith("4 stores, ") and str(kept.parent) in out


def test_list_without_a_store(run: Run) -> None:
    status, out, _ = run("store", "list")
    assert status == 0 and out.startswith("0 stores, 0.0 MB in ")


@pytest.mark.parametrize("words", [("list",), ("verify",), ("prune", "--keep-bytes", "0")])
def test_object_storage_is_no_cache(
    words: tuple[str, ...], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERCET_CACHE", "s3://bucket/tercet")
    status, _, err = run("store", *words)
    assert status == 2 and "TERCET_CACHE: s3:/bucket/tercet is an address, not a folder" in err
    assert not list(tmp_path.iterdir())


def test_what_is_no_store_is_told_and_nothing_else_suffers(kept: Path, run: Run) -> None:
    (kept / "folder" / "manifest.json").mkdir(parents=True)
    (kept / "loop" / "inside").mkdir(parents=True)
    (kept / "loop" / "inside" / "link").symlink_to(kept / "loop" / "inside" / "link")
    (kept.parent / "tokens" / "t" / "tokens.json").mkdir(parents=True)
    status, out, _ = run("store", "list")
    assert status == 0 and out.count("complete") == 4 and out.count("unreadable") == 2
    status, out, _ = run("store", "verify")
    assert status == 1 and out.splitlines()[-1] == "6 stores, 2 damaged files"
    assert run("store", "prune", "--older-than", "1", "--dry-run")[0] == 0


def test_a_cache_that_is_a_file_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("TERCET_CACHE", str(tmp_path / "cache"))
    for words in (["list"], ["verify"], ["prune", "--keep-bytes", "0"]):
        status, _, err = run("store", *words)
        assert status == 2 and "cannot be read (Not a directory); set TERCET_CACHE to ano" in err


def test_verify_names_the_damaged_shard(kept: Path, run: Run) -> None:
    assert run("store", "verify")[:2] == (0, "3 stores, 0 damaged files\n")
    shard = min(kept.rglob("*.npy"))
    shard.write_bytes(shard.read_bytes()[:-1])
    status, out, _ = run("store", "verify")
    assert status == 1
    assert out == f"damaged: {shard}\n3 stores, 1 damaged files\n"
    shard.unlink()
    assert damaged(all_stored()) == [shard]


def test_verify_leaves_a_newer_store_alone(kept: Path) -> None:
    manifest = min(kept.rglob("manifest.json"))
    manifest.write_text('{"format": 99}')
    assert damaged(all_stored()) == []
    assert sorted(store.state for store in all_stored())[-1] == "format 99"
    manifest.write_text("{")
    assert damaged(all_stored()) == [manifest]


@pytest.mark.parametrize("wrong", [5, None, ["m"]])
def test_a_manifest_of_wrong_kinds_is_unreadable(kept: Path, wrong: object, run: Run) -> None:
    manifest = min(kept.rglob("manifest.json"))
    found = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps(found | {"model": wrong}))
    status, out, _ = run("store", "list")
    assert status == 0 and out.count("unreadable") == 1
    assert damaged(all_stored()) == [manifest]


def test_an_unfinished_store_says_how_far_it_is(kept: Path) -> None:
    place = min(kept.iterdir())
    text = (place / "manifest.json").read_text()
    head = text[: text.index('"shards": [')]
    (place / "manifest.json").write_text(head + '"shards": []}')
    (store,) = (s for s in all_stored() if s.place == place)
    assert store.state == "0 of 1 shards"
    assert damaged([store]) == []


def test_what_is_pruned(kept: Path) -> None:
    stores = all_stored()
    assert rows(stores) == [1, 2, 3]  # the last used first
    size = {store.manifest.rows: store.size for store in stores if store.manifest}
    assert rows(to_prune(stores, older_than=timedelta(days=15))) == [3]
    assert rows(to_prune(stores, older_than=timedelta(days=5))) == [3, 2]
    assert rows(to_prune(stores, keep_bytes=size[1] + size[2])) == [3]
    assert rows(to_prune(stores, keep_bytes=size[1] + size[2] - 1)) == [3, 2]
    assert rows(to_prune(stores, keep_bytes=0)) == [3, 2, 1]
    assert rows(to_prune(stores, keep_bytes=0, older_than=timedelta(days=15))) == [3]
    assert rows(to_prune(stores, keep_bytes=10**9)) == []
    assert rows(to_prune(stores, model=stores[0].model)) == [3, 2, 1]
    assert rows(to_prune(stores, model="another")) == []


def use_tokens() -> TokenCache:
    return token_cache(TEXTS, lambda texts: [np.zeros(3, np.int32)] * len(texts), "key")


def use_candidates() -> Candidates:
    vectors = np.eye(3, dtype=np.float32)
    spaces = {MODEL: Space(vectors, vectors, "eye")}
    return find_candidates(spaces, TEXTS, TEXTS, MiningConfig(negatives=1, depth=2))


@pytest.mark.parametrize("kind", ["tokens", "candidates", "pairs"])
def test_what_is_used_again_is_not_pruned(
    kind: str, judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the times at which its files were read: some disks do not keep them."""

    def use_pairs() -> None:
        cross_scores(load_scorer(str(judge)), [(TEXTS[1], TEXTS[0])])

    use = {"tokens": use_tokens, "candidates": use_candidates, "pairs": use_pairs}[kind]

    def old() -> list[Stored]:
        return to_prune(all_stored(), older_than=timedelta(days=30))

    use()
    (store,) = all_stored()
    assert store.kind == kind and not old()
    long_ago = time.time() - 40 * DAY
    for path in (*store.place.rglob("*"), store.place):
        os.utime(path, (long_ago, long_ago))
    assert [one.place for one in old()] == [store.place]
    with monkeypatch.context() as patch:  # the folder is another user's
        patch.setattr(os, "utime", denied)
        use()
    assert old()
    use()
    assert not old()


def denied(*_: object) -> None:
    raise PermissionError


def test_prune_says_what_it_freed(kept: Path, run: Run) -> None:
    status, out, _ = run("store", "prune", "--older-than", "5", "--dry-run")
    assert status == 0 and out.count("would remove") == 2 and "would be freed" in out
    assert len(all_stored()) == 3
    status, out, _ = run("store", "prune", "--older-than", "5")
    assert status == 0 and out.count("removed: ") == 2 and out.endswith("MB freed\n")
    assert rows(all_stored()) == [1]


def test_pruning_names_the_models_there_are(kept: Path, run: Run, tiny_model: Path) -> None:
    name = tiny_model.parent.name if tiny_model.name == "model" else tiny_model.name
    status, _, err = run("store", "prune", "--model", name[:-1])
    assert status == 2 and f"no store is of {name[:-1]!r}; did you mean {name!r}?" in err
    status, _, err = run("store", "prune", "--model", "embedded")
    assert status == 2 and f"no store is of 'embedded'; there are {name}" in err
    status, out, _ = run("store", "prune", "--model", name)
    assert status == 0 and out.count("removed: ") == 3
    assert run("store", "prune", "--model", name)[0] == 0  # nothing is left to be mistaken


def test_a_store_in_use_is_kept(kept: Path) -> None:
    store = all_stored()[0]
    with locked(store.place) as held:
        assert held and not remove(store)
    assert store.place.exists()
    assert remove(store) and not store.place.exists()


@pytest.mark.parametrize("kind", ["vectors", "tokens", "candidates"])
def test_what_a_run_reads_is_kept_as_long_as_it_does(kind: str, tiny_model: Path) -> None:
    def use_vectors() -> Vectors:
        return vectors(load_encoder(ModelConfig(path=str(tiny_model))), TEXTS, "query")

    use = {"vectors": use_vectors, "tokens": use_tokens, "candidates": use_candidates}[kind]
    readers = [use(), use()]  # neither waits for the other
    (store,) = all_stored()
    while readers:
        assert not remove(store) and store.place.exists()
        del readers[0]
    assert remove(store) and not store.place.exists()


@pytest.mark.parametrize(
    ("kind", "name"), [("tokens", "ids.npy"), ("candidates", "scores.npy"), ("pairs", "*.npz")]
)
def test_verify_sees_damage_of_every_kind(kind: str, name: str, judge: Path, run: Run) -> None:
    if kind == "pairs":
        cross_scores(load_scorer(str(judge)), [(TEXTS[1], TEXTS[0])])
    else:
        {"tokens": use_tokens, "candidates": use_candidates}[kind]()
    assert run("store", "verify")[:2] == (0, "1 stores, 0 damaged files\n")
    (file,) = all_stored()[0].place.rglob(name)
    data = bytearray(file.read_bytes())
    data[data.index(b"NUMPY")] ^= 1
    file.write_bytes(data)
    status, out, _ = run("store", "verify")
    assert (status, out) == (1, f"damaged: {file}\n1 stores, 1 damaged files\n")


@contextmanager
def another_user() -> Iterator[None]:
    """Anybody but root, whom no permission stops."""
    us = os.geteuid()
    if us == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(us)


@pytest.mark.parametrize("locks", ["left", "missing"])
def test_what_another_user_has_stored_is_read(
    locks: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_encoder(ModelConfig(path=str(tiny_model)))
    with TemporaryDirectory() as cache:  # others may look into it, not so into pytest's
        Path(cache).chmod(0o755)
        monkeypatch.setenv("TERCET_CACHE", cache)
        before = np.array(vectors(model, TEXTS, "query"))
        use_tokens()
        use_candidates()
        if locks == "missing":
            for lock in Path(cache).rglob(".lock"):
                lock.unlink()
        folders = [path for path in Path(cache).rglob("*") if path.is_dir()]
        for folder in folders:
            folder.chmod(0o555)
        with another_user():
            assert np.array_equal(vectors(model, TEXTS, "query"), before)
            assert use_tokens().ids.tolist() == [0] * 9
            assert use_candidates().positions.shape == (3, 2)
            with pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"):
                vectors(model, [*TEXTS, "another"], "query")
        for folder in folders:
            folder.chmod(0o755)


def read_only(path: Path, _: Path) -> None:
    raise OSError(errno.EROFS, "Read-only file system", str(path))


def test_what_another_user_has_stored_is_not_removed(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    with TemporaryDirectory() as cache:
        Path(cache).chmod(0o755)
        monkeypatch.setenv("TERCET_CACHE", cache)
        vectors(load_encoder(ModelConfig(path=str(tiny_model))), TEXTS, "query")
        (store,) = all_stored()
        store.place.parent.chmod(0o555)
        with another_user():
            status, out, _ = run("store", "prune", "--older-than", "0")
        assert status == 0 and "not ours to remove, kept" in out and "0.0 MB freed" in out
        assert all_stored() == [store]
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", read_only)
            assert not remove(store) and store.place.exists()
        (shard,) = store.place.glob("*.npy")
        shard.chmod(0)
        with another_user():
            status, _, err = run("store", "verify")
        assert status == 2 and f"{shard}: cannot be read (Permission denied); make it" in err
        store.place.parent.chmod(0o755)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "say what to remove"),
        (["--keep-bytes", "much"], "'much' is not a size; write 500MB or 20GB"),
        (["--older-than", "-1"], "--older-than: -1 is not a number of days"),
        (["--older-than", "1e300"], "--older-than: 1e+300 is not a number of days"),
    ],
)
def test_mistakes(words: list[str], complaint: str, run: Run) -> None:
    status, out, err = run("store", "prune", *words)
    assert status == 2 and complaint in err and not out


def test_sizes() -> None:
    assert [read_bytes(text) for text in ("7", "500MB", "2 tb")] == [7, 5 * 10**8, 2 * 10**12]
