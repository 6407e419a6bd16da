"""YAML plus dotted overrides -> Config, with complaints a person can act on."""

from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import omegaconf
import yaml
from omegaconf import OmegaConf
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tercet.configs.schema import SECRET, Config
from tercet.errors import UserError, did_you_mean
from tercet.files import write_text
from tercet.secret import masked

HEAD = "# Written by Tercet: every setting that was used.\n"
LARGEST = 100_000  # values of a YAML file, with its aliases unfolded
UNREADABLE = (
    yaml.YAMLError,
    omegaconf.errors.OmegaConfBaseException,
    RecursionError,
    ValueError,  # dates and numbers that are none, in PyYAML's constructors
    TypeError,  # keys that cannot be keys
    AttributeError,
    KeyError,
    OverflowError,
)


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and apply `key.sub=value` overrides (values are YAML).

    `recipe` is a path, or the name of a recipe that ships with Tercet (`finetune`).
    Raises UserError naming the file, the key, and for a misspelt key the nearest valid one.
    """
    path = _find(recipe)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None
    return parse(text, str(path), overrides)


def parse(text: str, where: str, overrides: Sequence[str] = ()) -> Config:
    """The same from YAML text; `where` names it in complaints."""
    try:
        _refuse_other_trees(text, where)
        base = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
    except UNREADABLE as error:
        raise UserError(f"{where}: not valid YAML: {_one_line(error)}") from None
    merged: Any = base
    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals:
            raise UserError(f"override {item!r}: write key=value, for example train.epochs=2")
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([item]))
        except UNREADABLE as error:
            reason = _one_line(error)
            if "container types" in reason:
                reason = "one is a list, the other a section; write it as the file does"
            raise UserError(f"{where}: override {key}: {reason}") from None
    try:
        values = OmegaConf.to_container(merged, resolve=True)
    except UNREADABLE as error:
        raise UserError(f"{where}: {_one_line(error)}") from None
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        told = [item.partition("=")[0] for item in overrides]
        raise UserError(f"{where}: {'; '.join(_complaints(error, told))}") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None


def _refuse_other_trees(text: str, where: str) -> None:
    """Refuse all but sections, and aliases that unfold to more than any config holds.

    Also those that unfold to themselves.
    """
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = LARGEST  # what it is while it is being unfolded, so inside itself
            value = node.value if isinstance(node, yaml.CollectionNode) else ()
            parts = (
                part for item in value for part in (item if isinstance(item, tuple) else [item])
            )
            sizes[id(node)] = min(LARGEST, 1 + sum(size(part) for part in parts))
        return sizes[id(node)]

    tree = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(tree, yaml.MappingNode | None):
        raise UserError(f"{where}: the top level must be `key: value` lines")
    if tree is not None and size(tree) >= LARGEST:
        raise UserError(f"{where}: more than {LARGEST:,} values; a config holds about a hundred")


def save(config: Config, path: Path) -> None:
    """Write the resolved config: every key with the value the run used."""
    write_text(path, HEAD + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def is_saved(path: Path) -> bool:
    """Whether `save` wrote what is there; a recipe of somebody's own begins otherwise."""
    return path.is_file() and path.read_bytes().startswith(HEAD.encode())


def recipes() -> list[str]:
    """Names of the recipes that ship with Tercet."""
    folder = resources.files("tercet.configs")
    return sorted(f.name[: -len(".yaml")] for f in folder.iterdir() if f.name.endswith(".yaml"))


def _find(recipe: str | Path) -> Path:
    path = Path(recipe)
    if path.is_file():
        return path
    if str(recipe) in recipes():
        return Path(str(resources.files("tercet.configs") / f"{recipe}.yaml"))
    if path.is_dir():
        raise UserError(f"{recipe}: a folder; name the recipe, a YAML file")
    hint = did_you_mean(str(recipe), recipes(), f"recipes: {', '.join(recipes())}")
    raise UserError(f"{recipe}: no such file and no such recipe; {hint}")


def _complaints(error: ValidationError, told: Sequence[str]) -> Iterator[str]:
    """One per key: each alternative of a union complains by itself, about the same value.

    `told`: keys given beside the file, whose complaints say so.
    """
    by_key: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for problem in error.errors():
        by_key.setdefault(_key(problem), []).append(problem)
    for location, problems in by_key.items():
        key, first = ".".join(map(str, location)), problems[0]
        beside = " (by an override)" if any(_covers(name, key) for name in told) else ""
        if first["type"] == "extra_forbidden":
            names = list(_section(location[:-1]).model_fields)
            hint = did_you_mean(str(location[-1]), names, f"valid here: {', '.join(names)}", 0.5)
            yield f"unknown key {key}; {hint}{beside}"
        elif first["type"] == "missing":
            yield f"{key} is missing; write it there, or {key}=... behind it"
        elif first["type"] == SECRET:
            yield first["msg"]
        else:
            yield f"{key}: {_expected(problems)}, got {masked(repr(first['input']))}"[:300] + beside


def _covers(name: str, key: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _key(problem: ErrorDetails) -> tuple[str | int, ...]:
    """Where the problem is, without the names pydantic gives to a union's alternatives."""
    location = problem["loc"]
    if problem["type"] == "extra_forbidden":
        return location
    for length, part in enumerate(location):
        section = _section(location[:length])
        if isinstance(part, str) and (section is None or part not in section.model_fields):
            return location[:length]
    return location


def _expected(problems: Sequence[ErrorDetails]) -> str:
    """`input should be a valid integer or 'auto'`, of both messages."""
    messages = [problem["msg"].removeprefix("Value error, ") for problem in problems]
    if len(messages) > 1:
        messages = [message.split(", unable to")[0] for message in messages]
    first, *others = messages
    joined = " or ".join([first, *(other.removeprefix("Input should be ") for other in others)])
    return joined[:1].lower() + joined[1:]


def _section(location: Sequence[str | int]) -> Any:
    """The section class at `location`; None where there is a plain value."""
    section: Any = Config
    for part in location:
        if isinstance(part, str):
            section = _section_in(section.model_fields[part].annotation)
    return section


def _section_in(annotation: Any) -> Any:
    """The section class inside `X`, `X | None` or `tuple[X, ...]`; None if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
