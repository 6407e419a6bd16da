"""Mining part by part as docs/scale.md says: its programs are run, its commands typed."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import NAMES, Run, write_beir

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
TRAINED, HELD_OUT = range(0, 24), range(24, 36)  # questions; documents from 36 on answer none


def negatives(mined: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in pq.read_table(mined).to_pylist():
        found.setdefault(row["query_id"], set()).update(row["negative_ids"])
    return found


def test_parts_mined_and_joined_train(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    answers = {"train": [(n, n) for n in TRAINED], "test": [(n, n) for n in HELD_OUT]}
    corpus = write_beir(tmp_path / "corpus", answers)
    section = PAGE.read_text(encoding="utf-8").partition("### Part by part")[2]
    section = section.partition("\n## ")[0]
    split, join = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert "data.train=$part output=mined/$part" in section
    assert "data.train=training data.mined=mined.parquet" in section
    told = ["tiny", f"model.path={tiny_model}"]
    rules = ["mining.negatives=4", "mining.relative_margin=null"]
    space: dict[str, object] = {}
    exec(split.replace('PARTS = Path("corpus"), 10', 'PARTS = Path("corpus"), 3'), space)
    parts = sorted(Path().glob("part-*"))
    assert len(parts) == 3
    for folder in (*parts, corpus):
        out = f"output=mined/{folder.name}"
        status, _, err = run("mine", *told, *rules, f"data.train={folder}", out)
        assert status == 0, err
    exec(join, space)
    whole, joined = negatives(Path("mined/corpus/mined.parquet")), negatives(Path("mined.parquet"))
    assert joined.keys() == whole.keys() == {f"q{n}" for n in TRAINED}
    assert all(whole[query] <= joined[query] for query in whole)  # the best of all are in a part
    assert not {f"d{n}" for n in HELD_OUT} & set().union(*joined.values())
    lines = Path("training/corpus.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) < len(NAMES)  # what nobody needs stays away
    words = ["data.train=training", "data.mined=mined.parquet", "output=run", "train.steps=2"]
    status, _, err = run("finetune", *told, *words)
    assert status == 0, err
