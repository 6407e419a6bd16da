"""The script of the card and of docs/export.md, in a process that cannot import torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from tercet import stages
from tercet.configs import ModelConfig
from tercet.export.onnx_card import SCRIPT
from tercet.export.parity import cosine
from tercet.export.sample import edge_texts
from tercet.export.variants import FULL, INT8, write_onnx
from tercet.models import Role, encode, load_encoder, truncate
from tests.conftest import answer, question
from tests.encoders import save_encoder
from tests.test_onnx_graph import static_model
from tests.workers.launch import ROOT

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [*edge_texts(64), *map(question, range(5)), *map(answer, range(5))]
ROLES: tuple[Role, ...] = ("query", "document")
WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "sentence_transformers", "tercet", "onnx"):
    sys.modules[name] = None  # importing it is an error from here on
sys.argv = ["encode.py", sys.argv[1], sys.argv[2], sys.argv[3]]
exec(open(sys.argv[2], encoding="utf-8").read().split("if __name__")[0])
import json
import numpy as np
asked = json.load(open(sys.argv[3], encoding="utf-8"))
np.savez("found.npz", query=encode(asked, "query"), document=encode(asked, "document"))
"""


def model_of(form: str, tiny_model: Path, work: Path) -> SentenceTransformer:
    if form == "static student":
        return static_model()
    if form == "prompted":
        return load_encoder(ModelConfig(path=str(save_encoder("bert", work / "prompted"))))
    model = load_encoder(ModelConfig(path=str(tiny_model)))
    if form == "truncated":
        truncate(model, 16)
    return model


def asked(
    python: str, folder: Path, work: Path, file: str = FULL
) -> dict[str, NDArray[np.float32]]:
    """What the script gives with `python`, torch being out of reach."""
    script = SCRIPT.read_text(encoding="utf-8").replace(Path(FULL).name, Path(file).name)
    (work / "encode.py").write_text(script, encoding="utf-8")
    (work / "texts.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    command = [python, "-I", "-c", WITHOUT_TORCH, str(folder), "encode.py", "texts.json"]
    subprocess.run(command, cwd=work, check=True, timeout=120)
    return dict(np.load(work / "found.npz"))


def what_the_command_writes_is_read(python: str, texts: Path, work: Path) -> None:
    """`tercet export --int8 --truncate 16` of a model with prompts, read with `python` alone."""
    path, out = save_encoder("bert", work / "prompted"), work / "out"
    options = stages.onnx_options(int8=True, data=[texts], max_loss=1.0)
    stages.export(str(path), out, truncate_dim=16, onnx=options)
    full, int8 = (asked(python, out, work, file) for file in (FULL, INT8))
    model = load_encoder(ModelConfig(path=str(path)))
    for role in ROLES:
        want = encode(model, TEXTS, role, truncate_dim=16)
        assert want.shape == full[role].shape == int8[role].shape == (len(TEXTS), 16)
        assert cosine(want, full[role]).min() >= 0.99999
        assert cosine(want, int8[role]).mean() > 0.95
    assert np.abs(full["query"] - full["document"]).max() > 0.01


def test_the_commands_own_folder_needs_no_torch(few_texts: Path, tmp_path: Path) -> None:
    what_the_command_writes_is_read(sys.executable, few_texts, tmp_path)


@pytest.mark.parametrize("form", ["truncated", "static student", "prompted", "int8"])
def test_the_script_needs_no_torch(form: str, tiny_model: Path, tmp_path: Path) -> None:
    model = model_of(form, tiny_model, tmp_path)
    model.save(str(tmp_path / "m"), create_model_card=False)
    write_onnx(model, tmp_path / "m", int8=form == "int8")
    found = asked(sys.executable, tmp_path / "m", tmp_path, INT8 if form == "int8" else FULL)
    for role in ROLES:
        want = encode(model, TEXTS, role)
        if form == "int8":
            assert cosine(want, found[role]).mean() > 0.98
        else:
            assert cosine(want, found[role]).min() >= 0.99999
            np.testing.assert_allclose(found[role], want, atol=1e-5)
    if form == "prompted":
        assert np.abs(found["query"] - found["document"]).max() > 0.01


def test_the_script_has_fifteen_lines() -> None:
    code = re.sub(r'^""".*?"""', "", SCRIPT.read_text(encoding="utf-8")).split("if __name__")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


@pytest.mark.slow
def test_the_script_runs_in_an_environment_of_its_own(few_texts: Path, tmp_path: Path) -> None:
    """A fresh environment that holds onnxruntime, tokenizers and NumPy and nothing of ours."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    packages = ["onnxruntime", "tokenizers", "numpy"]
    constraints = str(ROOT / "constraints.txt")
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints, *packages]
    subprocess.run(install, check=True)
    absent = [python, "-I", "-c", "import torch"]
    assert subprocess.run(absent, stderr=subprocess.DEVNULL, check=False).returncode == 1
    what_the_command_writes_is_read(python, few_texts, tmp_path)
