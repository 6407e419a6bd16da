"""What is read cannot run code, leave its folder or fill memory; what is written holds no key."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tercet.configs import Config, FrozenModel, ModelConfig, load, save
from tercet.configs.load import parse
from tercet.errors import UserError
from tercet.models import add_dense, load_encoder, model_fingerprint
from tercet.models.cross import load_scorer
from tercet.models.unpickle import only_safetensors
from tercet.progress import say
from tercet.secret import masked
from tercet.train import finetune
from tests.conftest import Run
from tests.workers.launch import ROOT

KEY = "a1b2c3d4" * 5  # as long as those of Weights & Biases
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that ends in a Dense layer, so has weights in two folders."""
    made = load_encoder(ModelConfig(path=str(tiny_model)))
    add_dense(made, torch.eye(32))
    made.save(str(tmp_path / "model"), create_model_card=False)
    return tmp_path / "model"


def pickle_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()


@pytest.mark.parametrize("part", ["body", "dense"])
def test_pickled_weights_need_a_word(model: Path, part: str) -> None:
    folder = model if part == "body" else next(model.glob("*_Dense"))
    pickle_weights(folder)
    with pytest.raises(UserError, match="model.path: .* cannot be loaded.*safetensors"):
        load_encoder(ModelConfig(path=str(model)))
    allowed = load_encoder(ModelConfig(path=str(model), allow_pickle=True))
    assert allowed.get_embedding_dimension() == 32


class Runs:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("whole", [False, True])
def test_a_pickle_that_is_allowed_runs_no_code_either(model: Path, whole: bool) -> None:
    """Weights alone are read: anything else is one line, and so are half a file and none."""
    (model / "model.safetensors").unlink()
    path, mark = model / "pytorch_model.bin", model / "mark"
    if whole:
        torch.save({"a": Runs(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Runs(mark)))
    evil = path.read_bytes()
    for data in (evil, evil[: len(evil) // 2], b"", b"words"):
        path.write_bytes(data)
        with pytest.raises(UserError, match="model.path: .* cannot be loaded: ") as error:
            load_encoder(ModelConfig(path=str(model), allow_pickle=True))
        assert "\n" not in str(error.value) and not mark.exists()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", "[]"),
        ("config.json", '{"model_type": "bert", "add_cross_attention": -1}'),
        ("config.json", '{"model_type": "bert", "num_attention_heads": 0}'),
        ("config.json", '{"model_type": "bert", "vocab_size": 0}'),
        ("config.json", '{"model_type": "bert", "dtype": "x"}'),
        ("config_sentence_transformers.json", "[]"),
        ("tokenizer.json", "null"),
    ],
)
def test_settings_that_are_none_are_one_line(model: Path, file: str, text: str) -> None:
    (model / file).parent.mkdir(exist_ok=True)
    (model / file).write_text(text)
    with pytest.raises(UserError, match="model.path: .* cannot be loaded: ") as error:
        load_encoder(ModelConfig(path=str(model)))
    assert "\n" not in str(error.value)


def test_no_pickle_is_loaded_whoever_asks(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(1)}, path)
    with only_safetensors(), pytest.raises(ValueError, match="pickled"):
        torch.load(path)
    assert torch.load(path, weights_only=True)["a"] == 0


@pytest.fixture
def mark(model: Path) -> Path:
    """A file that the model's own code writes when it is run."""
    modules = json.loads((model / "modules.json").read_text())
    package, _, kind = modules[-1]["type"].rpartition(".")
    modules[-1]["type"] = "evil.Module"
    (model / "modules.json").write_text(json.dumps(modules))
    mark = model / "mark"
    works = f"from {package} import {kind} as Module\n"
    (model / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n{works}")
    return mark


def test_code_that_comes_with_a_model_is_not_run(model: Path, mark: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        load_encoder(ModelConfig(path=str(model)))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("distil", "distil.teacher"),
        ("mine", "mining.sources"),
        ("finetune", "loss.false_negatives.guide"),
        ("plan", "loss.false_negatives.guide"),
    ],
)
def test_trust_in_a_model_is_not_trust_in_the_others(
    command: str, key: str, run: Run, model: Path, mark: Path, tiny_model: Path, pairs: Path
) -> None:
    """One that is trusted by itself shows that its code would have been run."""
    words = [command, "tiny", f"model.path={tiny_model}", f"data.train={pairs}", "output=out"]
    words += ["model.trust_remote_code=true", "train.steps=1"]
    status, _, err = run(*words, f"{key}={model}")
    assert status == 2 and f"{key}: {model} cannot be loaded" in err and not mark.exists()
    status, _, err = run(*words, f"{key}={{path: {model}, trust_remote_code: true}}")
    assert status == 0 and mark.exists(), err


def test_other_code_of_a_trusted_model_is_another_model(model: Path, mark: Path) -> None:
    """Its vectors in the store are not taken for those of the code before."""

    def loaded() -> tuple[str, Any]:
        encoder = load_encoder(ModelConfig(path=str(model), trust_remote_code=True))
        return model_fingerprint(encoder), encoder.encode(["a text"])

    before, again = loaded(), loaded()
    assert before[0] == again[0]
    helper = model / "evil.py"
    helper.write_text(
        helper.read_text()
        + "\n\nclass Module(Module):\n    def forward(self, features):\n"
        + "        found = super().forward(features)\n"
        + "        found['sentence_embedding'] = -found['sentence_embedding']\n"
        + "        return found\n"
    )
    after = loaded()
    assert (after[1] == -before[1]).all()
    assert after[0] != before[0]


def test_trust_in_a_guide_is_not_trust_in_the_next(tmp_path: Path) -> None:
    guide = "loss.false_negatives.guide"
    save(load("tiny", [f"{guide}={{path: a, trust_remote_code: true}}"]), tmp_path / "a.yaml")
    for given, trust in ((f"{guide}=b", False), (f"{guide}.path=b", True)):
        found = load(tmp_path / "a.yaml", [given]).loss.false_negatives.guide
        assert found == FrozenModel(path="b", trust_remote_code=trust)


@pytest.mark.parametrize("name", ["../other", "/etc", "a/../../b"])
def test_a_model_cannot_name_folders_outside_it(model: Path, name: str) -> None:
    modules = json.loads((model / "modules.json").read_text())
    modules[-1]["path"] = name
    (model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match="names what is outside its folder"):
        load_encoder(ModelConfig(path=str(model)))


@pytest.mark.parametrize("settings", ["router_config.json", "config.json"])
@pytest.mark.parametrize("name", ["../other", "/etc"])
def test_nor_can_the_routes_of_a_pair(model: Path, name: str, settings: str) -> None:
    router = {"name": "0", "path": "", "type": "sentence_transformers.base.modules.Router"}
    kind = "sentence_transformers.sentence_transformer.modules.Transformer"
    routes = {"types": {name: kind}, "structure": {"query": [name]}, "parameters": {}}
    (model / "modules.json").write_text(json.dumps([router]))
    (model / settings).write_text(json.dumps(routes))
    with pytest.raises(UserError, match=f"its {settings} names what is outside its folder"):
        load_encoder(ModelConfig(path=str(model)))


def test_nor_can_a_cross_encoder(judge: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(judge, tmp_path / "judge"))
    modules = json.loads((folder / "modules.json").read_text())
    modules[-1]["path"] = "../other"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(
        UserError, match="mining.rescore.model: .* names what is outside its folder"
    ):
        load_scorer(str(folder))


def test_a_mined_set_outside_the_run_is_refused(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tercet.train import setup

    where = [f"model.path={tiny_model}", f"data.train={pairs}", f"output={tmp_path / 'run'}"]
    config = load("tiny", where)
    finetune(config)
    plain = setup.load_checkpoint

    def elsewhere(*given: object) -> tuple[dict, dict]:
        tensors, state = plain(*given)  # type: ignore[arg-type]
        return tensors, state | {"mined": {"file": "../mined.parquet", "sha256": "0", "until": 1}}

    monkeypatch.setattr(setup, "load_checkpoint", elsewhere)
    with pytest.raises(UserError, match="names a mined set elsewhere"):
        finetune(config)


# YAML


BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (BOMB, "more than 100,000 values"),
        ("a: &a [*a]", "more than 100,000 values"),
        ("[" * 5_000, "not valid YAML"),
        ("output: !!python/object/apply:os.system [echo]", "not valid YAML"),
        ("output: !!python/name:os.system", "not valid YAML"),
        ("output: 2020-99-99", ""),
        ("? [a, b]\n: c", "YAML|top level|unknown"),
        ("output: ${oc.env:ABSENT_VARIABLE}", "ABSENT_VARIABLE"),
    ],
)
def test_yaml_that_means_harm_is_one_line(text: str, complaint: str) -> None:
    start = time.monotonic()
    try:
        parse(text, "a.yaml")
    except UserError as error:
        assert "\n" not in str(error)
        assert re.search(complaint, str(error)), error
    else:
        assert complaint == ""  # a date that is none is a text
    assert time.monotonic() - start < 5


# Secrets


@pytest.mark.parametrize(
    "value",
    ["${oc.env:WANDB_API_KEY}", KEY, "hf_" + "x" * 34, "s3://me:secret@store/x"],
)
def test_a_key_in_a_config_is_refused(
    value: str, run: Run, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    words = (f"data.train={pairs}", "output=out", f"tracking.name={value}")
    status, out, err = run("finetune", "tiny", *words)
    assert status == 2 and "tracking.name holds a key or token" in err
    assert KEY not in out + err and not (tmp_path / "out").exists()


def test_no_section_takes_a_key_from_python_either() -> None:
    with pytest.raises(ValidationError, match="holds a key or token") as error:
        Config.model_validate({"output": "x", "tracking": {"name": "hf_" + "x" * 34}})
    assert "x" * 34 not in str(error.value)


def test_keys_in_files_are_known(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    (tmp_path / "token").write_text(f"{KEY[::-1]}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    assert masked(f"a {KEY} b {KEY[::-1]}") == "a *** b ***"
    with pytest.raises(UserError, match="tracking.name holds a key or token"):
        load("tiny", [f"tracking.name={KEY}"])


def test_a_traceback_shows_no_key(tmp_path: Path) -> None:
    program = (
        "import sys; from tercet import cli; from tercet.cli import app\n"
        f"def fails(**_): raise RuntimeError('refused for {KEY}')\n"
        "app.app = fails; cli.main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_TOKEN": KEY},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1 and KEY not in ended.stderr
    assert "Traceback" in ended.stderr and "RuntimeError: refused for ***" in ended.stderr


def test_no_message_shows_a_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Run
) -> None:
    monkeypatch.setenv("HF_TOKEN", KEY)
    say(f"refused for {KEY}")
    assert capsys.readouterr().err == "refused for ***\n"
    _, _, err = run("data", "check", f"/{KEY}.jsonl")
    assert KEY not in err and masked(f"/{KEY}.jsonl") == "/***.jsonl"


def test_nothing_a_run_writes_holds_a_key(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tercet import stages

    for name in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    where = [f"model.path={tiny_model}", f"data.train={pairs}", f"output={tmp_path / 'run'}"]
    stages.finetune(load("tiny", [*where, "tracking.wandb=true", "train.steps=2"]))
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(written) > 20
    assert not [path for path in written if KEY.encode() in path.read_bytes()]


def test_pickles_are_known_by_their_bytes(tmp_path: Path) -> None:
    from tercet.files import pickled

    for protocol in range(2, 6):
        (tmp_path / "x").write_bytes(pickle.dumps([1], protocol))
        assert pickled(tmp_path / "x")
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x02" + bytes(6))
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "empty").write_text("")
    assert not any(pickled(tmp_path / name) for name in ("x.safetensors", "x.json", "empty"))
