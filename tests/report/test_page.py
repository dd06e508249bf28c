"""The page and the files beside it, part by part."""

import csv
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from em import files
from em.errors import MeasurementError, RunError
from em.figures.model import Cell, Table
from em.report import page as pages
from em.report.page import Page, Section, as_csv, cell, write_page
from tests.figures import examples as figures
from tests.report import examples

FIGURES = ["cosines", "loss", "margins", "paths", "tricky"]
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Outline(HTMLParser):
    """Tags, attributes and text of a page, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append((self.open[-1] if self.open else "", data.strip()))

    def of(self, tag: str) -> list[str]:
        return [text for parent, text in self.words if parent == tag]

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report")
    assert write_page(examples.page(), path, examples.GROUPS) == path / "report.html"
    return path


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outline(text: str) -> Outline:
    return Outline(text)


def test_the_page_is_whole(outline: Outline, text: str) -> None:
    assert text.lstrip().startswith("<!DOCTYPE html>")
    assert outline.open == []
    assert outline.attributes("html") == [{"lang": "en"}]
    metas = outline.attributes("meta")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    policy = next(meta["content"] for meta in metas if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def test_there_are_no_scripts_and_nothing_is_asked_from_elsewhere(outline: Outline, text: str) -> None:
    assert {"script", "link", "iframe", "img", "object"}.isdisjoint({tag for tag, _ in outline.tags})
    assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]
    assert set(re.findall(r"https?://[^\"' <)]*", text)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in text and "url(" not in re.sub(r"url\(#svg-[a-z]+--\d+\)", "", text)


def test_text_is_escaped_everywhere(outline: Outline, text: str) -> None:
    assert "<script" not in text and "<b>" not in text and "<i>" not in text and "<u>" not in text
    assert outline.of("h1") == [f"Title {examples.MARKUP}"]
    assert outline.of("h2") == [
        "Read first",
        "Key numbers",
        "Contents",
        f"First {examples.MARKUP}",
        "Second",
        "Third",
    ]
    assert examples.MARKUP in outline.of("dd")
    assert f"A warning {examples.MARKUP}" in outline.of("li")
    assert figures.SCRIPT in outline.of("text")


def test_text_is_cut_into_paragraphs(outline: Outline) -> None:
    found = outline.of("p")
    at = found.index("A paragraph. Its second line.")
    assert found[at + 1] == "Another & one."
    assert found[:2] == ["The first sentence.", f"The second {examples.MARKUP}."]


def test_no_id_occurs_twice_and_every_reference_has_one(outline: Outline, text: str) -> None:
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes.get("href", "") for _, attributes in outline.tags]
    labels = [attributes.get("aria-labelledby", "") for _, attributes in outline.tags]
    wanted = [link[1:] for link in links if link.startswith("#")]
    wanted += [name for label in labels for name in label.split()]
    wanted += re.findall(r"url\(#([^)]+)\)", text)
    assert set(wanted) <= set(ids)


def test_figures_come_with_words_files_and_data(outline: Outline, folder: Path) -> None:
    made = [attributes for attributes in outline.attributes("figure") if attributes["role"] == "group"]
    assert sorted(attributes["id"] for attributes in made) == [f"figure-{name}" for name in FIGURES]
    assert figures.curves().alternative() in outline.of("desc")
    assert "Response-only loss." in outline.of("p") and "Band: 95% bootstrap." in outline.of("p")
    links = [a["href"] for a in outline.attributes("a") if not a["href"].startswith("#")]
    expected = [f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")]
    expected += [f"tables/{name}.csv" for name in [*FIGURES, "key", "wide"]]
    assert sorted(links) == sorted(expected)
    found = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert sorted(found) == sorted([*expected, "report.html"])
    assert len(outline.attributes("details")) == len(FIGURES)


def test_figure_files_are_an_svg_and_a_png(folder: Path) -> None:
    for name in FIGURES:
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ET.parse(folder / "figures" / f"{name}.svg").getroot().attrib["role"] == "img"


def test_tables_are_written_in_full(folder: Path) -> None:
    with (folder / "tables" / "key.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows == [
        ["solution", "loss", "shift of the margin in the training domain", "steps"],
        [examples.MARKUP, "1.37214", "", "200"],
        ["narrow, a_run_name_without_any_place_to_break_it", "-2e-05", "4.0", "200"],
    ]
    lines = (folder / "tables" / "loss.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == 'series,group,role,Norm,"Loss, nats per token",low,high'
    assert len(lines) == 1 + 7 * 20 + 2
    first = figures.curves().series[0]
    assert first.low is not None and first.high is not None
    numbers = [repr(value) for value in (first.x[0], first.y[0], first.low[0], first.high[0])]
    assert lines[1] == ",".join(["general/seed 0", "general", "solution", *numbers])
    assert lines[-1] == "reference,reference,mark,,2.1,,"


def test_a_csv_holds_exact_numbers_of_any_kind() -> None:
    rows: list[list[Cell]] = [['a "b", c\nd', None, np.float64(0.1), True], ["", 2, -0.0, int(np.int64(3))]]
    table = Table("t", "T", ["w", "x", "y", "z"], rows)
    assert as_csv(table) == 'w,x,y,z\n"a ""b"", c\nd",,0.1,1\n,2,-0.0,3\n'


def test_tables_have_captions_scopes_and_numbers_to_four_digits(text: str) -> None:
    start = text.index('<div class="table" id="table-key">')
    found = text[start : text.index("</table>", start)]
    assert '<caption><span class="spoken">Key numbers</span></caption>' in found
    assert '<th scope="col">solution</th>' in found
    assert '<th scope="col" class="number">loss</th>' in found
    cells = re.findall(r"<t([dh])[^>]*>([^<]*)</t[dh]>", found.split("<tbody>")[1])
    assert [value for _, value in cells[1:4]] == ["1.372", "–", "200"]
    assert cells[4] == ("h", "narrow, a_run_name_without_any_place_to_break_it")
    assert [value for _, value in cells[5:]] == ["−2e−5", "4", "200"]
    assert cell("–x\n") == "–x"


def test_the_same_page_gives_the_same_bytes(tmp_path: Path, text: str) -> None:
    assert write_page(examples.page(), tmp_path, examples.GROUPS).read_text(encoding="utf-8") == text


def test_groups_fix_the_colours(tmp_path: Path) -> None:
    page = replace(examples.page(), sections=[Section("s", "S", figures=[figures.bars()])])
    drawn = []
    for groups in (["general", "narrow"], ["other", "general", "narrow"], ["other", "other", "general"]):
        text = write_page(page, tmp_path, groups).read_text(encoding="utf-8")
        drawn.append(sorted(set(re.findall(r"var\(--(series-\d)\)", text))))
    assert drawn == [["series-1", "series-2"], ["series-2", "series-3"], ["series-2", "series-3"]]


def test_a_page_may_have_almost_nothing(tmp_path: Path) -> None:
    text = write_page(Page("T", ["S."], [], None, []), tmp_path, []).read_text(encoding="utf-8")
    outline = Outline(text)
    assert (outline.open, outline.of("h1"), outline.of("h2"), outline.of("p")) == ([], ["T"], [], ["S."])


def test_two_things_of_one_name_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    one = examples.page()
    table = Table("loss", "T", ["a"], [["x"]])
    for sections, message in (
        ([*one.sections, one.sections[0]], "two of section 'one'"),
        ([*one.sections, Section("x", "X", tables=[table])], "two of figure or table 'loss'"),
        ([Section("a b", "X")], "section 'a b': an id may hold only"),
    ):
        with pytest.raises(MeasurementError, match=message):
            write_page(replace(one, sections=sections), tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_the_page_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def record(path: Path, content: str) -> None:
        written.append(path.name)
        files.write_text(path, content)
        if path.name == "key.csv":
            raise RunError("the disk is full")

    monkeypatch.setattr(pages, "write_text", record)
    page = replace(examples.page(), sections=[Section("s", "S", figures=[figures.bars()])])
    with pytest.raises(RunError, match="the disk is full"):
        write_page(page, tmp_path, [])
    assert written == ["margins.svg", "margins.csv", "key.csv"]
    assert not (tmp_path / "report.html").exists()
