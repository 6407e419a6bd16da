"""A comparison of two tiny models on two collections, made once for the tests that read it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tercet import stages
from tercet.data import RetrievalTask, Texts, write_task
from tests.conftest import NAMES, answer, question
from tests.encoders import save_encoder

EVIL = "<img src=x onerror=alert(1)>$\"'&amp;"
MANY = 1_024  # documents of the larger collection: enough for an index study


@dataclass(frozen=True)
class Comparison:
    """What was compared, and where it was written."""

    out: Path
    found: dict[str, Any]
    models: list[str]
    folders: list[Path]


def collection(folder: Path, documents: int) -> Path:
    """Questions, their answers, and other sentences up to so many documents."""
    count = len(NAMES)
    texts = [answer(n) for n in range(count)]
    texts += [f"{answer(n % count)} {NAMES[n // count]}" for n in range(count, documents)]
    ids = [f"d{n}" for n in range(documents)]
    queries = Texts([f"q{n}" for n in range(count)], [question(n) for n in range(count)])
    qrels = {f"q{n}": {f"d{n}": 1} for n in range(count)}
    write_task(RetrievalTask(folder.name, "test", Texts(ids, texts), queries, qrels), folder)
    return folder


def make_comparison(folder: Path, tiny_model: Path) -> Comparison:
    """The tiny model (BERT) beside an MPNet of half its width whose folder has a hostile name."""
    pytest.importorskip("faiss", reason="the ann extra is not installed")
    small = save_encoder("mpnet", folder / "small")
    models = [
        str(shutil.copytree(tiny_model, folder / "tiny")),
        str(shutil.copytree(small, folder / EVIL)),
    ]
    folders = [collection(folder / "animals", 300), collection(folder / "more", MANY)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tercet.evaluation.indexes.TIMED", 0.01)
        found = stages.compare(models, folders, folder / "out", dims=(16, 8), index=True)
    return Comparison(folder / "out", found, models, folders)
