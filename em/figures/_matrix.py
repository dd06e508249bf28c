"""Draw a grid of numbers on cells whose colour says how large they are."""

import textwrap
from typing import Any

from matplotlib.patches import Rectangle

from em.figures._sheet import LINE, SIZE, WIDTH, Sheet, wrapped_name
from em.figures._theme import STRONGEST, Theme
from em.figures.model import Matrix
from em.figures.words import number, plain, short_names, shorten

NAME = 15
CELL = 30.0
SWATCHES = 7


def matrix(figure: Matrix, theme: Theme, palette: dict[str, int], title: str | None) -> Sheet:
    """The sheet of a heat map; one unit of its axes is one cell."""
    rows, columns = len(figure.rows), len(figure.columns)
    names = [wrapped_name(name, NAME) for name in short_names(figure.rows, 2 * NAME)]
    tall = CELL if rows <= 12 or any("\n" in name for name in names) else 18.0
    sheet = Sheet(theme, tall * rows, title)
    axes = sheet.axes
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    axes.set_yticks([at + 0.5 for at in range(rows)], names)
    left = max(sheet.width(line) for name in names for line in name.splitlines()) + 4
    wide = (WIDTH - left - 10) / columns
    _column_names(sheet, figure.columns, wide)
    low, high = _limits(figure)
    texts = [[_cell_text(value, max(abs(low), abs(high))) for value in row] for row in figure.values]
    written = max(sheet.width(text) for row in texts for text in row) + 3 <= wide
    for r, row in enumerate(figure.values):
        for c, value in enumerate(row):
            axes.add_patch(Rectangle((c, r), 1, 1, linewidth=1.5, **_fill(theme, figure, value, low, high)))
            if written:
                axes.text(
                    c + 0.5, r + 0.5, texts[r][c], ha="center", va="center_baseline", color=theme["ink"]
                )
    _key(sheet, figure, low, high)
    return sheet


def _limits(figure: Matrix) -> tuple[float, float]:
    """Values of the strongest colours; symmetric around 0 for a diverging map without limits."""
    if figure.limits is not None:
        return figure.limits
    known = [value for row in figure.values for value in row if value is not None] or [1.0]
    if figure.diverging:
        largest = max(map(abs, known)) or 1.0
        return -largest, largest
    return (min(known), max(known)) if min(known) < max(known) else (min(known) - 1, max(known))


def _cell_text(value: float | None, largest: float) -> str:
    if value is None or not 0.1 <= largest < 100:
        return number(value)
    text = f"{value:.2f}" if largest < 10 else f"{value:.1f}"
    return text.replace("-", "") if float(text) == 0 else text.replace("-", "−")


def _fill(theme: Theme, figure: Matrix, value: float | None, low: float, high: float) -> dict[str, Any]:
    """A series colour as strong as the value; at STRONGEST the number on it still has 4.5 : 1."""
    style: dict[str, Any] = {"edgecolor": "none", "facecolor": "none"}
    if value is None:
        return style
    if figure.diverging:
        end = high if value > 0 else low
        share = min(1.0, value / end) if value * end > 0 else 0.0
        colour = theme["positive" if value > 0 else "negative"]
    else:
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        colour = theme["positive"]
    return {**style, "facecolor": (colour, STRONGEST * share)}


def _column_names(sheet: Sheet, columns: list[str], wide: float) -> None:
    """Above the grid: on up to three lines where the words fit a column, else upright."""
    axes = sheet.axes
    places = [at + 0.5 for at in range(len(columns))]
    letters = max(1, int(wide / (0.58 * SIZE)))
    texts = [textwrap.wrap(plain(name), letters, break_long_words=False) for name in columns]
    fits = all(len(lines) <= 3 for lines in texts)
    if fits and all(sheet.width(line) <= wide - 3 for lines in texts for line in lines):
        axes.set_xticks(places, ["\n".join(lines) for lines in texts])
    else:
        axes.set_xticks(places, short_names(columns, 2 * NAME - 8), rotation=90, rotation_mode="default")


def _key(sheet: Sheet, figure: Matrix, low: float, high: float) -> None:
    """What the colours stand for, under the grid: the two limits around a row of swatches."""
    axes = sheet.axes
    values = [low + (high - low) * at / (SWATCHES - 1) for at in range(SWATCHES)]
    y = -LINE / sheet.height
    ends = [number(low), number(high)]
    unit = 1 / 280  # of the data area's width, about a point
    x = (sheet.width(ends[0]) + 5) * unit
    for value in values:
        box = Rectangle((x, y), 16 * unit, 11 / sheet.height, transform=axes.transAxes, clip_on=False)
        box.set(linewidth=0, **_fill(sheet.theme, figure, value, low, high))
        axes.add_patch(box)
        x += 16 * unit
    style: dict[str, Any] = {
        "transform": axes.transAxes,
        "color": sheet.theme["ink"],
        "va": "center_baseline",
    }
    axes.text(0, y + 5.5 / sheet.height, ends[0], **style)
    axes.text(x + 5 * unit, y + 5.5 / sheet.height, ends[1], **style)
    x += (15 + sheet.width(ends[1])) * unit
    axes.text(x, y + 5.5 / sheet.height, shorten(figure.value_label, 24), **style)
