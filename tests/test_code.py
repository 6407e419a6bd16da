"""Code pairs: the docstring never stands in its own answer, and no part holds another's pairs."""

import json
import sys
from pathlib import Path

import pytest

from tercet.configs import Source
from tercet.data.beir import read_task
from tercet.data.check import overlap
from tercet.data.code import COLUMNS, IGNORE, code_task
from tercet.data.functions import Function, first_paragraph, functions
from tercet.data.packages import SourceFile, source_files, split_units
from tercet.data.read import read_training
from tercet.errors import UserError


def parse(tmp_path: Path, source: str) -> tuple[list[Function], dict[str, int]]:
    path = tmp_path / "module.py"
    path.write_text(source, encoding="utf-8")
    found, skipped = functions(SourceFile("p", "p.module", path))
    return found, dict(skipped)


def code(tmp_path: Path, source: str) -> str:
    found, skipped = parse(tmp_path, source)
    assert skipped == {}
    return found[0].code


PLAIN = '''
def add(a, b):  # kept
    """Add two numbers.

    Slowly.
    """
    # kept too
    total = a + b

    return total
'''


def test_the_docstring_is_cut_and_the_rest_stands_as_written(tmp_path: Path) -> None:
    (found,), _ = parse(tmp_path, PLAIN)
    assert found.id == "p.module:add"
    assert found.query == "Add two numbers."
    assert found.code == (
        "def add(a, b):  # kept\n    # kept too\n    total = a + b\n\n    return total"
    )


def test_methods_move_to_the_margin_with_their_decorators(tmp_path: Path) -> None:
    source = '''
class Shape:
    class Inner:
        @property
        @cache
        async def text(self):
            """Return the long text."""  # a remark
            return f"""
  outside the margin
            inside"""
'''
    (found,), _ = parse(tmp_path, source)
    assert found.id == "p.module:Shape.Inner.text"
    expected = '@property\n@cache\nasync def text(self):\n    return f"""\n  outside the margin\n'
    assert found.code == expected + '    inside"""'


def test_a_docstring_on_a_shared_line_is_cut_out_of_it(tmp_path: Path) -> None:
    body = "\n    b = a\n    return b"
    assert code(tmp_path, f'def f(a):\n    "Do it quickly now."; c = a{body}') == (
        f"def f(a):\n    c = a{body}"
    )
    assert code(tmp_path, 'def f(a): "Do it quickly now."; return (a,\n    a)') == (
        "def f(a): return (a,\n    a)"
    )


def test_letters_outside_ascii_do_not_shift_the_cut(tmp_path: Path) -> None:
    source = 'def f(é="ü"): "Größe é ändern bitte."; return ("ö",\n    é)'
    assert code(tmp_path, source) == 'def f(é="ü"): return ("ö",\n    é)'


def test_definitions_under_conditions_are_found(tmp_path: Path) -> None:
    one = '    def f():\n        """Return the number {}."""\n        a = {}\n        return a\n'
    source = "try:\n" + one.format("one", 1) + "except E:\n" + one.format("two", 2)
    source += "if x:\n" + one.format("three", 3) + "else:\n" + one.format("four", 4)
    found, _ = parse(tmp_path, source)
    assert [pair.query.split()[-1] for pair in found] == ["one.", "two.", "three.", "four."]


BODY = "    a = 1\n    return a\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f():\n" + BODY, "no docstring"),
        ('def f():\n    """Too short."""\n' + BODY, "docstring under 3 or over 64 words"),
        (f'def f():\n    """{"word " * 65}."""\n' + BODY, "docstring under 3 or over 64 words"),
        ('def f():\n    """>>> f() is not prose"""\n' + BODY, "docstring opens without prose"),
        ('def f():\n    """:param a: the letter"""\n' + BODY, "docstring opens without prose"),
        ('def f():\n    """f(a, b, c) -> int"""\n' + BODY, "docstring opens without prose"),
        ('def f():\n    """Do some more work."""\n    pass\n', "empty body"),
        ('def f():\n    """Do some more work."""\n', "empty body"),
        ('def f():\n    """Do some more work."""\n    ...\n', "empty body"),
        (
            'def f():\n    """Do some more work."""\n    raise NotImplementedError("x")\n',
            "empty body",
        ),
        ('def f():\n    """Do some more work."""\n    return 1\n', "body under 2 lines"),
        ('def test_f():\n    """Do some more work."""\n' + BODY, "tests"),
        ("def f(:\n", "files that do not parse"),
        ("x = '\0'\n", "files that do not parse"),
    ],
)
def test_what_makes_no_pair_is_counted_by_reason(source: str, reason: str, tmp_path: Path) -> None:
    assert parse(tmp_path, source) == ([], {reason: 1})


@pytest.mark.parametrize(
    ("docstring", "prose"),
    [
        (None, ""),
        ("One\n  line   here.\n\nAnother.", "One line here."),
        ("Do it.\nArgs:\n  a: one", "Do it."),
        ("Do it.\nParameters\n----------", "Do it."),
        ("Do it.\n>>> it()", "Do it."),
        ("Return: this is prose", ""),
        ("See :func:`other` for more.", "See :func:`other` for more."),
        ("a (`torch.Tensor` of shape `(b, c)`): The mask.", ""),
    ],
)
def test_a_query_ends_where_prose_does(docstring: str | None, prose: str) -> None:
    assert first_paragraph(docstring) == prose


def function(name: str, words: str, body: str) -> str:
    return f'def {name}(x):\n    """{words}"""\n    y = {body}\n    return y\n\n\n'


def package(root: Path, name: str, modules: int, extra: str = "") -> Path:
    """A package with one function a module, plus what every module shares."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    for i in range(modules):
        source = function(f"f{i}", f"Compute the {name} number {i}.", f"x + {name}[{i}]")
        (folder / f"m{i}.py").write_text(source + extra, encoding="utf-8")
    return folder


def build(tmp_path: Path, out: str = "out", **settings: int) -> Path:
    names = [str(tmp_path / name) for name in ("first", "second", "third")]
    code_task(names[:1], names[1:2], names[2:], tmp_path / out, **settings)
    return tmp_path / out


def test_what_is_held_out_never_reaches_training(tmp_path: Path) -> None:
    package(tmp_path, "first", 6, function("shared", "Compute a shared thing.", "x ** 2"))
    package(tmp_path, "second", 3, function("other", "Do it in other words.", "x  **  3"))
    third = package(tmp_path, "third", 3, function("shared", "Compute a SHARED thing.", "x ** 4"))
    copy = function("other", "A third wording of it.", "x ** 3")
    (tmp_path / "first" / "copy.py").write_text(copy)
    (third / "copy.py").write_text(copy.replace("A third", "One more"))
    out = build(tmp_path)
    counts = json.loads((out / "code.json").read_text())
    (train,), (dev,) = counts["train"].values(), counts["dev"].values()
    assert train["skipped"] == {"docstring held out": 6, "code held out": 1}
    assert (train["functions"], train["kept"], train["files"]) == (13, 6, 8)
    assert dev["skipped"] == {"code met before": 2, "code held out": 1}
    source = Source(path=str(out / "train.jsonl"), columns=COLUMNS, ignore=IGNORE)
    rows = read_training([source])
    assert len(rows) == 6
    assert rows.queries.ids[0] == "q:first.m0:f0" and rows.documents.ids[0] == "first.m0:f0"
    for task in (read_task(out), read_task(out / "dev", "dev")):
        assert len(task.queries) == 4
        assert overlap(rows, task).share == 0.0


def test_the_same_seed_draws_the_same_pairs_and_another_does_not(tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        package(tmp_path, name, 30)
    limits = {"limit_train": 8, "limit_test": 5, "limit_dev": 4}
    one, two = build(tmp_path, "one", **limits), build(tmp_path, "two", **limits)
    other = build(tmp_path, "other", seed=5, **limits)
    texts = [(out / "train.jsonl").read_text() for out in (one, two, other)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].count("\n") == 8
    assert len(read_task(one).queries) == 5 and len(read_task(one / "dev", "dev").queries) == 4
    counts = json.loads((one / "code.json").read_text())
    (train,) = counts["train"].values()
    assert (train["kept"], train["skipped"]["over the limit"]) == (8, 16)
    assert train["files_read"] < train["files"] == 31  # three times the limit is enough
    assert "train.jsonl" in counts["sha256"]


def test_one_package_is_divided_by_whole_modules(tmp_path: Path) -> None:
    folder = package(tmp_path, "first", 0)
    for i in range(12):
        package(folder, f"part{i}", 2)
    package(folder / "part3", "deep", 40)
    files = source_files(str(folder))
    parts = split_units(files)
    again = split_units(files[::-1])  # the order of the files is of no account
    assert {part: set(own) for part, own in parts.items()} == {
        p: set(own) for p, own in again.items()
    }
    modules = [file.module for own in parts.values() for file in own]
    assert len(modules) == len(set(modules)) == len(files)
    assert all(0.1 <= len(parts[part]) / len(files) <= 0.2 for part in ("test", "dev"))
    counts = code_task([str(folder)], [], [], tmp_path / "out")
    assert counts.kept("train") > counts.kept("test") > 0 < counts.kept("dev")


def test_packages_are_found_without_importing_them(tmp_path: Path) -> None:
    sys.modules.pop("wave", None)
    assert [file.module for file in source_files("wave")] == ["wave"]  # a module on its own
    assert "json.decoder" in [file.module for file in source_files("json")]
    assert [file.module for file in source_files("json.decoder")] == ["json.decoder"]
    assert "wave" not in sys.modules


def test_the_standard_library_comes_without_tests_and_installed_packages() -> None:
    modules = {file.module for file in source_files("stdlib")}
    assert {"json.decoder", "asyncio.tasks", "argparse"} <= modules
    parts = {part for module in modules for part in module.split(".")}
    assert not parts & {"site-packages", "test", "tests", "idlelib", "pytest"}


def test_files_of_tests_and_environments_are_left_out(tmp_path: Path) -> None:
    folder = package(tmp_path, "first", 1)
    for name in ("tests/a.py", "test_a.py", "a_test.py", "conftest.py", ".git/a.py", "env/a.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "env" / "pyvenv.cfg").touch()
    assert [file.module for file in source_files(str(folder))] == ["first", "first.m0"]


def test_a_mistake_of_the_user_is_named(tmp_path: Path) -> None:
    one, two = str(package(tmp_path, "one", 1)), str(package(tmp_path, "two", 2))
    (tmp_path / "bare").mkdir()
    out = tmp_path / "out"

    def complaint(train: list[str], test: list[str], dev: list[str], where: Path = out) -> str:
        with pytest.raises(UserError) as caught:
            code_task(train, test, dev, where)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "did you mean 'pytest'?" in complaint(["pytst"], [], [])
    assert "no such folder" in complaint([str(tmp_path / "absent")], [], [])
    assert "holds no Python files" in complaint([str(tmp_path / "bare")], [], [])
    assert "holds no Python files" in complaint(["sys"], [], [])
    assert "too few to divide" in complaint([one], [], [])
    assert "named for test and train" in complaint([one], [one], [two])
    assert "--test without --dev" in complaint([one], [two], [])
    (tmp_path / "bare" / "a.py").write_text("x = 1\n")
    assert "no function there makes a pair for dev" in complaint(
        [one], [two], [str(tmp_path / "bare")]
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert "was not written by" in complaint([one], [two], [one], tmp_path / "mine")
    assert not out.exists()
