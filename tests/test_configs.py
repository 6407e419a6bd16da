"""Recipes are complete and commented; a wrong key or value is one line that says what to do."""

import re
from importlib import resources
from pathlib import Path

import pytest
import yaml

from tercet.configs import Config, load, save
from tercet.configs.load import parse, recipes
from tercet.errors import UserError


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_loads_and_explains_each_key(name: str) -> None:
    load(name)
    text = (resources.files("tercet.configs") / f"{name}.yaml").read_text(encoding="utf-8")
    for line in text.splitlines():
        if re.match(r"\s*\w+:\s*[^\s#]", line):  # a key with a value, not a section
            assert "#" in line, f"{name}.yaml: no comment in {line!r}"


def test_finetune_yaml_shows_every_key_with_its_default() -> None:
    text = (resources.files("tercet.configs") / "finetune.yaml").read_text(encoding="utf-8")
    shown = yaml.safe_load(text)
    config = Config(output="x", data={"train": "pairs.jsonl"})  # type: ignore[arg-type]
    defaults = config.model_dump(mode="json")
    assert flat_keys(shown) == flat_keys(defaults)
    assert load("finetune") == config.model_copy(update={"output": "runs/finetune"})


def flat_keys(value: object, prefix: str = "") -> set[str]:
    if not isinstance(value, dict) or prefix == ".data.train":
        return {prefix}
    return {k for name, v in value.items() for k in flat_keys(v, f"{prefix}.{name}")}


def test_the_resolved_config_reads_back_equal(tmp_path) -> None:
    config = load("finetune", ["train.epochs=0.5", "loss.matryoshka={dims: [4, 2]}"])
    save(config, tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("text", "overrides", "complaint"),
    [
        ("output: x\nbatch: {sise: 3}", [], "unknown key batch.sise; did you mean 'size'"),
        ("output: x", ["model.prompts.qery=a"], "model.prompts.qery; did you mean 'query'"),
        ("output: x\nloss: {temperature: -1}", [], "loss.temperature: .* greater than 0, got -1"),
        ("output: x", ["train.learning_rate=.inf"], "learning_rate: .* finite .* got inf"),
        ("output: x\nbatch: {size: 0}", [], "batch.size: .* greater than or equal to 1, got 0"),
        ("batch: {size: 1}", [], "output is missing"),
        ("output: x", ["train.epochs"], "write key=value"),
        ("a: [", [], "not valid YAML"),
        ("- 1", [], "top level must be"),
        ("0", [], "top level must be"),
        ("output", [], "top level must be"),
        ("output: x", ["loss.directions=[document_to_query]"], "must include query_to_document"),
        (
            "output: x",
            ["loss.directions=[query_to_document,query_to_query]"],
            "set partition: joint",
        ),
        ("output: x", ["loss.matryoshka={dims: [4], weights: [1, 2]}"], "2 weights for 1 dims"),
        ("output: x", ["data.train=[{pth: a}]"], "data.train.0.path is missing"),
        ("output: x", ["loss.false_negatives.guide={dtype: float16}"], "guide.path is missing"),
        ("output: x", ["data.train=[3]"], r"data.train.0: .* got 3 \(by an override\)$"),
        (
            "output: x",
            ["loss.directions=[a]"],
            r"loss.directions.0: .* got 'a' \(by an override\)$",
        ),
        (
            "output: x",
            ["batch.micro_tokens=foo"],
            r"^a.yaml: batch.micro_tokens: input .* or 'auto', got 'foo' \(by an override\)$",
        ),
        (
            "output: x",
            ["batch.keep_tokens=-1"],
            r"^a.yaml: batch.keep_tokens: .* equal to 0 or 'auto', got -1 \(by an override\)$",
        ),
        (
            "output: x\ndistil: {teacher: [{path: a}]}",
            ["train.steps=1", "distil.teacher={path: b}"],
            "^a.yaml: override distil.teacher: one is a list, the other a section; write it as",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, overrides: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        parse(text, "a.yaml", overrides)
    assert "\n" not in str(error.value)


def test_a_tilde_is_the_home_as_in_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    words = ["data.train=~/a.jsonl", "data.mined=~/m", "data.held_out=[~/h]", "evaluation.dev=~/d"]
    found = parse("output: ~/run", "a.yaml", words)
    assert (found.output, found.data.train[0].path) == ("/home/me/run", "/home/me/a.jsonl")
    assert (found.data.mined, found.data.held_out) == ("/home/me/m", ("/home/me/h",))
    assert found.evaluation.dev == "/home/me/d"
    assert parse("output: ./a~/", "a.yaml").output == "./a~/"  # otherwise as it was given


@pytest.mark.parametrize("given", ['""', '" "', '"a\\0b"'])
def test_an_output_that_is_no_path_is_one_line(given: str) -> None:
    with pytest.raises(UserError, match="output: should be the path of a file or folder, got"):
        parse(f"output: {given}", "a.yaml")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a folder; name the recipe"):
        load(tmp_path)


def test_a_folder_of_its_name_does_not_hide_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "finetune").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load("finetune") == Config(output="runs/finetune", data={"train": "pairs.jsonl"})  # type: ignore[arg-type]


def test_a_missing_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'finetune'"):
        load("fintune")
