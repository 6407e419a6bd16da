"""The pages in a real Chromium at the width of a phone: nothing asked for, nothing broken."""

import os
import shutil
import threading
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tercet.stages.server import SearchServer
from tercet.stages.serving import Search, load_searcher, read_collection
from tests.comparison import EVIL, Comparison, collection
from tests.conftest import question
from tests.encoders import save_encoder

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PHONE = {"width": 390, "height": 844}
ORDERS = "table => [...table.tBodies[0].rows].map(row => [...row.cells].map(c => c.dataset.order))"


class Opened:
    """A page in a context of its own: its complaints, and every address it asked for."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.context = browser.new_context(viewport=PHONE, **options)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", self._alarm)
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _alarm(self, dialog: Any) -> None:
        self.problems.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def overflow(self) -> int:
        """Pixels by which the page is wider than the phone."""
        widest = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
        return int(self.page.evaluate(widest)) - PHONE["width"]


def missing(what: str) -> NoReturn:
    if os.environ.get("TERCET_NEED_BROWSER"):
        pytest.fail(f"{what}, and TERCET_NEED_BROWSER is set")
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium as the system has it, driven by Playwright.

    Where either is missing the tests skip, or fail if TERCET_NEED_BROWSER is set.
    """
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        missing(f"no browser on this machine (looked for {', '.join(NAMES)})")
    if find_spec("playwright") is None:
        missing("playwright is not installed")
    driver = import_module("playwright.sync_api")
    with driver.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path)
        yield chromium
        chromium.close()


@pytest.fixture(params=["light", "dark"])
def report(
    browser: Any, comparison: Comparison, request: pytest.FixtureRequest
) -> Iterator[Opened]:
    """The report, every fold of it open."""
    opened = Opened(browser, color_scheme=request.param)
    opened.page.goto((comparison.out / "report.html").as_uri())
    opened.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    yield opened
    opened.context.close()


def test_the_report_asks_for_nothing_and_complains_of_nothing(
    report: Opened, comparison: Comparison
) -> None:
    report.page.wait_for_load_state("networkidle")
    assert report.requests == [(comparison.out / "report.html").as_uri()]
    assert report.problems == []
    assert report.overflow() <= 0
    names = "cells => Math.min(...cells.map(cell => cell.clientWidth))"
    assert report.page.eval_on_selector_all("td:first-child", names) >= 80  # no letter by letter
    shown = report.page.evaluate("getComputedStyle(document.body).backgroundColor")
    images = report.page.eval_on_selector_all(
        "img", "found => found.map(i => [i.alt, i.naturalWidth, i.clientWidth, i.currentSrc])"
    )
    assert len(images) == 6
    for alt, natural, wide, source in images:
        assert len(alt) > 40 and natural > 300 and 300 < wide <= 390
        assert (source in source_of_dark(report)) == (shown == "rgb(21, 24, 27)")


def source_of_dark(opened: Opened) -> list[str]:
    return opened.page.eval_on_selector_all("source", "found => found.map(s => s.srcset)")


def test_every_table_sorts_by_every_column_and_back(report: Opened) -> None:
    tables = report.page.query_selector_all("table.sortable")
    assert len(tables) > 10
    for table in tables:
        for column, head in enumerate(table.query_selector_all("th")):
            button = head.query_selector("button")
            for direction in ("ascending", "descending"):
                button.focus()
                report.page.keyboard.press("Enter")
                assert head.get_attribute("aria-sort") == direction
                assert len(table.query_selector_all("th[aria-sort]")) == 1
                orders = [row[column] for row in table.evaluate(ORDERS)]
                there = [order for order in orders if order is not None]
                assert orders[: len(there)] == there  # what is missing comes last
                if "number" in (head.get_attribute("class") or ""):
                    numbers = [float(order) for order in there]
                    assert numbers == sorted(numbers, reverse=direction == "descending")
                elif len(set(there)) > 1:
                    firsts = [there[0], there[-1]]
                    key = [report.page.evaluate("([a, b]) => a.localeCompare(b)", firsts)]
                    assert (key[0] < 0) == (direction == "ascending")
    assert report.problems == []


def test_a_number_that_is_chosen_says_where_it_stands(
    report: Opened, comparison: Comparison
) -> None:
    """By tap and by keys; before that each table names what holds its numbers."""
    page = report.page
    for sheet in page.query_selector_all(".sheet"):
        numbers = sheet.query_selector_all("td[data-json]")
        if not numbers:
            continue
        shown = sheet.query_selector("output")
        pointers = [cell.get_attribute("data-json") for cell in numbers]
        assert all(pointer.startswith(shown.inner_text()) for pointer in pointers)
        numbers[0].click()
        assert shown.inner_text() == pointers[0]
        page.keyboard.press("ArrowRight")
        row = sheet.query_selector("tbody tr").query_selector_all("td[data-json]")
        assert shown.inner_text() == row[min(1, len(row) - 1)].get_attribute("data-json")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowDown")
        assert shown.is_visible() and shown.inner_text() in pointers
        assert len(sheet.query_selector_all("td[tabindex='0']")) == 1
    assert report.problems == [] and report.overflow() <= 0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[SearchServer]:
    """Two models side by side."""
    folder = tmp_path_factory.mktemp("served")
    animals = read_collection(collection(folder / "animals", 60))
    small = save_encoder("bert", folder / "small")
    models = [shutil.copytree(tiny_model, folder / "tiny"), small.rename(folder / EVIL)]
    with SearchServer("127.0.0.1", 0) as server:
        server.search = Search(animals, [load_searcher(path, animals) for path in map(str, models)])
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def search(browser: Any, served: SearchServer) -> Iterator[Opened]:
    opened = Opened(browser)
    opened.page.goto(served.url)
    yield opened
    opened.context.close()


def focused(opened: Opened) -> str:
    return opened.page.evaluate("document.activeElement.tagName")


def test_a_query_is_typed_and_hits_are_read_by_keyboard(
    search: Opened, served: SearchServer
) -> None:
    page = search.page
    page.wait_for_selector("input[name=q]:focus")  # without a click, once the page is drawn
    page.keyboard.type(question(4))
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.input_value("input[name=q]") == question(4)
    assert len(page.query_selector_all("section")) == 2
    assert len(page.query_selector_all("li.hit")) == 20
    assert search.overflow() <= 0
    page.keyboard.press("ArrowDown")
    assert focused(search) == "LI"
    first = page.evaluate("document.activeElement.innerText")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.innerText") != first
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert focused(search) == "INPUT"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("/")
    assert focused(search) == "INPUT"
    page.keyboard.type(question(5))  # over the selected query
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.input_value("input[name=q]") == question(5)
    assert search.problems == []
    assert all(address.startswith(served.url) for address in search.requests)


def test_an_example_is_a_link_and_hostile_queries_stay_text(search: Opened) -> None:
    page = search.page
    with page.expect_navigation():
        page.click("main a")
    assert page.input_value("input[name=q]") == question(0)
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>' + "x" * 300
    page.fill("input[name=q]", evil)
    with page.expect_navigation():
        page.click("button")
    assert page.input_value("input[name=q]") == evil
    assert page.query_selector("img") is None
    assert search.problems == [] and search.overflow() <= 0
