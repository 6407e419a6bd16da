"""`tercet export --onnx --int8`: complete, measured, usable without us, or not there at all."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from tercet import stages
from tercet.configs import ModelConfig
from tercet.data import RetrievalTask, Texts, write_task
from tercet.errors import UserError
from tercet.export import parity as parity_module
from tercet.export.card import SCRIPT, without_section
from tercet.export.parity import cosine, refuse_worse
from tercet.export.runtime import OnnxEncoder
from tercet.export.sample import EDGE_TEXTS, make_sample, spread
from tercet.export.variants import _keep_best
from tercet.models import encode, load_encoder
from tests.conftest import NAMES, Run, answer, question

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parent.parent
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


def small_task(folder: Path) -> Path:
    queries = Texts([f"q{n}" for n in range(len(NAMES))], [question(n) for n in range(len(NAMES))])
    documents = Texts([f"d{n}" for n in range(len(NAMES))], [answer(n) for n in range(len(NAMES))])
    qrels = {f"q{n}": {f"d{n}": 1} for n in range(len(NAMES))}
    write_task(RetrievalTask(folder.name, "test", documents, queries, qrels), folder)
    return folder


@pytest.fixture
def few_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A small task, and no filling up to a thousand texts."""
    monkeypatch.setattr("tercet.export.sample.LEAST", 0)
    monkeypatch.setattr("tercet.export.parity.ASKED", 12)
    return small_task(tmp_path / "animals")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Everything asked for, on the thousand texts that are taken by default."""
    folder = tmp_path_factory.mktemp("export")
    texts = folder / "texts.txt"
    texts.write_text("\n".join([*map(question, range(48)), *map(answer, range(48))]))
    options = stages.onnx_options(int8=True, calibrate=[texts], max_loss=1.0)
    stages.export(str(tiny_model), folder / "out", truncate_dim=16, onnx=options)
    return folder / "out"


def test_the_folder_is_complete(exported: Path) -> None:
    files = {str(file.relative_to(exported)) for file in exported.rglob("*") if file.is_file()}
    assert {
        "README.md",
        "parity.json",
        "modules.json",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "tokenizer.json",
        "1_Pooling/config.json",
        "onnx/model.onnx",
        "onnx/model_int8.onnx",
        "onnx/tokenizer.json",
    } <= files
    assert not [file for file in files if "dynamic" in file or "static" in file]


def test_parity_says_all_that_was_measured(exported: Path) -> None:
    told: dict[str, Any] = json.loads((exported / "parity.json").read_text(encoding="utf-8"))
    assert told["texts"]["compared"] >= 1_000 and told["texts"]["tasks"] == ["stdlib"]
    assert told["opset"] == 17 and told["dimensions"] == 16
    assert told["machine"]["processor"] and told["machine"]["threads"] >= 1
    assert {"onnxruntime", "torch", "tercet"} <= told["versions"].keys()
    variants = told["variants"]
    assert list(variants)[:3] == ["model.safetensors", "onnx/model.onnx", "onnx/model_int8.onnx"]
    assert sorted(v["quantisation"] for v in list(variants.values())[2:]) == ["dynamic", "static"]
    for name, found in variants.items():
        assert found["kept"] == (not name.startswith("int8, "))
        quality = found["tasks"]["stdlib"]
        assert quality["queries"] == 500 and quality["before"]["low"] <= quality["before"]["mean"]
        assert found["latency_ms"]["p50"] <= found["latency_ms"]["p95"]
        assert found["texts_per_second"] > 0 and found["load_seconds"] > 0
        if name.startswith("onnx"):
            assert found["megabytes"] == (exported / name).stat().st_size / 1e6
    for name in ("model.safetensors", "onnx/model.onnx"):
        assert variants[name]["cosine"]["min"] >= 0.99999
        assert variants[name]["max_difference"] < 1e-5
        assert abs(variants[name]["tasks"]["stdlib"]["loss"]) < 1e-3
    dynamic, static = (
        next(v for v in variants.values() if v.get("quantisation") == way)
        for way in ("dynamic", "static")
    )
    better = max((dynamic, static), key=lambda found: found["cosine"]["mean"])
    assert better["kept"] and better["cosine"]["mean"] > 0.98


def test_the_card_shows_the_figures_and_the_script(exported: Path) -> None:
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert SCRIPT.read_text(encoding="utf-8") in card
    variants = json.loads((exported / "parity.json").read_text())["variants"]
    assert f"{variants['onnx/model_int8.onnx']['megabytes']:.1f}" in card
    assert "| onnx/model.onnx |" in card and "| texts / s |" in card and "{{" not in card
    assert "onnx" not in without_section(card) and without_section(card).startswith("#")


def test_sentence_transformers_reads_the_same_folder(exported: Path, tiny_model: Path) -> None:
    texts = [*EDGE_TEXTS, *map(question, range(5))]
    model = load_encoder(ModelConfig(path=str(tiny_model)))
    want = encode(model, texts, "query", truncate_dim=16)
    plain = SentenceTransformer(str(exported), device="cpu").encode(texts)
    np.testing.assert_allclose(plain, want, atol=1e-6)
    assert cosine(want, OnnxEncoder(exported)(texts, "query")).min() >= 0.99999


def check_without_torch(python: str, exported: Path, tiny_model: Path, work: Path) -> None:
    """Run the card's script with `python`, torch being out of reach, and compare its vectors."""
    texts = [*EDGE_TEXTS, *map(question, range(5)), *map(answer, range(5))]
    (work / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    card = (exported / "README.md").read_text(encoding="utf-8")
    script = re.search(r'```python\n("""python encode.py.*?)```', card, re.DOTALL)
    assert script
    (work / "encode.py").write_text(script[1], encoding="utf-8")
    command = [python, "-I", "-c", WITHOUT_TORCH, str(exported), "encode.py", "texts.json"]
    subprocess.run(command, cwd=work, check=True, timeout=120)
    found = np.load(work / "found.npz")
    model = load_encoder(ModelConfig(path=str(tiny_model)))
    for role in ("query", "document"):
        want = encode(model, texts, role, truncate_dim=16)
        assert cosine(want, found[role]).min() >= 0.99999
        np.testing.assert_allclose(found[role], want, atol=1e-5)


def test_the_script_of_the_card_needs_no_torch(
    exported: Path, tiny_model: Path, tmp_path: Path
) -> None:
    check_without_torch(sys.executable, exported, tiny_model, tmp_path)
    assert (
        len(SCRIPT.read_text().split('"""\n', 1)[1].split("\n\n\nif")[0].strip().split("\n")) < 25
    )


@pytest.mark.slow
def test_the_script_runs_in_an_environment_of_its_own(
    exported: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """A fresh environment that holds onnxruntime, tokenizers and NumPy and nothing of ours."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    packages = ["onnxruntime", "tokenizers", "numpy"]
    constraints = str(ROOT / "constraints.txt")
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints, *packages]
    subprocess.run(install, check=True)
    absent = [python, "-I", "-c", "import torch"]
    assert subprocess.run(absent, stderr=subprocess.DEVNULL, check=False).returncode == 1
    check_without_torch(python, exported, tiny_model, tmp_path)


def test_the_command(run: Run, tiny_model: Path, few_texts: Path) -> None:
    words = ["export", tiny_model, "--out", "out", "--onnx", "--data", few_texts]
    status, out, err = run(*words)
    assert status == 0, err
    assert "onnx/model.onnx" in out and "nDCG@10" in out and "model: out" in out
    told = json.loads(Path("out/parity.json").read_text())
    quality = told["variants"]["onnx/model.onnx"]["tasks"]["animals"]
    assert quality["queries"] == len(NAMES) and quality["before"] == quality["after"]
    assert not Path("out/onnx/model_int8.onnx").exists()
    first = Path("out/README.md").read_text()
    status, _, err = run(*words)
    assert status == 2 and "out: exists" in err
    assert Path("out/README.md").read_text() == first
    assert run(*words, "--overwrite")[0] == 0
    status, _, err = run("export", "out", "--out", "again", "--onnx", "--data", few_texts)
    assert status == 0, err  # an export is a model like any other
    assert Path("again/README.md").read_text().count("## Without PyTorch") == 1


def test_a_static_student_exports_too(run: Run, tiny_model: Path, few_texts: Path) -> None:
    Path("t.txt").write_text("\n".join(map(answer, range(20))))
    words = ["student", "student_static", f"model.path={tiny_model}", "data.train=[]"]
    assert run(*words, "student.corpus=t.txt", "student.dims=16", "output=s")[0] == 0
    words = ["export", "s/model", "--out", "out", "--int8", "--truncate", 8, "--max-loss", 1]
    status, _, err = run(*words, "--data", few_texts)
    assert status == 0, err
    told = json.loads(Path("out/parity.json").read_text())
    assert told["inputs"] == ["input_ids", "attention_mask"] and told["dimensions"] == 8
    small, whole = (told["variants"][f"onnx/{name}.onnx"] for name in ("model_int8", "model"))
    assert small["cosine"]["min"] > 0.999 and whole["cosine"]["min"] >= 0.99999
    assert small["quantisation"] == "rows" and small["megabytes"] < whole["megabytes"]
    status, _, err = run(*words, "--data", few_texts, "--overwrite", "--calibrate", "t.txt")
    assert status == 0, err  # nothing to calibrate: the texts are only compared


MISTAKES = {
    "no model": (["export", "empty", "--onnx"], "empty holds no model"),
    "no such model": (["export", "./absent", "--onnx"], "./absent does not exist"),
    "no text to calibrate on": (
        ["export", "MODEL", "--int8", "--calibrate", "blank.txt"],
        "blank.txt: no text in it",
    ),
    "no such texts": (["export", "MODEL", "--int8", "--calibrate", "absent.txt"], "absent.txt"),
    "calibration without int8": (
        ["export", "MODEL", "--onnx", "--calibrate", "one.txt"],
        "--calibrate: .*--int8",
    ),
    "data without onnx": (["export", "MODEL", "--data", "empty"], "--calibrate and --data are for"),
    "no BEIR folder": (["export", "MODEL", "--onnx", "--data", "empty"], "no corpus.jsonl"),
    "a loss of 300 %": (["export", "MODEL", "--int8", "--max-loss", "3"], "--max-loss: 3.0 is not"),
    "too many dimensions": (["export", "MODEL", "--truncate", "64"], "truncate: 64 is not between"),
    "no dimension": (["export", "MODEL", "--truncate", "0"], "truncate: 0 is not between"),
    "a file in the way": (["export", "MODEL", "--out", "one.txt/x"], "cannot write there"),
    "no name to push to": (["export", "MODEL", "--push", "a/b/c"], "--push: "),
    "offline": (["export", "MODEL", "--push", "me/model"], "--push: offline mode"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(mistake: str, run: Run, tiny_model: Path) -> None:
    words, expected = MISTAKES[mistake]
    Path("empty").mkdir()
    Path("blank.txt").write_text(" \n\n")
    Path("one.txt").write_text("a text\n")
    words = [str(tiny_model) if word == "MODEL" else word for word in words]
    out = [] if "--out" in words else ["--out", "out"]
    before = sorted(Path().iterdir())
    status, _, err = run(*words, *out)
    last = err.strip().splitlines()[-1]
    assert status == 2 and last.startswith("error: ")
    assert re.search(expected, last), last
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("limit", ["vectors", "quality"])
def test_beyond_a_limit_nothing_is_written(
    limit: str, run: Run, tiny_model: Path, few_texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["export", tiny_model, "--out", "out", "--int8", "--data", few_texts]
    if limit == "vectors":
        monkeypatch.setattr(parity_module, "LEAST_COSINE", 1.1)
        expected = r"model.safetensors: the least cosine .* is 1.000000 \(limit 1.1\)"
    else:
        monkeypatch.setattr("tercet.export.variants.loss", lambda _: 0.5)
        monkeypatch.setattr("tercet.export.parity._quality", spoilt_quality)
        expected = r"model_int8.onnx: nDCG@10 on animals falls from 0.8000 to 0.4000.*--max-loss"
    status, _, err = run(*words)
    assert status == 2 and re.search(expected, err), err
    assert [path.name for path in Path().iterdir()] == ["animals"]


def spoilt_quality(before: Any, after: Any) -> dict[str, Any]:
    return {"before": {"mean": 0.8}, "after": {"mean": 0.4}, "loss": 0.5}


def test_a_failed_export_leaves_the_old_one(
    run: Run, tiny_model: Path, few_texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("kept")
    monkeypatch.setattr(parity_module, "LEAST_COSINE", 1.1)
    words = ["export", tiny_model, "--out", "out", "--onnx", "--data", few_texts, "--overwrite"]
    assert run(*words)[0] == 2
    assert [path.name for path in Path("out").iterdir()] == ["mine.txt"]


def test_a_full_disk_is_one_line(run: Run, tiny_model: Path, few_texts: Path) -> None:
    """A limit on the size of files stands for the disk: the weights do not fit."""
    run("store", "list")  # what is loaded on first use is loaded now
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        status, _, err = run("export", tiny_model, "--out", "out", "--onnx", "--data", few_texts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2 and "cannot be written" in err and "Traceback" not in err
    assert [path.name for path in Path().iterdir()] == ["animals"]


def test_the_better_int8_graph_is_kept(tmp_path: Path) -> None:
    def tried(mean: float, loss: float) -> dict[str, Any]:
        quality = {"loss": loss, "before": {"mean": 0.5}, "after": {"mean": 0.5 * (1 - loss)}}
        return {"cosine": {"mean": mean}, "tasks": {"t": quality}}

    (tmp_path / "onnx").mkdir()
    for way in ("dynamic", "static"):
        (tmp_path / f"onnx/model_int8_{way}.onnx").write_text(way)
    found = _keep_best(tmp_path, {"dynamic": tried(0.98, 0.02), "static": tried(0.97, 0.0)}, 0.01)
    assert [(name, v["kept"]) for name, v in found.items()] == [
        ("onnx/model_int8.onnx", True),
        ("int8, dynamic", False),
    ]
    assert (tmp_path / "onnx/model_int8.onnx").read_text() == "static"  # within the limit
    assert len(list((tmp_path / "onnx").iterdir())) == 1
    with pytest.raises(UserError, match=r"loss of 2.0% \(limit 1.0%\)"):
        refuse_worse("x", tried(0.98, 0.02), 0.01)
    refuse_worse("x", tried(0.98, -0.02), 0.01)


def test_cosines_of_awkward_rows() -> None:
    a = np.array([[1, 0], [0, 0], [0, 0], [2, 0], [np.nan, 1]], dtype=np.float32)
    b = np.array([[0, 1], [0, 0], [1, 0], [-3, 0], [1, 1]], dtype=np.float32)
    assert cosine(a, b).tolist() == [0, 1, 0, -1, -1]


def test_the_sample_has_texts_of_all_lengths() -> None:
    sample = make_sample((), ["b" * n for n in range(1, 3_001)])
    assert sample.size == len(EDGE_TEXTS) + 1_000 + 1_000  # docstrings, code, and the user's
    assert {"", "b", "b" * 3_000} <= set(sample.texts)
    assert [role for role, _ in sample.parts] == ["query", "document"] * 2
    assert spread(["bb", "a", "bb"], 5) == ["a", "bb"]
    task = sample.tasks[0]
    assert len(task.queries) == len(task.documents) == 500
    enough = make_sample([task], [])
    assert [t.name for t in enough.tasks] == ["stdlib"]
