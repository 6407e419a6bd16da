"""benchmarks/exports.py: models are trained and exported once for the code that made them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import exports
from tercet import stages
from tercet.configs import Config, ModelConfig, load
from tercet.export.graph import is_static
from tercet.files import write_text
from tercet.models import load_encoder
from tercet.versions import installed_versions, source_version
from tests.published import read_back
from tests.test_stages import small_task

pytestmark = pytest.mark.usefixtures("one_thread")


def test_exports_are_measured_anew_by_other_code(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnxruntime", "faiss"):
        pytest.importorskip(package, reason=f"{package} is not installed")

    pets = small_task(pairs, tmp_path / "pets", "test")
    small_task(pairs, tmp_path / "demo" / "code", "test")
    told = f"output: x\ndata: {{train: {pairs}}}\nmodel: {{max_length: 9}}\n"
    write_text(tmp_path / "demo" / "config.yaml", told)
    monkeypatch.setattr(exports, "models", lambda work: {"tuned": str(tiny_model)})
    monkeypatch.setattr(exports, "FORMS", {"cut": exports.Form("tuned", 16)})
    monkeypatch.setattr(exports, "TRIPS", [("faiss", "flat")])
    plain, calls = exports.exported, []

    def counted(*given: Any) -> dict[str, Any]:
        calls.append(plain(*given) if not calls else calls[0])
        return calls[-1]

    monkeypatch.setattr(exports, "exported", counted)
    found = exports.measure(tmp_path, pets)
    assert exports.measure(tmp_path, pets) == found and len(calls) == 1
    monkeypatch.setattr(exports, "source_version", lambda folders: "other")
    assert exports.measure(tmp_path, pets)["exports"].keys() == {"cut"} and len(calls) == 2
    (trip,) = found["round_trips"]
    assert (trip["at_10"], trip["same"], trip["documents"]) == (1, 1, 48)
    shown = exports.tables(read_back("exports", found, tmp_path))
    assert shown["round_trips"].count("| faiss | flat | 1.0000 | 1.0000 | 100.0% |") == 1
    ways = [one.get("quantisation") for one in found["exports"]["cut"]["variants"].values()]
    assert ways[:2] == [None, None] and sorted(ways[2:]) == ["dynamic", "static"]
    for task in ("pets", "code"):
        assert f"| cut | {task} | {ways[2]} | " in shown["exports"]
        assert f"| cut | {task} | {ways[3]}, not kept | " in shown["exports"]
    assert "read at most 9 tokens" in " ".join(shown["exports"].split())
    assert shown["export_speed"].count("| cut | ") == 4


def test_models_to_export_are_trained_once(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"model.path={tiny_model}", f"data.train={pairs}", f"output={tmp_path / 'demo'}"]
    stages.finetune(load("tiny", [*words, "overwrite=true"]))
    monkeypatch.setattr(exports, "MATRYOSHKA", "loss.matryoshka={dims: [32, 16]}")
    monkeypatch.setattr(exports, "TAUGHT", ("train.epochs=1", "student.layers=[0]"))
    monkeypatch.setattr(exports, "run_demo", None)  # it is there
    made = exports.models(tmp_path)
    assert list(made) == ["tuned", "matryoshka", "three", "static"]
    assert len({exports.weights(model) for model in made.values()}) == 4
    configs = {n: load(Path(p).parent / "config.yaml") for n, p in made.items() if n != "tuned"}
    told = configs["matryoshka"].loss.matryoshka
    assert told is not None and told.dims == (32, 16)
    rate = load("student_static").train.learning_rate
    assert configs["static"].train.learning_rate == rate
    assert all(config.data.train[0].path == str(pairs) for config in configs.values())
    assert is_static(load_encoder(ModelConfig(path=made["static"])))
    with monkeypatch.context() as patch:
        patch.setattr(exports.stages, "finetune", None)
        patch.setattr(exports.stages, "distil", None)
        assert exports.models(tmp_path) == made  # nothing is trained again
    trained: list[str] = []

    def noted(config: Config) -> Path:
        trained.append(config.output)
        return Path(config.output)

    monkeypatch.setattr(exports.stages, "finetune", noted)
    monkeypatch.setattr(exports.stages, "distil", noted)
    shutil.copytree(tiny_model, tmp_path / "demo" / "model", dirs_exist_ok=True)
    again = exports.models(tmp_path)
    kept = {made["tuned"], made["matryoshka"]}  # the latter begins where the tuned one began
    assert len(trained) == 2 and set(again.values()) & set(made.values()) == kept


def test_the_code_that_is_measured_is_told(tiny_model: Path) -> None:
    told = exports.made_by(str(tiny_model))
    assert source_version(["stages"]) != source_version([]) and "stages" in exports.CODE
    assert installed_versions(exports.ENGINES).items() <= told.items()
    assert installed_versions(["numpy", "no-such-package"]) == {"numpy": np.__version__}


def test_the_limits_of_an_export_are_told() -> None:
    tasks = {"a": {"loss": 0.01}, "b": {"loss": -0.02}}
    full = {"cosine": {"min": 0.99999}, "megabytes": 10.0}
    small = {"tasks": tasks, "megabytes": 3.0}
    assert exports.beyond(full, small) == []
    worse = {"tasks": tasks | {"b": {"loss": 0.0101}}, "megabytes": 3.01}
    assert exports.beyond(full | {"cosine": {"min": float("nan")}}, worse) == [
        "no: cosine of fp32",
        "no: int8 on b",
        "no: size of int8",
    ]
