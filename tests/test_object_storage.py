"""Stores that are copied through fsspec as docs/scale.md says: its program is run on a file system
that lives in memory."""

import re
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tercet.configs import ModelConfig
from tercet.models import load_encoder, store, vectors
from tests.conftest import Run

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
TEXTS = [f"text {number}" for number in range(200)]  # of several shards


def test_a_copy_is_a_store(
    run: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = PAGE.read_text(encoding="utf-8").partition("- **Object storage.**")[2]
    match = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert match is not None
    program = match[1].replace('"s3"', '"memory"').replace("/local/", f"{tmp_path}/local/")
    model = load_encoder(ModelConfig(path=str(tiny_model)))
    monkeypatch.setenv("TERCET_CACHE", str(tmp_path / "first"))
    before = np.array(vectors(model, TEXTS, "document"))
    (tmp_path / "local" / "run" / "model").mkdir(parents=True)
    (tmp_path / "local" / "run" / "model" / "modules.json").write_text("[]")
    remote = fsspec.filesystem("memory")
    try:
        remote.put(f"{tmp_path}/first/vectors/", "bucket/tercet/vectors/", recursive=True)
        shutil.rmtree(tmp_path / "first")
        exec(program, {})
        assert remote.cat_file("bucket/run/model/modules.json") == b"[]"
    finally:
        remote.rm("bucket", recursive=True)
    monkeypatch.setenv("TERCET_CACHE", str(tmp_path / "local" / "tercet"))
    assert run("store", "verify")[:2] == (0, "1 stores, 0 damaged files\n")
    monkeypatch.setattr(store, "encode_parts", None)  # nothing is left to encode
    assert np.array_equal(vectors(model, TEXTS, "document"), before)
