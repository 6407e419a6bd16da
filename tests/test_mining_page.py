"""The page of a mining run: complete, self-contained, and safe whatever the texts hold."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tercet.configs.schema import MiningConfig
from tercet.data.rows import Ragged, Texts, TrainingSet
from tercet.mining import MODEL, Space, asked_queries, mine
from tercet.mining.select import RULES
from tercet.report import mining_page
from tercet.report.mining import RULES as EXPLAINED

EVIL = '<script>alert("1")</script><img src=x onerror=alert(1)>"\'</style></svg>&amp;'


class Tags(HTMLParser):
    """Every tag with its attributes, and the text between tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link", "img", "source", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What mining 120 queries over 200 documents says; one document holds hostile text."""
    generator = np.random.default_rng(0)
    texts = [f"document {i}" for i in range(199)] + [EVIL]
    queries = [f"query {i} {EVIL if i == 7 else ''}" for i in range(120)]
    rows = TrainingSet(
        Texts([f"q{i}" for i in range(120)], queries),
        Texts([f"d{i}" for i in range(200)], texts),
        np.arange(120),
        Ragged.of([[i] for i in range(120)]),
        Ragged.of([[] for _ in range(120)]),
        np.array([0, 120]),
        left_out=17,
    )
    sides = [generator.normal(size=(n, 4)).astype(np.float32) for n in (120, 200)]
    out = tmp_path_factory.mktemp("mined") / "mined.parquet"
    config = MiningConfig(depth=60, near_duplicate=0.98)
    mine(
        asked_queries(rows),
        {MODEL: Space(sides[0], sides[1], f"page {out}")},
        config,
        out,
        miner="abc",
    )
    return json.loads((out.parent / "mining.json").read_text(encoding="utf-8"))


def test_every_rule_is_explained() -> None:
    assert tuple(EXPLAINED) == RULES


def test_the_page_asks_for_nothing_and_runs_nothing(summary: dict[str, Any]) -> None:
    page = mining_page(summary)
    found = Tags(page)
    assert not found.open  # every tag is closed
    assert not {"script", "link", "img", "iframe", "object", "form"} & {t for t, _ in found.tags}
    for _, attributes in found.tags:
        assert not {a for a in attributes if a.startswith("on") or a in ("src", "href", "style")}
    assert "default-src 'none'" in page and not re.search(r"https?:|url\(|@import", page)
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_hostile_text_stays_text(summary: dict[str, Any]) -> None:
    for sample in summary["samples"]["kept"]:  # whichever were drawn: all of them are hostile now
        for side in (sample, sample["positive"], sample["document"]):
            side |= {key: EVIL for key in ("text", "query", "query_id", "id") if key in side}
    summary = summary | {"file": EVIL, "miner": EVIL}
    found = Tags(mining_page(summary))
    assert "img" not in {tag for tag, _ in found.tags}
    assert found.text.count(EVIL) >= 50 * 6
    assert not found.open


def test_what_it_says_is_what_was_counted(summary: dict[str, Any]) -> None:
    page = mining_page(summary)
    found = Tags(page)
    counts = summary["counts"]
    text = " ".join(found.text.split())
    assert f"queries {counts['queries']:,}" in text
    assert f"negatives {counts['kept']:,}" in text
    for rule, dropped in counts["dropped"].items():
        assert re.search(rf"<strong>{rule.replace('_', ' ')}</strong>.*\n.*>{dropped:,}<", page)
    assert "17 documents that answer only queries of other splits were never searched" in text
    assert "Not estimated" in text
    assert len(re.findall(r"<article>", page)) == 50
    charts = summary["histograms"]
    bars = [attributes for tag, attributes in found.tags if tag == "rect"]
    assert len(bars) == sum(
        len(values)
        for chart in charts.values()
        for name, values in chart.items()
        if name != "edges"
    )
    for bar in bars:
        x, y, width, height = (float(bar[a] or "nan") for a in ("x", "y", "width", "height"))
        assert 0 <= x <= x + width <= 100 and y >= 0 and y + height == pytest.approx(100, abs=0.01)
    labels = [attributes for tag, attributes in found.tags if tag == "svg"]
    ticks = [attributes for tag, attributes in found.tags if attributes.get("class") == "axis"]
    assert len(ticks) == len(labels) and page.count("<span>1</span>") == 2  # one below each chart
    widths = {
        high - low
        for low, high in zip(charts["ranks"]["edges"], charts["ranks"]["edges"][1:], strict=False)
    }
    assert widths == {2} and "None" not in text
    assert len(labels) == 5 and all(a["role"] == "img" and a["aria-label"] for a in labels)


def test_the_rate_is_shown_with_its_interval(summary: dict[str, Any]) -> None:
    rate = {"judge": "a judge", "hits": 1200, "above": 90, "queries": 120}
    rate |= {"rate": 0.075, "low": 0.061, "high": 0.092}
    text = Tags(mining_page(summary | {"false_negatives": rate, "calibration": "as it is"})).text
    text = " ".join(text.split())
    assert "a judge ranks 7.5% above the query's lowest positive" in text
    assert "6.1% to 9.2%, 90 of 1,200 hits of 120 queries" in text
    assert "Probability of the cross-encoder: as it is." in text


def test_a_run_without_any_negative_has_a_page(tmp_path: Path) -> None:
    rows = TrainingSet(
        Texts(["q"], ["a"]),
        Texts(["d"], ["b"]),
        np.array([0]),
        Ragged.of([[0]]),
        Ragged.of([[]]),
        np.array([0, 1]),
    )
    one = np.ones((1, 2), dtype=np.float32)
    mine(
        asked_queries(rows),
        {MODEL: Space(one, one, "one")},
        MiningConfig(),
        tmp_path / "m.parquet",
        miner="m",
    )
    found = Tags(mining_page(json.loads((tmp_path / "mining.json").read_text())))
    assert not found.open and "kept: 0" in found.text
