"""A figure's sheet: the data area, what stands around it, and a size that fits them. All sizes in points."""

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D

from em.figures._theme import RC, Theme
from em.figures.words import plain, shorten

WIDTH = 374.4  # 5.2 inches: type of 10.5 points is 10 px on a phone's 358 px
DPI = 200
SIZE = float(RC["font.size"])
LINE = 1.3 * SIZE
EDGE = 3.0
SAMPLE = 22.0  # of a legend entry: the stretch of line before its text
GAP = 16.0
NARROWEST = 120.0  # data area, whatever the labels need
Entry = tuple[str, dict[str, Any]]


class Sheet:
    """One axes on a white or transparent page.

    Args:
        height: of the data area.
        title: written above everything, for a picture that stands alone.
    """

    def __init__(self, theme: Theme, height: float, title: str | None = None):
        self.theme = theme
        self.height = height
        self.figure = Figure(figsize=(WIDTH / 72, (height + 70) / 72), dpi=DPI)
        self.canvas = FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0.14, 0.2, 0.84, 0.7))
        self._heading = _wrapped(title, 52, 3) if title else ""
        self._y_label = ""
        self._legend: list[Entry] = []
        self._dress()

    def _dress(self) -> None:
        self.figure.patch.set_visible(False)
        self.axes.patch.set_visible(False)
        for side, spine in self.axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(self.theme["muted"])
        self.axes.tick_params(length=3, color=self.theme["muted"], labelcolor=self.theme["ink"], pad=3)
        self.axes.tick_params(axis="y", length=0)
        self.axes.set_axisbelow(True)

    def label(self, x: str, y: str = "") -> None:
        """Axis labels; that of y stands above the data area, where it can be read without turning."""
        self.axes.set_xlabel(_wrapped(x, 56, 2), color=self.theme["ink"], labelpad=4)
        self._y_label = _wrapped(y, 60, 2) if y else ""

    def legend(self, entries: Sequence[Entry]) -> None:
        """Entries under the data area: a text and the keywords of its line."""
        self._legend = list(entries)

    def width(self, text: str) -> float:
        """How wide a line of text is."""
        renderer = self.canvas.get_renderer()
        properties = FontProperties(family=RC["font.family"], size=SIZE)
        return float(renderer.get_text_width_height_descent(text, properties, False)[0]) * 72 / DPI

    def inner_width(self) -> float:
        """Of the data area, as far as it is settled."""
        return float(self.axes.get_position().width) * WIDTH

    def settle(self) -> None:
        """Give everything its place; the data area keeps its height and takes what width is left."""
        rows = self._legend_rows()
        total = self.arrange()
        self._write_heads(total)
        for at, row in enumerate(rows):
            self._write_row(row, EDGE + (len(rows) - at - 0.5) * LINE, total)

    def arrange(self) -> float:
        """Place the data area with what is known so far, and give the height of the page."""
        rows = self._legend_rows()
        legend = len(rows) * LINE + (8 if rows else 0)
        heads = sum((len(text.splitlines()) * LINE + 3) for text in (self._heading, self._y_label) if text)
        for _ in range(2):
            left, right, below, above = self._overhang()
            total = 2 * EDGE + legend + below + self.height + above + heads
            self.figure.set_size_inches(WIDTH / 72, total / 72)
            self.axes.set_position(
                (
                    (EDGE + left) / WIDTH,
                    (EDGE + legend + below) / total,
                    max(NARROWEST, WIDTH - 2 * EDGE - left - right) / WIDTH,
                    self.height / total,
                )
            )
        return total

    def _overhang(self) -> tuple[float, float, float, float]:
        """How far labels reach beyond the data area: left, right, below, above."""
        self.figure.draw_without_rendering()
        outer = self.axes.get_tightbbox(self.canvas.get_renderer())
        inner = self.axes.get_window_extent()
        if outer is None:
            return 0.0, 0.0, 0.0, 0.0
        sides = (inner.x0 - outer.x0, outer.x1 - inner.x1, inner.y0 - outer.y0, outer.y1 - inner.y1)
        left, right, below, above = (max(0.0, float(side) * 72 / DPI) for side in sides)
        return left, right, below, above

    def _write_heads(self, total: float) -> None:
        top = total - EDGE
        for text, bold in ((self._heading, True), (self._y_label, False)):
            if text:
                self.figure.text(
                    EDGE / WIDTH,
                    top / total,
                    text,
                    va="top",
                    weight="bold" if bold else "normal",
                    color=self.theme["ink"],
                )
                top -= len(text.splitlines()) * LINE + 3

    def _legend_rows(self) -> list[list[Entry]]:
        rows: list[list[Entry]] = []
        room = 0.0
        for text, style in self._legend:
            while self.width(text) > WIDTH - 2 * EDGE - SAMPLE - 6:
                text = shorten(text, len(text) - 4)
            need = SAMPLE + 6 + self.width(text) + GAP
            if not rows or need - GAP > room:
                rows.append([])
                room = WIDTH - 2 * EDGE
            rows[-1].append((text, style))
            room -= need
        return rows

    def _write_row(self, row: list[Entry], y: float, total: float) -> None:
        x = EDGE
        for text, style in row:
            places = [(x + part * SAMPLE) / WIDTH for part in (0, 0.5, 1)]
            self.add(Line2D(places, [y / total] * 3, markevery=[1], **style))
            self.figure.text(
                (x + SAMPLE + 6) / WIDTH, y / total, text, va="center_baseline", color=self.theme["ink"]
            )
            x += SAMPLE + 6 + self.width(text) + GAP

    def add(self, artist: Artist) -> None:
        """Put an artist on the page, in fractions of it."""
        self.figure.add_artist(artist)


def _wrapped(text: str, width: int, lines: int) -> str:
    parts = textwrap.wrap(plain(text), width, break_long_words=True)
    if len(parts) > lines:
        parts = [*parts[: lines - 1], shorten(" ".join(parts[lines - 1 :]), width)]
    return "\n".join(parts)


def wrapped_name(name: str, width: int) -> str:
    """A name of a row or column on at most two lines of `width` characters."""
    short = shorten(name, 2 * width)
    parts = textwrap.wrap(short, width)
    return "\n".join(parts) if len(parts) <= 2 else _halves(short, width)


def _halves(text: str, width: int) -> str:
    first = textwrap.wrap(text, width)[0]
    return f"{first}\n{shorten(text[len(first) :], width)}"
