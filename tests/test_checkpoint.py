"""A checkpoint is used only if every file of it is what was written, and none can run code."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tercet.configs import ModelConfig, load
from tercet.errors import UserError
from tercet.files import sha256, write_json
from tercet.models import add_dense, load_encoder
from tercet.train import Trained, finetune
from tercet.train.checkpoint import (
    FORMAT,
    checkpoints_in,
    drop_old,
    drop_unfinished,
    load_checkpoint,
    manifest_of,
    newest,
    verify,
)
from tercet.train.state import read_state
from tests.conftest import weights, write_task

NAME = "embeddings.word_embeddings.weight"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tiny_model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 2 and 4."""
    where = [f"model.path={tiny_model}", f"data.train={pairs}"]
    out = tmp_path_factory.mktemp("made")
    finetune(load("tiny", [f"output={out}", *where, "train.save_every=2"]))
    return out / "checkpoints"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "checkpoints"))


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [delete, truncate, flip])
def test_each_file_damaged_in_turn_is_named_and_the_older_one_used(
    made: Path, folder: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    target = folder / "step-00000004"
    files = sorted(f for f in target.rglob("*") if f.is_file())
    assert len(files) > 8  # weights, optimizer, state, manifest and what makes the model loadable
    for path in files:
        whole = path.read_bytes()
        if not whole:
            continue
        damage(path)
        assert newest(folder) == folder / "step-00000002"
        said = " ".join(capsys.readouterr().err.split())
        assert f"{target}: skipped" in said and str(path.relative_to(target)) in said
        path.write_bytes(whole)
    assert newest(folder) == target


def test_every_flipped_bit_of_the_manifest_is_noticed(folder: Path) -> None:
    path = folder / "step-00000004" / "manifest.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 1 << (at % 8)
        path.write_bytes(data)
        assert verify(path.parent) is not None, (at, data[max(0, at - 9) : at + 9])


def add_to_manifest(checkpoint: Path, name: str) -> None:
    hashes = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))["sha256"]
    write_json(checkpoint / "manifest.json", manifest_of(hashes | {name: "0" * 64}))


class Runs:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str, str]]:
        return Path.write_text, (self.mark, "run")  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["trainer.safetensors", "weights.pt", "notes"])
def test_a_checkpoint_with_a_pickle_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    target, mark = folder / "step-00000004", tmp_path / "mark"
    if name.endswith(".pt"):
        torch.save({"a": torch.zeros(1)}, target / name)
    else:
        (target / name).write_bytes(pickle.dumps(Runs(mark)))
    add_to_manifest(target, name)
    found = verify(target)
    expected = "not what was written" if name.endswith("safetensors") else "could run any code"
    assert found is not None and name in found and expected in found
    assert newest(folder) == folder / "step-00000002" and not mark.exists()


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "model/../../secret", "link"])
def test_paths_out_of_the_folder_are_refused(folder: Path, name: str) -> None:
    target = folder / "step-00000004"
    (folder / "secret").write_text("x", encoding="utf-8")
    if name == "link":
        (target / name).symlink_to(folder / "secret")
    else:
        add_to_manifest(target, name)
    found = verify(target)
    assert found is not None and "outside it" in found and name in found


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", ["1_Dense", ".hidden"])
def test_linked_folders_are_refused(folder: Path, name: str, inside: bool) -> None:
    """What lies in them would be loaded, and no manifest would have to name it."""
    target = folder / "step-00000004"
    other = (target if inside else folder) / "other"
    (target / "model" / name).symlink_to(other)
    other.mkdir()
    found = verify(target)
    expected = "is a folder" if inside else "leads outside it"
    assert found is not None and f"model/{name} {expected}" in found
    (target / "model" / name).unlink()
    assert verify(target) is None
    (target / "loop").symlink_to("loop")
    assert newest(folder) == folder / "step-00000002"


def make_manifest_anew(checkpoint: Path) -> None:
    """Whoever makes a checkpoint makes its manifest."""
    files = [f for f in checkpoint.rglob("*") if f.is_file() and f.name != "manifest.json"]
    hashes = {str(f.relative_to(checkpoint)): sha256(f) for f in files}
    write_json(checkpoint / "manifest.json", manifest_of(hashes))
    assert verify(checkpoint) is None


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        (tmp_path / f"step-{step:08d}").mkdir()
    (tmp_path / "step-00000001.copy").mkdir()  # somebody's own
    drop_old(tmp_path, step=4, best=1, keep=2)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step-00000001", "step-00000001.copy", "step-00000003", "step-00000004"]


def test_one_that_goes_is_never_found_half_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        (tmp_path / f"step-{step:08d}").mkdir()
        (tmp_path / f"step-{step:08d}" / "state.json").write_text("{}")

    def dies(path: Path) -> None:
        (path / "state.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        drop_old(tmp_path, step=3, best=3, keep=1)
    monkeypatch.undo()
    whole = {path.name for path in checkpoints_in(tmp_path) if (path / "state.json").exists()}
    assert whole == {path.name for path in checkpoints_in(tmp_path)} >= {"step-00000003"}
    drop_unfinished(tmp_path)
    assert whole == {path.name for path in tmp_path.iterdir()}


def test_hidden_files_do_no_harm(folder: Path) -> None:
    (folder / "step-00000004" / ".DS_Store").write_bytes(b"Bud1")
    (folder / "step-00000004" / "model" / ".nfs0001").write_bytes(b"x")
    assert newest(folder) == folder / "step-00000004"
    (folder / "step-00000004" / "model" / "extra.json").write_bytes(b"{}")
    assert "extra.json is not in its manifest" in str(verify(folder / "step-00000004"))


# What a run does about them


@pytest.fixture
def ended(folder: Path, made: Path) -> list[str]:
    """Settings of the run of `folder`, which is to go on to step 6."""
    where = [f"{key}={path}" for key, path in paths_of(made).items()]
    more = ["train.save_every=2", "train.steps=6"]
    return [f"output={folder.parent}", *where, *more]


def paths_of(made: Path) -> dict[str, str]:
    config = load(made.parent / "config.yaml")
    return {"model.path": config.model.path, "data.train": config.data.train[0].path}


def go_on(settings: list[str], *more: str) -> Path:
    return finetune(load("tiny", [*settings, *more]), allow_changed=["train.steps"]).last


def test_a_run_of_which_nothing_is_sound_is_not_begun_anew(folder: Path, ended: list[str]) -> None:
    for path in folder.iterdir():
        flip(path / "trainer.safetensors")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="no checkpoint here .*step-00000004.*step-00000002"):
        go_on(ended)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert go_on(ended, "overwrite=true") == folder / "step-00000006"
    aside = {f"damaged-{path.parent.name}" for path in before if path.parent.parent == folder}
    assert aside == {"damaged-step-00000002", "damaged-step-00000004"}
    assert aside < {path.name for path in folder.iterdir()}


def test_checkpoints_of_another_version_are_left_alone(folder: Path, ended: list[str]) -> None:
    path = folder / "step-00000004" / "manifest.json"
    hashes = json.loads(path.read_text(encoding="utf-8"))["sha256"]
    write_json(path, manifest_of(hashes, FORMAT + 1))
    with pytest.raises(UserError, match=f"step-00000004: it is of format {FORMAT + 1}"):
        go_on(ended)
    assert {path.name[-1] for path in folder.iterdir()} == {"2", "4"}


def test_a_checkpoint_whose_model_names_folders_outside_is_refused(
    folder: Path, ended: list[str]
) -> None:
    target = folder / "step-00000004"
    path = target / "model" / "modules.json"
    modules = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, [*modules[:-1], modules[-1] | {"path": "../../secret"}])
    make_manifest_anew(target)
    with pytest.raises(UserError, match="step-00000004: .* names what is outside its folder"):
        go_on(ended)


def test_pickled_weights_of_a_checkpoint_are_not_loaded(folder: Path, made: Path) -> None:
    """Should its manifest ever miss them: a file whose name begins with a dot is overlooked."""
    model = folder / "step-00000004" / "model"
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    encoder = load_encoder(ModelConfig(path=paths_of(made)["model.path"]))
    with pytest.raises(UserError, match="step-00000004: .*its weights are pickled"):
        load_checkpoint(model.parent, encoder)


def test_a_damaged_one_is_set_aside_and_halves_are_removed(folder: Path, ended: list[str]) -> None:
    flip(folder / "step-00000004" / "trainer.safetensors")
    (folder / ".step-00000006.x.partial").mkdir()
    (folder / ".step-00000002.1.old").mkdir()
    assert go_on(ended, "train.keep=9") == folder / "step-00000006"
    assert sorted(path.name for path in folder.iterdir()) == [
        "damaged-step-00000004",
        *(f"step-0000000{step}" for step in (2, 4, 6)),
    ]


def test_state_that_no_run_has_written_is_one_line(folder: Path, ended: list[str]) -> None:
    """Each of its values left out or of another kind, under a manifest that agrees."""
    target = folder / "step-00000004"
    state = read_state(target)
    batch, good = state["config"]["batch"], "mined/step-00000000/mined.parquet"
    changed = [{k: v for k, v in state.items() if k != gone} for gone in state]
    changed += [state | {key: odd} for key in state for odd in ("x", -1, 0.5, [], True)]
    changed += [
        state | {"best": {"step": "4", "value": 0.5}},
        state | {"mined": {"file": good}},
        *(
            state | {"mined": {"file": name, "sha256": "x", "until": 4}}
            for name in ("../a", "a\0b", "a" * 999)
        ),
        state | {"step": 5},
        state | {"mined": {"file": good, "sha256": "0", "until": "4"}},
        state | {"micro_tokens": 0},
        state | {"config": {}},
        state | {"config": state["config"] | {"batch": {**batch, "keep_tokens": []}}},
    ]
    for other in changed:
        write_json(target / "state.json", other)
        with pytest.raises(UserError, match="state.json: not what a run writes; delete .*-0+4"):
            read_state(target)
    write_json(target / "state.json", changed[0])
    make_manifest_anew(target)
    with pytest.raises(UserError, match="state.json: not what a run writes"):
        go_on(ended)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda of: {"something": torch.zeros(1)}, "holds no optimizer state for .*; start afresh"),
        (lambda of: {k: v for k, v in of.items() if not k.endswith("/step")}, "other optimizer"),
        (lambda of: {k: v.to(torch.int8) for k, v in of.items()}, "other optimizer state for "),
        (lambda of: {k: torch.zeros(3) for k in of}, "other optimizer state for .*; start afresh"),
    ],
)
def test_other_state_of_the_optimizer_is_one_line(
    folder: Path,
    ended: list[str],
    spoil: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    complaint: str,
) -> None:
    target = folder / "step-00000004"
    save_file(spoil(load_file(target / "trainer.safetensors")), target / "trainer.safetensors")
    make_manifest_anew(target)
    with pytest.raises(UserError, match=complaint):
        go_on(ended)


@pytest.mark.parametrize("spoil", [delete, truncate])
def test_a_manifest_of_no_optimizer_is_one_line(
    folder: Path, ended: list[str], spoil: Callable[[Path], None]
) -> None:
    target = folder / "step-00000004"
    spoil(target / "trainer.safetensors")
    make_manifest_anew(target)
    with pytest.raises(
        UserError, match="trainer.safetensors: not what a run writes; delete .*-0+4"
    ):
        go_on(ended)


def test_a_checkpoint_under_the_name_of_another_is_one_line(folder: Path, ended: list[str]) -> None:
    (folder / "step-00000004").rename(folder / "step-00000005")
    with pytest.raises(UserError, match="step-00000005/state.json: not what a run writes"):
        go_on(ended)


@pytest.mark.parametrize("state", [None, b'{"mined": {"fi', b"[]", b'{"step": 2}', b"\xff"])
def test_an_older_one_that_is_damaged_stops_no_run(
    folder: Path, ended: list[str], state: bytes | None
) -> None:
    """Which mined set it goes on with is not known, so all stay while it does."""
    older, mined = folder / "step-00000002", folder.parent / "mined" / "step-00000000"
    delete(older / "state.json")
    if state is not None:
        (older / "state.json").write_bytes(state)
    mined.mkdir(parents=True)
    (mined / "mined.parquet").write_bytes(b"x")
    assert go_on(ended, "train.keep=9") == folder / "step-00000006"
    assert (mined / "mined.parquet").exists()
    shutil.rmtree(older)
    assert go_on(ended, "train.keep=9", "train.steps=8") == folder / "step-00000008"
    assert not (mined / "mined.parquet").exists()


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("loss.learn_temperature=true", "loss.learn_temperature: .* with a fixed one"),
        ("model.normalize=false", None),
        ("train.ema=0.5", None),
    ],
)
def test_changes_that_were_allowed_work_or_are_one_line(
    folder: Path, ended: list[str], setting: str, complaint: str | None
) -> None:
    config = load("tiny", [*ended, setting])
    allowed = ["train.steps", setting.split("=")[0]]
    if complaint is not None:
        with pytest.raises(UserError, match=complaint):
            finetune(config, allow_changed=allowed)
    else:
        assert finetune(config, allow_changed=allowed).steps == 6


@pytest.mark.parametrize("broken", ["", "state.json", "trainer.safetensors"])
def test_checkpoints_alone_know_the_config(folder: Path, ended: list[str], broken: str) -> None:
    """As they do when only they were copied; `config.yaml` is for people."""
    if broken:  # then the checkpoint before it tells
        flip(folder / "step-00000004" / broken)
    with pytest.raises(UserError, match=r"config \(loss.temperature: was 0.05, now 0.1\)"):
        go_on(ended, "loss.temperature=0.1")
    assert go_on(ended) == folder / "step-00000006"
    assert load(folder.parent / "config.yaml").loss.temperature == 0.05


def test_the_config_of_the_checkpoint_that_is_used_counts(folder: Path, ended: list[str]) -> None:
    config = load("tiny", [*ended, "loss.temperature=0.1"])
    allowed = ["train.steps", "loss"]
    flip(finetune(config, allow_changed=allowed).last / "trainer.safetensors")
    with pytest.raises(UserError, match=r"was 0.05, now 0.1\).*--allow-changed loss.temperature$"):
        finetune(config, allow_changed=["train.steps"])  # of step 4
    assert finetune(config, allow_changed=allowed).last == folder / "step-00000006"


def test_the_config_of_a_damaged_one_does_not_count(folder: Path, ended: list[str]) -> None:
    other = load("tiny", [*ended, "loss.temperature=0.1"])
    flip(finetune(other, allow_changed=["train.steps", "loss"]).last / "trainer.safetensors")
    assert go_on(ended) == folder / "step-00000006"  # from step 4, of this config
    assert (folder / "damaged-step-00000006").exists()


def test_a_config_that_does_not_work_leaves_nothing_behind(folder: Path, ended: list[str]) -> None:
    config = load("tiny", [*ended, "loss.learn_temperature=true"])
    with pytest.raises(UserError, match="loss.learn_temperature: .* with a fixed one"):
        finetune(config, allow_changed=["train.steps", "loss"])
    assert not (folder.parent / "config.yaml").exists()
    assert go_on(ended) == folder / "step-00000006"
    assert load(folder.parent / "config.yaml").train.steps == 6


def test_another_model_is_one_line(folder: Path, ended: list[str], tmp_path: Path) -> None:
    start = next(word for word in ended if word.startswith("model.path="))
    other = load_encoder(ModelConfig(path=start.removeprefix("model.path=")))
    add_dense(other, torch.eye(32))
    other.save(str(tmp_path / "other"), create_model_card=False)
    config = load("tiny", [*ended, f"model.path={tmp_path / 'other'}"])
    with pytest.raises(UserError, match="its model has other weights than the config asks for"):
        finetune(config, allow_changed=["train.steps", "model"])


def test_a_run_that_stops_averaging_goes_on_from_its_weights(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    where = [f"model.path={tiny_model}", f"data.train={pairs}", f"output={tmp_path}"]
    steady = ["train.schedule=constant", "train.warmup=0", "train.learning_rate=0.003"]
    averaged = finetune(load("tiny", [*where, *steady, "train.ema=0.9"]))
    plain = load_file(averaged.last / "trainer.safetensors")
    name = next(n for n in plain if n.startswith("weights/") and n.endswith(NAME))
    assert not torch.equal(weights(averaged.last)[NAME], plain[name])
    longer = load("tiny", [*where, *steady, "train.steps=5", "train.learning_rate=1e-12"])
    allowed = ["train.steps", "train.ema", "train.learning_rate"]
    found = weights(finetune(longer, allow_changed=allowed).last)
    assert torch.allclose(found[NAME], plain[name], rtol=0, atol=1e-9)


# What models say


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "own.py"])
def test_another_guide_under_the_same_path_is_refused(
    file: str, tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    guide = Path(shutil.copytree(tiny_model, tmp_path / "guide"))
    (guide / "own.py").touch()
    where = [f"model.path={tiny_model}", f"data.train={pairs}", f"output={tmp_path / 'run'}"]
    settings = [*where, f"loss.false_negatives.guide={guide}"]
    finetune(load("tiny", settings))
    longer = load("tiny", [*settings, "train.steps=5"])
    flip(guide / file) if file.endswith("safetensors") else (guide / file).write_text(
        (guide / file).read_text(encoding="utf-8") + " ", encoding="utf-8"
    )
    with pytest.raises(UserError, match="another teacher, guide.*--allow-changed models"):
        finetune(longer, allow_changed=["train.steps"])
    assert finetune(longer, allow_changed=["train.steps", "models"]).steps == 5


# What the config names or leaves open


def test_another_dev_set_under_the_same_path_is_refused(
    folder: Path, ended: list[str], tmp_path: Path
) -> None:
    dev = write_task(tmp_path / "dev")
    judged = dev / "qrels" / "dev.tsv"
    config = load("tiny", [*ended, f"evaluation.dev={dev}"])
    allowed = ["train.steps", "evaluation.dev"]
    finetune(config, allow_changed=allowed, evaluate=lambda model: {"ndcg@10": 0.5})
    longer = load("tiny", [*ended, f"evaluation.dev={dev}", "train.steps=8"])
    judged.write_text("".join(judged.open().readlines()[:-1]))
    with pytest.raises(UserError, match="another dev set.*evaluation.dev: was .*-changed eval"):
        finetune(longer, allow_changed=["train.steps"])
    assert finetune(longer, allow_changed=allowed).steps == 8


@pytest.mark.parametrize(
    ("changed", "best"),
    [
        ([], 4),
        (["evaluation.batch_tokens=99"], 4),
        (["evaluation.metric=recall@10"], 6),
        (["evaluation.dev_split=test"], 6),
    ],
)
def test_scores_of_another_evaluation_are_not_compared(
    changed: list[str], best: int, folder: Path, ended: list[str], tmp_path: Path
) -> None:
    """Step 4 was the best by the first one; the later steps score less on whatever is measured."""
    dev = write_task(tmp_path / "dev")
    shutil.copy(dev / "qrels" / "dev.tsv", dev / "qrels" / "test.tsv")
    words = [*ended, f"evaluation.dev={dev}", "train.eval_every=2", "train.keep=1"]
    allowed = ["train.steps", "train.eval_every", "evaluation"]

    def go(steps: int, score: float, *more: str) -> Trained:
        config = load("tiny", [*words, f"train.steps={steps}", *more])
        measured = {"ndcg@10": score, "recall@10": score}
        return finetune(config, allow_changed=allowed, evaluate=lambda model: measured)

    assert go(6, 0.9).best.name == "step-00000004"
    assert go(8, 0.1, *changed).best.name == f"step-{best:08d}"


def test_another_precision_of_the_launch_is_refused(
    folder: Path, ended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    changed = r"another .*precision \(train.mixed_precision: was 'no', now 'bf16'\)"
    with pytest.raises(UserError, match=f"{changed}.*--allow-changed train.mixed_precision$"):
        go_on(ended)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert go_on(ended) == folder / "step-00000006"
