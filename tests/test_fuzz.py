"""Readers given anything: a result or one line of complaint; never a traceback, a hang or a file.

Each example is a valid file that was mutated, or bytes made by hypothesis. The long form (`make
test-faults`) reads at least 100,000.
"""

import gzip
import io
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tercet.configs import Source
from tercet.configs.load import parse
from tercet.data import read_task, read_training
from tercet.errors import UserError
from tercet.models.shards import read_manifest
from tercet.train.checkpoint import MANIFEST, manifest_of, verify
from tercet.train.tracking import read_log

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


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


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


def read_config(data: bytes, folder: Path) -> object:
    return parse(data.decode("utf-8", errors="replace"), "a.yaml")


def read_checkpoint(data: bytes, folder: Path) -> object:
    (folder / "state.json").write_text("{}")
    (folder / MANIFEST).write_bytes(data)
    return verify(folder)


def read_store(data: bytes, folder: Path) -> object:
    (folder / "manifest.json").write_bytes(data)
    return read_manifest(folder)


def read_run_log(data: bytes, folder: Path) -> object:
    (folder / "run.jsonl").write_bytes(data)
    return read_log(folder / "run.jsonl")


CHECKPOINT = json.dumps(manifest_of({"state.json": "0" * 64}))
STORE = json.dumps({"format": 3, "fingerprint": "x", "rows": 3, "shards": [{"sha256": "0"}]})
READERS: dict[str, tuple[Callable[[bytes, Path], object], bytes]] = {
    "jsonl": (read_file("a.jsonl"), JSONL),
    "jsonl.gz": (read_file("a.jsonl.gz"), gzip.compress(JSONL, mtime=0)),
    "csv": (read_file("a.csv"), CSV),
    "parquet": (read_file("a.parquet"), parquet()),
    "beir corpus": (read_beir("corpus.jsonl"), CORPUS),
    "beir queries": (read_beir("queries.jsonl"), QUERIES),
    "beir qrels": (read_beir("qrels/test.tsv"), QRELS),
    "config": (read_config, YAML),
    "checkpoint": (read_checkpoint, CHECKPOINT.encode()),
    "store": (read_store, STORE.encode()),
    "log": (read_run_log, b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": "nan"}\n'),
}
PIECES = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r\n", b'"', b"'", b"{", b"}", b"[" * 99, b",",
    b":", b"\t", b"\\ud800", b"NaN", b"1e999", b"-1", b"9" * 5000, b"null", b"../", b"/etc/passwd",
    b"*b", b"&b", b"!!python/name:os.system", b"${oc.env:HOME}", b"${x}", b"<<: *b",
)  # fmt: skip


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A few bytes flipped, cut, doubled or put in."""
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


def survives(reader: str, data: bytes, folder: Path) -> None:
    """Read `data`; fail on anything but a result or a UserError of one line, and on other files."""
    read = READERS[reader][0]
    before = {path for path in folder.parent.iterdir()}
    start = time.monotonic()
    try:
        read(data, folder)
    except UserError as error:
        assert "\n" not in str(error), (reader, data)
    except Exception as error:
        raise AssertionError(f"{reader}: {type(error).__name__}: {error} on {data!r}") from error
    assert time.monotonic() - start < SECONDS, (reader, data)
    assert {path for path in folder.parent.iterdir()} == before


def fuzz(reader: str, count: int, tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    draw = random.Random(seed)
    for _ in range(count):
        survives(reader, mutated(READERS[reader][1], draw), folder)


def fuzz_bytes(reader: str, count: int, tmp_path: Path) -> None:
    folder = tmp_path / "bytes"
    folder.mkdir()

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(_encode)))
    def check(data: bytes) -> None:
        survives(reader, data, folder)

    check()


def _encode(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")


@pytest.mark.parametrize("reader", READERS)
def test_readers_take_anything(reader: str, tmp_path: Path) -> None:
    fuzz(reader, 120, tmp_path, seed=0)
    fuzz_bytes(reader, 25, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("reader", READERS)
def test_readers_take_a_hundred_thousand_inputs(reader: str, tmp_path: Path) -> None:
    fuzz(reader, 9_000, tmp_path, seed=1)
    fuzz_bytes(reader, 1_000, tmp_path)
