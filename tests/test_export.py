"""`tercet export --onnx --int8`: complete, measured, usable without us, or not there at all."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from tercet import stages
from tercet.configs import ModelConfig
from tercet.data import Texts, read_task
from tercet.errors import UserError
from tercet.evaluation.speed import alternate
from tercet.export import export_model
from tercet.export.onnx_card import SCRIPT, onnx_section, without_section
from tercet.export.parity import (
    cosine,
    latency,
    measure,
    reference_of,
    refuse_unlike,
    refuse_worse,
    stretch,
)
from tercet.export.runtime import OnnxEncoder
from tercet.export.sample import EDGE_TEXTS, Sample, edge_texts, make_sample, spread
from tercet.export.variants import _keep_best
from tercet.files import sha256
from tercet.models import Role, encode, load_encoder
from tercet.progress import progress
from tests.conftest import NAMES, Run, answer, question

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")


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
        hashes = found.get("sha256", {})
        assert bool(hashes) == found["kept"] and (name in hashes or not found["kept"])
        assert hashes == {file: sha256(exported / file) for file in hashes}
    weights = {"model.safetensors", "2_Dense/model.safetensors"}
    assert set(variants["model.safetensors"]["sha256"]) == weights
    for name in ("model.safetensors", "onnx/model.onnx"):
        assert variants[name]["cosine"]["min"] >= 0.99999
        assert variants[name]["max_difference"] < 1e-5 and variants[name]["max_stretch"] < 1e-5
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
    quality = variants["onnx/model_int8.onnx"]["tasks"]["stdlib"]
    assert (
        f"{quality['before']['mean']:.3f}" in card
        and f"{quality['difference']['low']:+.4f}" in card
    )
    assert f"{variants['onnx/model.onnx']['max_difference']:.1e}" in card
    assert "cannot serve it with its ONNX backend" in card  # it is truncated by a linear layer
    assert "onnx" not in without_section(card) and without_section(card).startswith("#")


def test_vnni_is_an_affair_of_x86(exported: Path) -> None:
    told = json.loads((exported / "parity.json").read_text(encoding="utf-8"))
    for vnni, reduce, said in ((True, False, False), (False, True, True), (False, False, False)):
        machine = told["machine"] | {"vnni": vnni, "reduce_range": reduce}
        assert ("without VNNI (8-bit" in onnx_section(told | {"machine": machine})) == said


def test_sentence_transformers_reads_the_same_folder(exported: Path, tiny_model: Path) -> None:
    texts = [*EDGE_TEXTS, *map(question, range(5))]
    model = load_encoder(ModelConfig(path=str(tiny_model)))
    want = encode(model, texts, "query", truncate_dim=16)
    plain = SentenceTransformer(str(exported), device="cpu").encode(texts)
    np.testing.assert_allclose(plain, want, atol=1e-6)
    assert cosine(want, OnnxEncoder(exported)(texts, "query")).min() >= 0.99999


@pytest.mark.parametrize("engine", ["faiss", "pymilvus"])
def test_searching_as_the_card_shows(
    engine: str,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("milvus_lite" if engine == "pymilvus" else engine, reason="not installed")
    card = (exported / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (block,) = [
        block for block in blocks if f"import {engine}" in block or f"{engine} import" in block
    ]
    monkeypatch.chdir(tmp_path)
    exec(block.replace("path/to/this/folder", str(exported)), {})
    assert sorted(eval(capsys.readouterr().out)) == ["open(path)", "sorted(names)"]


def test_texts_per_second_are_of_a_silent_second_pass_over_distinct_texts(few_texts: Path) -> None:
    from tercet.progress import _QUIET

    asked: list[tuple[int, int, bool]] = []  # texts, how many are distinct, whether it was silent

    def encode(texts: Sequence[str], role: Role) -> NDArray[np.float32]:
        asked.append((len(texts), len(set(texts)), _QUIET.get()))
        return np.array([[len(text), ord(text[-1])] for text in texts], dtype=np.float32)

    sample = Sample((read_task(few_texts),), ("a text", "a text", answer(3)))
    reference = reference_of(encode, sample)
    asked.clear()
    found = measure("m.onnx", [], lambda: encode, reference)
    batches = [one for one in asked if one[0] > 1]
    assert [size for size, _, _ in batches] == [48, 48, 3, 3, 97]  # every answer(3) is one text
    assert batches[-1] == (97, 97, True) and not any(silent for _, _, silent in batches[:-1])
    assert found["texts_per_second"] > 0 and found["cosine"]["min"] == pytest.approx(1)


def test_every_card_tells_the_size(run: Run, tiny_model: Path) -> None:
    model = load_encoder(ModelConfig(path=str(tiny_model)))
    count = sum(weight.numel() for weight in model.parameters())
    for source, out in ((tiny_model, "first"), ("first", "second")):
        assert run("export", source, "--out", out)[0] == 0
        card = Path(out, "README.md").read_text()
        assert f"{count:,} parameters, {4 * count / 1e6:,.1f} MB." in card
        assert card.count("## Size") == 1 and card.count("speed was not measured") == 1
        assert "Without PyTorch" not in card


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
    assert "except, if this is a transformer" in Path("out/README.md").read_text()
    assert not Path("out/config.json").exists()  # by which other servers know a transformer
    status, _, err = run(*words, "--data", few_texts, "--overwrite", "--calibrate", "t.txt")
    assert status == 0, err  # nothing to calibrate: the texts are only compared


def test_two_folders_of_one_name_are_refused(run: Run, tiny_model: Path, few_texts: Path) -> None:
    Path("b").mkdir()
    shutil.copytree(few_texts, "b/animals")
    words = ["export", tiny_model, "--out", "out", "--onnx"]
    status, _, err = run(*words, "--data", few_texts, "--data", "b/animals")
    assert status == 2 and "two folders of --data are called 'animals'" in err
    few_texts.rename("stdlib")
    status, _, err = run(*words, "--data", "stdlib")
    assert status == 0, err  # nothing is filled up here


def test_a_truncation_in_the_settings_is_made_the_models_own(
    run: Run, tiny_model: Path, few_texts: Path
) -> None:
    model = SentenceTransformer(str(tiny_model), device="cpu", truncate_dim=12)
    model.save("m", create_model_card=False)
    texts = [question(n) for n in range(9)]
    want = SentenceTransformer("m", device="cpu").encode(texts, normalize_embeddings=True)
    for dims, options in ((12, []), (20, ["--truncate", 20])):
        words = ["export", "m", "--out", f"out{dims}", "--onnx", "--data", few_texts]
        status, _, err = run(*words, *options)
        assert status == 0, err
        settings = json.loads(Path(f"out{dims}/config_sentence_transformers.json").read_text())
        assert settings.get("truncate_dim") is None
        assert f"Vectors have {dims} dimensions." in Path(f"out{dims}/README.md").read_text()
        found = OnnxEncoder(Path(f"out{dims}"))(texts, "query")
        assert found.shape == (9, dims)
    np.testing.assert_allclose(OnnxEncoder(Path("out12"))(texts, "query"), want, atol=1e-5)


def test_ranges_wider_than_what_is_left_are_not_stored(
    run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, "m")
    Path("t.txt").write_text("\n".join(map(answer, range(20))))
    assert run("calibrate", "m", "--data", "t.txt", "--dims", 16)[0] == 0
    for dims, widths in ((None, {"32", "16"}), (16, {"16"}), (8, None)):
        cut = [] if dims is None else ["--truncate", dims]
        status, _, err = run("export", "m", "--out", f"out{dims}", *cut)
        assert status == 0, err
        ranges = Path(f"out{dims}/quantisation.json")
        assert ranges.exists() == (widths is not None)
        if widths:
            assert set(json.loads(ranges.read_text())["widths"]) == widths


def test_a_model_compared_by_dot_keeps_its_lengths(tiny_model: Path, tmp_path: Path) -> None:
    a = np.array([[3, 4], [0, 0], [1, 0]], dtype=np.float32)
    assert stretch(a, a) == 0 and stretch(a, a * np.float32(1.5)) == pytest.approx(0.5)
    nearly = a + np.array([[0, 0], [0, 1e-3], [0, 0]], dtype=np.float32)
    assert stretch(a, nearly) > 1  # nothing became something
    same = {"cosine": {"min": 1.0}, "max_stretch": 0.5}
    with pytest.raises(UserError, match=r"m.onnx: the length of a vector .* by 50.00% .limit 0.1%"):
        refuse_unlike("m.onnx", same)
    refuse_unlike("m.onnx", same | {"max_stretch": 1e-4})


def test_lengths_are_proven_without_a_graph_too(tiny_model: Path, tmp_path: Path) -> None:
    """The folder of a model compared by dot, saved with unit vectors: only the lengths differ."""

    class Spoilt(SentenceTransformer):
        def save(self, path: str, **how: Any) -> None:  # type: ignore[override]
            unit = SentenceTransformer(modules=[*self, Normalize()], similarity_fn_name="dot")
            unit.save(path, **how)

    parts = [Transformer(str(tiny_model)), Pooling(32)]
    plain, spoilt = (
        kind(modules=parts, device="cpu", similarity_fn_name="dot").eval()
        for kind in (SentenceTransformer, Spoilt)
    )
    assert export_model(plain, tmp_path / "plain", card="# m\n").difference <= 1e-6
    with pytest.raises(UserError, match=r"out: the length of a vector .* .limit 0.1%"):
        export_model(spoilt, tmp_path / "out", card="# m\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(bad: float, few_texts: Path) -> None:
    """Outside the tasks too, where no nDCG@10 would fall."""

    def encode(texts: Sequence[str], role: Role) -> NDArray[np.float32]:
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)

    def spoilt(texts: Sequence[str], role: Role) -> NDArray[np.float32]:
        found = encode(texts, role)
        found[[text == "odd" for text in texts], 1] = bad
        return found

    reference = reference_of(encode, Sample((read_task(few_texts),), ("a text", "odd")))
    with pytest.raises(UserError, match=r"q.onnx: 2 of 100 vectors are not finite .NaN or"):
        measure("q.onnx", [], lambda: spoilt, reference)


def test_no_bar_is_drawn_while_a_query_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=StringIO(), force_terminal=True)
    monkeypatch.setattr("tercet.progress._CONSOLE", terminal)

    def drawn() -> str:
        return terminal.file.getvalue()  # type: ignore[attr-defined]

    def encoded(texts: Sequence[str], role: Role) -> np.ndarray:
        with progress("inner", len(texts)) as advance:
            advance()
        return np.ones((len(texts), 4), dtype=np.float32)

    found = latency(encoded, ["a", "b"])
    assert 0 < found["p50"] <= found["p95"] and not drawn()
    alternate({"a": lambda: encoded(["a"], "query")}, 2)
    assert "rounds" in drawn() and "inner" not in drawn()
    encoded(["a"], "query")
    assert "inner" in drawn()


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
    sample = make_sample((), ["b" * n for n in range(1, 3_001)], 64)
    assert sample.size == len(EDGE_TEXTS) + 1 + 1_000 + 1_000  # docstrings, code, and the user's
    assert {"", "b", "b" * 3_000} <= set(sample.texts)
    assert [role for role, _ in sample.parts] == ["query", "document"] * 2
    assert spread(["bb", "a", "bb"], 5) == ["a", "bb"]
    task = sample.tasks[0]
    assert len(task.queries) == len(task.documents) == 500
    enough = make_sample([task], [], 64)
    assert [t.name for t in enough.tasks] == ["stdlib"]
    with pytest.raises(UserError, match="--data: too few texts.*'stdlib'"):
        make_sample([replace(task, queries=Texts([], []))], [], 64)
    assert edge_texts(512)[-1].split() == ["word"] * 513  # longer than the model reads
    assert len(edge_texts(1_000_000)[-1].split()) == 8_193
