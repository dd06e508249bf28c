"""One self-contained HTML page of figures and tables, with each of them as a file beside it."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from em.errors import MeasurementError
from em.figures._checks import check_id
from em.figures.draw import Drawing, draw, page_css
from em.figures.model import Cell, Figure, Table
from em.figures.words import number, plain
from em.files import write_atomically, write_text
from em.report.answers import Answers

TEMPLATE = "page.html.j2"
MOST_ROWS = 500  # of a table on the page; its CSV holds all of them


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it, in this order: text, figures, tables, notes, answers.

    Args:
        text: paragraphs with an empty line between them; nothing in it is markup.
        notes: what a reader must know to read the numbers right.
        answers: judged answers to read and filter.
    """

    id: str
    title: str
    text: str = ""
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    answers: Answers | None = None


@dataclass(frozen=True)
class Page:
    """A report.

    Args:
        summary: two to four sentences on what came out.
        facts: names and values, for example what was compared.
        headline: the key numbers.
        warnings: shown before anything else.
    """

    title: str
    summary: list[str]
    facts: list[tuple[str, str]]
    headline: Table | None
    sections: list[Section]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Drawn:
    """A figure with its drawing and data table, as the template wants them."""

    figure: Figure
    drawing: Drawing
    table: Table

    @property
    def svg(self) -> Markup:
        """The only markup that is not escaped: our own SVG, whose text is escaped already."""
        return Markup(self.drawing.svg)


def write_page(page: Page, folder: Path, groups: list[str]) -> Path:
    """Write report.html, figures/ID.svg, figures/ID.png and tables/ID.csv; the page last.

    Args:
        groups: fixes the colour of each group in all figures.

    Returns: the page.

    Raises:
        MeasurementError: two figures, tables or sections of one id.
        RunError: a file cannot be written.
    """
    _check_ids(page)
    palette = {group: at for at, group in enumerate(dict.fromkeys(groups))}
    drawn = {
        figure.id: Drawn(figure, draw(figure, palette), figure.table())
        for section in page.sections
        for figure in section.figures
    }
    for name, one in drawn.items():
        write_text(folder / "figures" / f"{name}.svg", one.drawing.file)
        write_atomically(folder / "figures" / f"{name}.png", _writer(one.drawing.png))
    for table in [*(one.table for one in drawn.values()), *_tables(page)]:
        write_text(folder / "tables" / f"{table.id}.csv", as_csv(table))
    path = folder / "report.html"
    write_text(path, render(page, drawn))
    return path


def render(page: Page, drawn: dict[str, Drawn]) -> str:
    """The page as HTML; every text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(cell=cell, paragraphs=paragraphs, plain=plain, numeric=numeric_columns)
    # Of our own making, without any text from outside.
    variables = Markup(page_css())
    return environment.get_template(TEMPLATE).render(
        page=page, drawn=drawn, variables=variables, most_rows=MOST_ROWS
    )


def cell(value: Cell) -> str:
    """Text as it is, numbers to four digits, `–` for None."""
    return plain(value) if isinstance(value, str) else number(value)


def numeric_columns(table: Table) -> list[bool]:
    """For each column, whether it holds numbers only."""
    return [
        all(not isinstance(row[at], str) for row in table.rows) and bool(table.rows)
        for at in range(len(table.columns))
    ]


def paragraphs(text: str) -> list[str]:
    """The parts of a text between empty lines."""
    return [plain(part) for part in re.split(r"\n\s*\n", text) if part.strip()]


def as_csv(table: Table) -> str:
    """Column names, then rows; full precision, nothing for None."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([[_exact(value) for value in row] for row in table.rows])
    return stream.getvalue()


def _exact(value: Cell) -> Any:
    if isinstance(value, str):
        # Half a character, as JSON can carry it, has no place in a file.
        return value.encode("utf-8", "replace").decode("utf-8")
    if value is None:
        return value
    # NumPy scalars write themselves as np.float64(…).
    return int(value) if isinstance(value, Integral) else repr(float(value))


def _tables(page: Page) -> Iterator[Table]:
    if page.headline is not None:
        yield page.headline
    for section in page.sections:
        yield from section.tables


def _check_ids(page: Page) -> None:
    """One file and one anchor for each."""
    for section in page.sections:
        check_id("section", section.id)
    figures = [figure.id for section in page.sections for figure in section.figures]
    names = {
        "section": [section.id for section in page.sections],
        "figure or table": [*figures, *(table.id for table in _tables(page))],
    }
    for what, ids in names.items():
        twice = _twice(ids)
        if twice:
            raise MeasurementError(f"the report has two of {what} {twice[0]!r}; give each its own id")


def _twice(ids: Sequence[str]) -> list[str]:
    return sorted({name for name in ids if ids.count(name) > 1})


def _writer(content: bytes) -> Any:
    return lambda scratch: scratch.write_bytes(content)
