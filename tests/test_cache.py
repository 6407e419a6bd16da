"""Who is at work on a folder of the cache: waiting, sharing, removing, and disks without locks."""

import errno
import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tercet import cache
from tercet.cache import LOCK, Held, locked, save_array
from tercet.errors import UserError
from tercet.files import disk_errors, sha256
from tercet.models.housekeeping import all_stored, damaged
from tercet.models.shards import (
    MANIFEST,
    begin,
    finish,
    open_vectors,
    read_manifest,
    unsound,
    write_shard,
)
from tests.disk import full_disk
from tests.stores import FACTS, ROWS, write_all


class Waiting:
    """Another run that wants a folder: `got` says what it got, once it has, until it is ended."""

    def __init__(self, place: Path) -> None:
        self.place, self.got, self.enough = place, [], threading.Event()
        self.run = threading.Thread(target=self._work)
        self.run.start()
        time.sleep(0.1)

    def _work(self) -> None:
        with locked(self.place) as held:
            self.got.append(held)
            self.enough.wait(30)

    def gets(self) -> Held:
        """Wait for what it gets."""
        ends = time.monotonic() + 20
        while not self.got and time.monotonic() < ends:
            time.sleep(0.01)
        return self.got[0]

    def end(self) -> None:
        self.enough.set()
        self.run.join(30)


def test_one_run_waits_for_the_other(tmp_path: Path) -> None:
    place = tmp_path / "store"
    with locked(place) as held, locked(place, wait=False) as second:
        assert (held, second) == (Held.YES, Held.NO)
        other = Waiting(place)
        assert other.got == []
    assert other.gets() is Held.YES
    other.end()
    with locked(place, wait=False) as free:
        assert free is Held.YES


def test_those_that_share_keep_out_who_would_be_alone(tmp_path: Path) -> None:
    place = tmp_path / "pairs"
    with locked(place, shared=True) as one, locked(place, shared=True, wait=False) as two:
        assert (one, two) == (Held.YES, Held.YES)
        with locked(place, wait=False) as alone:
            assert alone is Held.NO


def test_a_run_that_waited_for_a_folder_that_was_removed_locks_a_new_one(tmp_path: Path) -> None:
    place = tmp_path / "store"
    with locked(place):
        other = Waiting(place)
        place.rename(tmp_path / "gone")  # as `tercet store prune` does
        shutil.rmtree(tmp_path / "gone")
        assert other.got == []
    assert other.gets() is Held.YES and (place / LOCK).exists()
    with locked(place, wait=False) as second:
        assert second is Held.NO  # what it holds is the lock that others see
    other.end()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network disk that has none."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(cache.fcntl, "flock", refuse)


def test_without_locks_two_runs_leave_each_other_alone(no_locks: None, tmp_path: Path) -> None:
    place = tmp_path / "store"
    with locked(place) as first, locked(place) as second:
        assert first is second is Held.UNSURE
        mine = begin(place, FACTS, alone=False)
        write_shard(place, 0, ROWS[:2])
        young, old = place / ".00001.npy.7.partial", place / ".00002.npy.7.partial"
        for partial in (young, old):
            partial.write_bytes(b"half")
        long_ago = time.time() - 3 * 86_400
        os.utime(old, (long_ago, long_ago))
        theirs = begin(place, FACTS, alone=False)
        assert young.exists() and not old.exists() and mine == theirs
        write_all(place, theirs)
        whole = finish(place, theirs)
        assert finish(place, mine).hashes == whole.hashes  # its notes are gone already
        assert finish(place, whole) == whole
        assert (np.asarray(open_vectors(place, whole)) == ROWS).all()


def test_who_is_alone_clears_away_what_is_half_written(tmp_path: Path) -> None:
    (tmp_path / ".00001.npy.7.partial").write_bytes(b"half")
    begin(tmp_path, FACTS, alone=True)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    "change",
    [
        {"shard_rows": 0},
        {"shard_rows": "2"},
        {"shard_rows": 2.0},
        {"shard_rows": True},
        {"rows": 4},
        {"rows": -1},
        {"dim": 4},
        {"dtype": "float16"},
        {"fingerprint": "another"},
        {"shards": [{"sha256": "only one of three"}]},
    ],
    ids=str,
)
def test_a_manifest_that_speaks_of_something_else_is_written_anew(
    change: dict[str, Any], tmp_path: Path
) -> None:
    place = tmp_path / "store"
    place.mkdir()
    write_all(place, begin(place, FACTS, alone=True))
    path = place / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    all_stored(tmp_path)  # lists it all the same
    found = begin(place, FACTS, alone=True)
    assert found == FACTS == read_manifest(place)
    assert unsound(place, found, range(3)) == [0, 1, 2]  # not one shard is trusted


def test_a_store_that_is_cut_otherwise_is_read_as_it_is(tmp_path: Path) -> None:
    other = replace(FACTS, shard_rows=4)
    write_all(tmp_path, begin(tmp_path, other, alone=True))
    whole = finish(tmp_path, other)
    assert begin(tmp_path, FACTS, alone=True) == whole


def test_stores_are_listed_and_verified_while_runs_write_and_remove_them(tmp_path: Path) -> None:
    """For half a second; the writer makes every kind of file that comes and goes."""
    ends, failed = time.monotonic() + 0.5, []

    def work(place: Path) -> None:
        try:
            while time.monotonic() < ends:
                with locked(place) as held:
                    manifest = begin(place, FACTS, alone=held is Held.YES)
                    write_all(place, manifest)
                    finish(place, manifest)
                    place.rename(tmp_path / f".{place.name}.gone")
                shutil.rmtree(tmp_path / f".{place.name}.gone")
        except BaseException as error:
            failed.append(error)
            raise

    runs = [threading.Thread(target=work, args=(tmp_path / name,)) for name in "ab"]
    for run in runs:
        run.start()
    looked = 0
    while any(run.is_alive() for run in runs):
        stores = all_stored(tmp_path)
        assert not damaged(stores)
        assert all(store.place.name in "ab" for store in stores)
        looked += 1
    assert not failed and looked > 3


def test_an_array_is_written_with_its_hash_and_a_full_disk_keeps_its_reason(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.npy"
    assert save_array(path, ROWS[:, ::2]) == sha256(path)
    assert (np.load(path, mmap_mode="r") == ROWS[:, ::2]).all()
    with pytest.raises(UserError, match=r"cannot be written \(File too large\); make room"):  # noqa: SIM117
        with disk_errors(tmp_path, cache.CACHE), full_disk():
            save_array(path, ROWS)
