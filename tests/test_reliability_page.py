"""docs/reliability.md names tests: each exists, and those in italics are the long ones."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAMED = re.findall(
    r"(\*?)(test_\w+\.py)::(test_\w+)", (ROOT / "docs" / "reliability.md").read_text("utf-8")
)


def test_the_page_names_many() -> None:
    assert len(NAMED) > 40


@pytest.mark.parametrize(("star", "file", "name"), NAMED, ids=[name for _, _, name in NAMED])
def test_it_exists(star: str, file: str, name: str) -> None:
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    found = re.search(rf"((?:^@.*\n(?:^[ \])].*\n)*)*)^def {name}\(", text, re.MULTILINE)
    assert found is not None, f"{file} has no {name}"
    assert ("mark.faults" in found[1]) == bool(star)
