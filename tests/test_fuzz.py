"""Readers given anything: a result or one line of complaint; never a traceback, a hang or a file.

Each input is a valid file that was mutated, or bytes made by hypothesis. The valid files are ones
that Tercet's own writers or the libraries made, and are read without a complaint, so that a
mutation reaches what reads them and not only a check at the door. The long form (`make
test-faults`) reads at least 100,000.
"""

import faulthandler
import functools
import gzip
import hashlib
import io
import json
import math
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tercet.configs import Source
from tercet.configs.load import parse
from tercet.configs.schema import MiningConfig
from tercet.data import TrainingSet, read_task, read_training, with_mined
from tercet.errors import UserError
from tercet.evaluation import read_result
from tercet.mining import MODEL, Space
from tercet.mining.candidates import Candidates, find_candidates
from tercet.models.housekeeping import all_stored, damaged
from tercet.models.load import UNREADABLE, refuse_escapes
from tercet.models.shards import begin, finish, open_vectors, unsound
from tercet.report import console_table, store_table
from tercet.train.checkpoint import MANIFEST, manifest_of, newest, verify
from tercet.train.output import config_changes
from tercet.train.state import read_state
from tercet.train.tracking import read_log
from tests.stores import FACTS, write_all

SECONDS = 5.0  # for one input
ROWS = [{"query": f"sort {n}", "positive": [f"xs.sort({n})", "ü\u2028"]} for n in range(3)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b'query,positive\na,"b, c"\n"two\nlines",d\n'
YAML = (
    b"output: x\nmodel: {path: embedded, prompts: {query: 'q: '}}\nbatch: &b\n  size: 8\n"
    b"train: {epochs: 1.5, betas: [0.9, 0.99]}\ndata:\n  train:\n  - {path: a.csv, ignore: [x]}\n"
)
CORPUS = b'{"_id": "d1", "title": "t", "text": "xs.sort()"}\n{"_id": "d2", "text": "b"}\n'
QUERIES = b'{"_id": "q1", "text": "sort a list"}\n'
QRELS = b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n"


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


@functools.cache
def training() -> TrainingSet:
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(JSONL)
        file.flush()
        return read_training([Source(path=file.name)])


def mined() -> bytes:
    data = training()
    ids = data.documents.ids
    return parquet(
        [
            {
                "query_id": query,
                "negative_ids": [ids[-1]],
                "negative_rescores": [0.5],
                "positive_ids": ids[:1],
                "positive_rescores": [1.0],
                "relabelled_ids": [],
                "relabelled_rescores": [],
                "outcome": "kept",
            }
            for query in data.queries.ids
        ]
    )


@functools.cache
def saved_dataset() -> dict[str, bytes]:
    """The files of `Dataset.save_to_disk`."""
    with tempfile.TemporaryDirectory() as folder:
        Dataset.from_list(ROWS).save_to_disk(folder)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def read_file(name: str) -> Callable[[bytes, Path], object]:
    def read(data: bytes, folder: Path) -> object:
        (folder / name).write_bytes(data)
        return read_training([Source(path=str(folder / name))])

    return read


def read_beir(part: str) -> Callable[[bytes, Path], object]:
    def read(data: bytes, folder: Path) -> object:
        (folder / "qrels").mkdir(exist_ok=True)
        parts = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.tsv": QRELS}
        for name, content in (parts | {part: data}).items():
            (folder / name).write_bytes(content)
        return read_task(folder)

    return read


def read_beir_rows(data: bytes, folder: Path) -> object:
    """As rows to train on."""
    (folder / "qrels").mkdir(exist_ok=True)
    parts = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/train.tsv": data}
    for name, content in parts.items():
        (folder / name).write_bytes(content)
    return read_training([Source(path=str(folder))])


def searched(folder: Path) -> Candidates:
    spaces = {MODEL: Space(VECTORS, VECTORS, "eye")}
    texts = ["a", "b", "c"]
    config = MiningConfig(negatives=1, depth=2)
    return find_candidates(spaces, texts, texts, config, folder=folder / "lists")


@functools.cache
def listed() -> bytes:
    """What `find_candidates` writes beside its arrays."""
    with tempfile.TemporaryDirectory() as name:
        searched(Path(name))
        return next(Path(name).rglob("list.json")).read_bytes()


def read_list(data: bytes, folder: Path) -> object:
    """As a second run does that wants the same candidates: a damaged list is made again."""
    for left in folder.rglob("list.json"):  # perhaps of a newer version, which is refused
        left.write_bytes(listed())
    searched(folder)
    written = next(folder.rglob("list.json"))
    written.write_bytes(data)
    found = searched(folder)
    if written.read_bytes() != data:
        raise UserError("made again")
    return found


def read_mined(data: bytes, folder: Path) -> object:
    (folder / "mined.parquet").write_bytes(data)
    return with_mined(training(), folder / "mined.parquet")


def read_dataset(part: str) -> Callable[[bytes, Path], object]:
    def read(data: bytes, folder: Path) -> object:
        (folder / "saved").mkdir(exist_ok=True)
        for name, content in (saved_dataset() | {part: data}).items():
            (folder / "saved" / name).write_bytes(content)
        return read_training([Source(path=str(folder / "saved"))])

    return read


def read_modules(data: bytes, folder: Path) -> object:
    """As a model is loaded, which turns these errors, and no others, into a complaint."""
    (folder / "modules.json").write_bytes(data)
    try:
        return refuse_escapes(folder / "modules.json")
    except UNREADABLE as error:
        raise UserError("cannot be loaded") from error


def read_scores(data: bytes, folder: Path) -> object:
    (folder / "result.json").write_bytes(data)
    return read_result(folder / "result.json")


def read_checkpoint_state(data: bytes, folder: Path) -> object:
    """Its manifest has the hash of what is there, or the state would not be looked at."""
    checkpoint = folder / "step-00000001"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "state.json").write_bytes(data)
    written = manifest_of({"state.json": hashlib.sha256(data).hexdigest()})
    (checkpoint / MANIFEST).write_text(json.dumps(written), encoding="utf-8")
    assert newest(folder) == checkpoint
    state = read_state(checkpoint)
    config_changes(state["config"], parse(YAML.decode(), "a.yaml"), ())
    return state


def read_config(data: bytes, folder: Path) -> object:
    return parse(data.decode("utf-8", errors="replace"), "a.yaml")


def read_checkpoint(data: bytes, folder: Path) -> object:
    (folder / "state.json").write_bytes(STATE)
    (folder / MANIFEST).write_bytes(data)
    damage = verify(folder)
    if damage is not None:
        raise UserError(damage)
    return folder


@functools.cache
def stored() -> dict[str, bytes]:
    """The files of a store of three shards."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        manifest = begin(place, FACTS, alone=True)
        write_all(place, manifest)
        finish(place, manifest)
        return {file.name: file.read_bytes() for file in place.iterdir()}


def read_store(data: bytes, folder: Path) -> object:
    """As `tercet store list` and `verify` do, then as a run that wants these vectors."""
    place = folder / "stores" / FACTS.fingerprint
    place.mkdir(parents=True, exist_ok=True)
    for name, content in (stored() | {"manifest.json": data}).items():
        (place / name).write_bytes(content)
    found = all_stored(folder / "stores")
    console_table(store_table(found))
    damaged(found)
    if found[0].manifest is None:
        raise UserError("unreadable")
    manifest = begin(place, FACTS, alone=True)
    if not manifest.complete or unsound(place, manifest, range(manifest.shards)):
        return None  # its shards are made again
    vectors = open_vectors(place, manifest)
    assert np.asarray(vectors).shape == (FACTS.rows, FACTS.dim)
    return vectors


def read_run_log(data: bytes, folder: Path) -> object:
    (folder / "run.jsonl").write_bytes(data)
    lines = read_log(folder / "run.jsonl")
    if not lines:
        raise UserError("not one whole line")
    return lines


VECTORS = np.eye(3, dtype=np.float32)
STATE = json.dumps(
    {
        "step": 1,
        "best": {"step": 1, "value": 0.5},
        "skipped": 0,
        "micro_tokens": 64,
        "keep_tokens": 0,
        "processes": 1,
        "config": parse(YAML.decode(), "a.yaml").model_dump(mode="json"),
        "beside": {"train.mixed_precision": "no"},
        "data": {"rows": 3},
        "models": {},
        "code": {"source": "x"},
        "mined": {"file": "mined/step-00000000/mined.parquet", "sha256": "x", "until": 4},
        "scaler": None,
    }
).encode()
CHECKPOINT = json.dumps(manifest_of({"state.json": hashlib.sha256(STATE).hexdigest()}))
MODULES = (
    b'[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]'
)
MEAN = {"mean": 0.5, "low": 0.4, "high": 0.6}
SCORES = {"model": "m", "split": "test", "scores": {"ndcg@10": {"q": 0.5}}, "seconds": 1.0}
OURS = SCORES | {
    "means": {"ndcg@10": MEAN},
    "counts": {"queries": 1},
    "fingerprints": {"task": "x"},
}
MORE = {"prompts": {"query": None}, "versions": {"torch": "2"}, "languages": ["eng-Latn"]}
RESULT = json.dumps({"task_name": "t", "tercet": OURS | MORE}).encode()
READERS: dict[str, tuple[Callable[[bytes, Path], object], bytes]] = {
    "jsonl": (read_file("a.jsonl"), JSONL),
    "jsonl.gz": (read_file("a.jsonl.gz"), gzip.compress(JSONL, mtime=0)),
    "csv": (read_file("a.csv"), CSV),
    "parquet": (read_file("a.parquet"), parquet(ROWS)),
    "mined": (read_mined, mined()),
    "dataset": (read_dataset("data-00000-of-00001.arrow"), b""),
    "dataset state": (read_dataset("state.json"), b""),
    "dataset info": (read_dataset("dataset_info.json"), b""),
    "beir corpus": (read_beir("corpus.jsonl"), CORPUS),
    "beir queries": (read_beir("queries.jsonl"), QUERIES),
    "beir qrels": (read_beir("qrels/test.tsv"), QRELS),
    "beir rows": (read_beir_rows, QRELS),
    "list": (read_list, b""),
    "config": (read_config, YAML),
    "checkpoint": (read_checkpoint, CHECKPOINT.encode()),
    "state": (read_checkpoint_state, STATE),
    "modules": (read_modules, MODULES),
    "result": (read_scores, RESULT),
    "store": (read_store, stored()["manifest.json"]),
    "log": (read_run_log, b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": "nan"}\n'),
}
PIECES = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r\n", b'"', b"'", b"{", b"}", b"[" * 99, b",",
    b":", b"\t", b"\\ud800", b"NaN", b"1e999", b"-1", b"9" * 5000, b"null", b"../", b"/etc/passwd",
    b"*b", b"&b", b"!!python/name:os.system", b"${oc.env:HOME}", b"${x}", b"<<: *b",
)  # fmt: skip


ODD = (
    None,
    True,
    -1,
    0,
    10**30,
    0.5,
    math.nan,
    "",
    "x",
    "../../x",
    "\ud800",
    [],
    {},
    [[]],
    {"": 1},
)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A value of its JSON replaced, or a few bytes flipped, cut, doubled or put in."""
    if draw.randrange(2) and (other := restated(data, draw)) != data:
        return other
    found = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at, kind = draw.randint(0, len(found)), draw.randrange(5)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del found[at : at + draw.randint(1, 20)]
        elif kind == 2:
            found[at:at] = found[at : at + draw.randint(1, 30)]
        elif kind == 3:
            found[at:at] = draw.choice(PIECES)
        else:
            found = found[:at]
    return bytes(found)


def restated(data: bytes, draw: random.Random) -> bytes:
    """JSON, whole or one of its lines, with something in it replaced; other files as they are."""
    with suppress(ValueError):
        return json.dumps(replaced(json.loads(data), draw)).encode()
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    with suppress(ValueError):
        lines[at] = json.dumps(replaced(json.loads(lines[at]), draw)).encode()
    return b"\n".join(lines)


def replaced(value: Any, draw: random.Random) -> Any:
    """Another value instead of it, of one that it holds, or that one left out."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.1:
        return draw.choice(ODD)
    found = value.copy()
    key = draw.choice(list(found) if isinstance(found, dict) else range(len(found)))
    if draw.random() < 0.1:
        del found[key]
    else:
        found[key] = replaced(found[key], draw)
    return found


def survives(reader: str, data: bytes, folder: Path) -> bool:
    """Read `data`; fail on anything but a result or a UserError of one line, and on other files.

    Returns whether it was taken without a complaint.
    """
    read, elsewhere, taken = READERS[reader][0], list[str](), True
    try:
        with in_time(), watched(folder, elsewhere):
            read(data, folder)
    except UserError as error:
        taken = False
        assert "\n" not in str(error), (reader, data)
    except (Exception, Hang) as error:
        raise AssertionError(f"{reader}: {type(error).__name__}: {error} on {data!r}") from error
    assert not elsewhere, (reader, data, elsewhere)
    return taken


class Hang(BaseException):
    """No ordinary exception, which a reader might take for a mistake in its file."""


@contextmanager
def in_time() -> Iterator[None]:
    """Raise Hang after SECONDS; what does not come back to Python is ended later, with a trace."""

    def ring(*_: object) -> None:
        raise Hang(f"{SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(10 * SECONDS, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


WATCHED: list[tuple[Path, list[str]]] = []  # the folder that may be written to, and what else was
CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate"}


@contextmanager
def watched(folder: Path, elsewhere: list[str]) -> Iterator[None]:
    """Note what is opened for writing, made, renamed or removed outside `folder` and the cache."""
    _install_hook()
    WATCHED.append((folder, elsewhere))
    try:
        yield
    finally:
        WATCHED.pop()


@functools.cache
def _install_hook() -> None:
    sys.addaudithook(_notice)  # for as long as the process lives


def _notice(event: str, given: tuple[Any, ...]) -> None:
    if not WATCHED or not (event in CHANGES or (event == "open" and _writes(given))):
        return
    folder, found = WATCHED[-1]
    allowed = (str(folder), os.environ["TERCET_CACHE"], os.devnull)
    # What removes a tree names its files below an open folder.
    inside = given[1] if event in ("os.remove", "os.rmdir") else -1
    base = os.readlink(f"/proc/self/fd/{inside}") if inside >= 0 else ""
    for part in given[: 2 if event == "os.rename" else 1]:
        if isinstance(part, str | bytes | os.PathLike):
            path = os.path.abspath(os.path.join(base, os.fsdecode(part)))
            if not path.startswith(allowed):
                found.append(f"{event} {path}")


def _writes(given: tuple[Any, ...]) -> bool:
    """Of an "open" event: path, mode, flags."""
    flags = given[2] if len(given) > 2 and isinstance(given[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


def test_the_watch_sees_hangs_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    elsewhere: list[str] = []
    with watched(tmp_path / "in", elsewhere):
        (tmp_path / "in" / "a").write_text("x")
        assert not elsewhere
        (tmp_path / "b").write_text("x")
        (tmp_path / "b").rename(tmp_path / "c")
    assert [line.split()[0] for line in elsewhere] == ["open", "os.rename", "os.rename"]
    monkeypatch.setattr(f"{__name__}.SECONDS", 0.05)
    with pytest.raises(Hang), in_time():
        while True:
            pass


def fuzz(reader: str, count: int, tmp_path: Path, seed: int) -> int:
    """Read so many different mutations of a file that is itself read; how many were taken."""
    folder = tmp_path / "in"
    folder.mkdir()
    draw = random.Random(seed)
    start = valid(reader)
    assert survives(reader, start, folder), f"{reader}: the file that is mutated is refused"
    seen, taken = {start}, 0
    while len(seen) <= count:
        data = mutated(start, draw)
        if data not in seen:
            seen.add(data)
            taken += survives(reader, data, folder)
    return taken


def valid(reader: str) -> bytes:
    """The file that is mutated."""
    if reader == "list":
        return listed()
    names = {"dataset": "data-00000-of-00001.arrow", "dataset state": "state.json"}
    names["dataset info"] = "dataset_info.json"
    return saved_dataset()[names[reader]] if reader in names else READERS[reader][1]


def fuzz_bytes(reader: str, count: int, tmp_path: Path) -> None:
    folder = tmp_path / "bytes"
    folder.mkdir()
    read = [0]

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(_encode)))
    def check(data: bytes) -> None:
        read[0] += 1
        survives(reader, data, folder)

    check()
    assert read[0] >= count, (reader, read)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")


def inputs(reader: str, long: bool) -> tuple[int, int]:
    """How many mutations a form of the test reads, and how many of hypothesis' bytes."""
    if reader.startswith(("dataset", "list")):  # which take milliseconds to open, or to write
        return (2_000, 200) if long else (30, 10)
    return (7_000, 1_000) if long else (100, 25)


def test_the_long_form_reads_a_hundred_thousand() -> None:
    assert sum(sum(inputs(reader, long=True)) for reader in READERS) >= 100_000


@pytest.mark.parametrize("reader", READERS)
def test_readers_take_anything(reader: str, tmp_path: Path) -> None:
    mutations, others = inputs(reader, long=False)
    fuzz(reader, mutations, tmp_path, seed=0)
    fuzz_bytes(reader, others, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("reader", READERS)
def test_readers_take_a_hundred_thousand_inputs(reader: str, tmp_path: Path) -> None:
    mutations, others = inputs(reader, long=True)
    taken = fuzz(reader, mutations, tmp_path, seed=1)
    assert 0 < taken < mutations  # some change nothing that matters, and some are noticed
    fuzz_bytes(reader, others, tmp_path)
