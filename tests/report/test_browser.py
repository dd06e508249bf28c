"""The page in a real browser: wide and narrow, light and dark."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from em.figures.model import Figure
from em.report.page import write_page
from tests.figures.examples import all_figures
from tests.report import examples
from tests.report.browser import BINARIES, Browser, Facts, binary, look, screenshot

pytestmark = pytest.mark.skipif(binary() is None, reason=f"none of {', '.join(BINARIES)} is installed")
FIGURES = {figure.id: figure for figure in all_figures()}
SHOWN = [(width, dark) for width in (1280, 390) for dark in (False, True)]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(examples.page(), tmp_path_factory.mktemp("report"), examples.GROUPS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser.open() as opened:
        yield opened


@pytest.mark.parametrize(("width", "dark"), SHOWN)
def test_the_page_is_readable(page: Path, browser: Browser, width: int, dark: bool) -> None:
    browser.show(page, width, dark)
    browser.open_details()
    facts = browser.facts()
    assert facts.console == []
    assert facts.requests == [page.as_uri()]
    assert facts.inner_width == width
    assert facts.scroll_width <= width
    assert facts.repeated_ids == facts.clipped == facts.overlapping == []
    assert facts.smallest_text is not None and facts.smallest_text >= 9
    assert (facts.background, facts.ink) == (
        ("rgb(21, 24, 28)", "rgb(230, 232, 235)") if dark else ("rgb(255, 255, 255)", "rgb(27, 31, 36)")
    )


def test_images_have_their_text_alternatives_and_headings_their_order(page: Path, browser: Browser) -> None:
    browser.show(page, 390, False)
    facts = browser.facts()
    assert facts.names == [said(FIGURES[name]) for name in ("loss", "margins", "cosines", "paths", "tricky")]
    assert facts.headings == [1, 2, 2, 2, 2, 3, 2, 3, 3, 2, 3, 3]


def said(figure: Figure) -> str:
    return f"{figure.title}\n{figure.alternative()}"


def test_a_drawing_of_its_own_follows_the_scheme(page: Path, browser: Browser) -> None:
    for dark, ink in ((False, "rgb(27, 31, 36)"), (True, "rgb(230, 232, 235)")):
        browser.show(page.parent / "figures" / "loss.svg", 600, dark)
        assert browser.evaluate("getComputedStyle(document.querySelector('text')).fill") == ink
        assert [event for event in browser.events if event.get("method") == "Log.entryAdded"] == []


def test_print_is_light_and_leaves_the_data_out(page: Path, browser: Browser, tmp_path: Path) -> None:
    browser.show(page, 1280, True)
    browser.send("Emulation.setEmulatedMedia", media="print", features=[DARK])
    assert browser.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"
    assert browser.evaluate("getComputedStyle(document.querySelector('details')).display") == "none"
    browser.print_to(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


DARK = {"name": "prefers-color-scheme", "value": "dark"}
BAD = """<!DOCTYPE html><html lang="en"><title>t</title><h1 id="a">x</h1><h3 id="a">y</h3>
<div style="width: 900px">wide</div><img src="http://127.0.0.1:9/none.png" alt="nothing">
<svg viewBox="0 0 10 10" width="100"><text x="1" y="5" font-size="3">one</text>
<text x="1" y="5" font-size="3">two</text><text x="8" y="9" font-size="3">far out</text></svg>
<script>console.log("said"); undefined_name();</script></html>"""


def test_the_browser_sees_what_is_wrong_with_a_page(tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(BAD, encoding="utf-8")
    facts: Facts = look(path, 390, dark=False)
    assert facts.requests == [path.as_uri(), "http://127.0.0.1:9/none.png"]
    assert len(facts.console) == 3  # what it said, the exception and the picture that did not come
    assert facts.scroll_width > 390
    assert (facts.repeated_ids, facts.headings, facts.names) == (["a"], [1, 3], ["nothing", ""])
    assert (facts.clipped, facts.overlapping) == (["far out"], ["one | two"])


def test_a_screenshot_is_as_wide_as_the_page(page: Path, tmp_path: Path) -> None:
    screenshot(page, 390, True, tmp_path / "page.png")
    content = (tmp_path / "page.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20], "big") == 390
    assert int.from_bytes(content[20:24], "big") > 2000
