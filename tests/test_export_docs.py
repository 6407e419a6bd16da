"""docs/export.md: what it shows runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from tercet.export.onnx_card import SCRIPT
from tercet.files import write_json
from tercet.models.quantise import LEVEL, bits, calibrate, int8_codes
from tests.conftest import NAMES, Run, answer, write_lines

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "export.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def the_block(word: str) -> str:
    (block,) = [block for block in BLOCKS if word in block]
    return block


def test_the_script_without_torch_is_the_one_that_is_tested() -> None:
    assert the_block("onnxruntime") == SCRIPT.read_text(encoding="utf-8")


BLOCK = {"faiss": "index.search(query, 10)", "milvus": "MilvusClient"}
PLACE = {"faiss": ["--out", "found"], "milvus": ["--out", "db", "--collection", "passages"]}


@pytest.fixture
def release(run: Run, tiny_model: Path) -> SentenceTransformer:  # `run` is in a new folder
    """What the page's snippets load and index."""
    Path("release").symlink_to(tiny_model)
    rows = ({"_id": f"d{n}", "text": answer(n)} for n in range(len(NAMES)))
    write_lines(Path("docs.jsonl"), rows)
    return SentenceTransformer("release")


def indexed(run: Run, *words: str) -> None:
    status, _, err = run("index", "release", "--data", "docs.jsonl", *words)
    assert status == 0, err


def printed(block: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    exec(compile(block, "page", "exec"), {})
    return eval(capsys.readouterr().out)


def best_ten(model: SentenceTransformer, dims: int | None = None) -> list[str]:
    """Ids in the order of the cosines of the page's query with all documents."""
    query = model.encode_query("how to open a file")[:dims]
    documents = model.encode_document([answer(n) for n in range(len(NAMES))])[:, :dims]
    scores = documents @ query / np.linalg.norm(documents, axis=1)
    return [f"d{n}" for n in np.argsort(-scores)[:10]]


@pytest.mark.parametrize("engine", ["faiss", "milvus"])
def test_searching_as_the_page_shows(
    engine: str, run: Run, release: SentenceTransformer, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss" if engine == "faiss" else "milvus_lite", reason="not installed")
    indexed(run, "--to", engine, *PLACE[engine])
    block = the_block(BLOCK[engine])
    assert printed(block, capsys) == best_ten(release)
    indexed(run, "--to", engine, *PLACE[engine], "--truncate", "16", "--overwrite")
    cut = block.replace('("release")', '("release", truncate_dim=16)')
    assert cut != block and printed(cut, capsys) == best_ten(release, 16)


def test_int8_in_faiss_is_asked_like_floats(
    run: Run, release: SentenceTransformer, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss", reason="not installed")
    indexed(run, "--to", "faiss", "--vectors", "int8", "--out", "found")
    found = printed(the_block(BLOCK["faiss"]), capsys)
    assert len(set(found)) == 10 and len({*found} & {*best_ten(release)}) >= 8


def test_candidates_of_bits_are_scored_again(
    run: Run, release: SentenceTransformer, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss", reason="not installed")
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("tercet index") and "--out bits" in line or "--out floats" in line:
            command = line.split("#")[0].replace("test/", "docs.jsonl")
            status, _, err = run(*command.split()[1:])
            assert status == 0, err
    found = printed(the_block("read_index_binary"), capsys)
    best = best_ten(release)
    assert len(set(found)) == 10 and len({*found} & {*best}) >= 7  # 40 of the 48 are candidates
    assert [id_ for id_ in best if id_ in found] == found[: len({*found} & {*best})]


def test_queries_for_a_milvus_server_are_coded_as_its_documents_are(
    release: SentenceTransformer,
) -> None:
    """Such a server was never asked; what it would be sent is compared."""
    query = release.encode_query(["how to open a file"])
    ranges = calibrate(query * np.float32(0.9))  # so that something is cut
    Path("db").mkdir()
    write_json(Path("db/index.json"), {"int8_scale": LEVEL / ranges.largest})
    names: dict[str, Any] = {}
    exec(compile(the_block("int8_scale"), "page", "exec"), names)
    np.testing.assert_array_equal(np.stack(names["int8"]), int8_codes(query, ranges))
    assert names["binary"] == [row.tobytes() for row in bits(query)]


def test_the_commands_of_the_page_exist(run: Run) -> None:
    told = PAGE.read_text(encoding="utf-8")
    for command in ("export", "index"):
        status, out, _ = run(command, "--help")
        assert status == 0
        known = set(re.findall(r"--[a-z][a-z0-9-]+", out))
        lines = [line for line in told.splitlines() if line.startswith(f"tercet {command} ")]
        assert lines
        for line in lines:
            assert set(re.findall(r"--[a-z][a-z0-9-]+", line.split("#")[0])) <= known, line
