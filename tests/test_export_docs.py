"""docs/export.md: what it shows runs as it stands there."""

import re
from pathlib import Path

import pytest

from tercet.export.onnx_card import SCRIPT
from tests.conftest import NAMES, Run, answer, write_lines

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "export.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def the_block(word: str) -> str:
    (block,) = [block for block in BLOCKS if word in block]
    return block


def test_the_script_without_torch_is_the_one_that_is_tested() -> None:
    assert the_block("onnxruntime") == SCRIPT.read_text(encoding="utf-8")


@pytest.mark.parametrize("engine", ["faiss", "milvus"])
def test_searching_as_the_page_shows(
    engine: str, run: Run, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss" if engine == "faiss" else "milvus_lite", reason="not installed")
    Path("release").symlink_to(tiny_model)
    rows = ({"_id": f"d{n}", "text": answer(n)} for n in range(len(NAMES)))
    write_lines(Path("docs.jsonl"), rows)
    out = ["--out", "found"] if engine == "faiss" else ["--out", "db", "--collection", "passages"]
    status, _, err = run("index", "release", "--data", "docs.jsonl", "--to", engine, *out)
    assert status == 0, err
    exec(compile(the_block("pymilvus" if engine == "milvus" else "read_index"), "page", "exec"), {})
    ids = eval(capsys.readouterr().out)
    assert len(ids) == len(set(ids)) == 10 and all(re.fullmatch(r"d\d+", id_) for id_ in ids)


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
