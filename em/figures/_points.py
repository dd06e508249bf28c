"""Draw points in small panels of the same axes. One unit of the sheet's y axis is one point."""

import math
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from em.figures._sheet import LINE, SIZE, WIDTH, Entry, Sheet
from em.figures._theme import MARKERS, SLOTS, Theme, groups
from em.figures.model import Cloud, Points
from em.figures.words import number, short_names, shorten

SIDE = 100.0  # width of a panel on the sheet's x axis
APART = 12.0  # between two panels of one row
PAD = 0.05  # of the limits, so that a mark at a limit is whole
HEIGHTS = {1: 230.0, 2: 132.0}  # of a panel, by the number of columns
BETWEEN = 10.0
DOT = 3.8
FEW = 400  # points in a panel; with more of them marks are smaller, and lighter by the number of their kind
LARGEST = 5  # doublings of a place's points that make its mark larger
GRID = 0.5  # points of one kind this close, in points of the page, are one larger mark
MOST = 3000  # marks of a figure; with more of them the grid gets coarser, so that the file stays small
ALPHA = 0.55
Floats = NDArray[np.float64]
Style = dict[str, Any]


def points(figure: Points, theme: Theme, palette: dict[str, int], title: str | None) -> Sheet:
    """The sheet of small scatter plots, one or two in a row."""
    columns = min(2, len(figure.panels))
    layout = _Layout(figure, columns)
    sheet = Sheet(theme, layout.height, title)
    axes = sheet.axes
    sheet.label(figure.x_label, figure.y_label)
    axes.set_xlim(0, columns * SIDE + (columns - 1) * APART)
    axes.set_ylim(0, layout.height)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    for at in range(len(figure.panels)):
        _frame(sheet, figure, layout, at)
    layout.ticks(sheet)
    looks = _looks(theme, palette, figure.clouds)
    most = max((sum(len(c.x) for c in figure.clouds if c.panel == p.name) for p in figure.panels), default=0)
    dot = DOT * _thinned(most, 0.25, 0.58, 1.0)
    scale = (WIDTH - 30) / (columns * SIDE + (columns - 1) * APART)
    marks = _marks(figure, layout, scale)
    # Kinds with few points are drawn last, where they would vanish under the others.
    for cloud, (places, counts) in sorted(marks, key=lambda one: -len(one[0].x)):
        for size in sorted(set(counts.tolist()), reverse=True):
            chosen = places[counts == size]
            style = {**looks[cloud.name], "markersize": dot * math.cbrt(2**size)}
            axes.plot(chosen[:, 0], chosen[:, 1], linestyle="none", zorder=3, clip_on=False, **style)
    sheet.legend(_legend(figure, theme, looks))
    return sheet


class _Layout:
    """Where the panels stand, and where a place in one of them is on the sheet."""

    def __init__(self, figure: Points, columns: int):
        self.figure = figure
        self.columns = columns
        self.count = len(figure.panels)
        self.rows = -(-self.count // columns)
        self.panel = HEIGHTS[columns]
        noted = any(panel.note for panel in figure.panels)
        self.head = LINE * (2 if noted else 1) + 4
        self.height = self.rows * (self.panel + self.head) + (self.rows - 1) * BETWEEN
        low, high = figure.limits
        pad = PAD * (high - low)
        self.low, self.span = low - pad, high - low + 2 * pad

    def corner(self, at: int) -> tuple[float, float]:
        """Lower left corner of a panel."""
        row, column = divmod(at, self.columns)
        top = self.height - row * (self.panel + self.head + BETWEEN) - self.head
        return column * (SIDE + APART), top - self.panel

    def x(self, at: int, values: Any) -> Any:
        return self.corner(at)[0] + (np.asarray(values) - self.low) / self.span * SIDE

    def y(self, at: int, values: Any) -> Any:
        return self.corner(at)[1] + (np.asarray(values) - self.low) / self.span * self.panel

    def ticks(self, sheet: Sheet) -> None:
        """Limits and thresholds: y at the left of each row, x under each panel with none below it."""
        axes, theme = sheet.axes, sheet.theme
        names, values = self._values("y")
        left = range(0, self.count, self.columns)
        axes.set_yticks([float(self.y(at, one)) for at in left for one in values], names * len(left))
        names, values = self._values("x")
        last = [at for at in range(self.count) if at + self.columns >= self.count]
        bottom = [at for at in last if at // self.columns == self.rows - 1]
        axes.set_xticks([float(self.x(at, one)) for at in bottom for one in values], names * len(bottom))
        for at in set(last) - set(bottom):
            for name, one in zip(names, values, strict=True):
                place = (float(self.x(at, one)), self.corner(at)[1] - 3)
                axes.text(*place, name, ha="center", va="top", color=theme["ink"])

    def _values(self, axis: str) -> tuple[list[str], list[float]]:
        """The thresholds of an axis, and the limits where they are not too near to one."""
        found = [mark.value for mark in self.figure.marks if mark.axis == axis]
        for limit in self.figure.limits:
            if all(abs(limit - other) >= self.span / 8 for other in found):
                found.append(limit)
        kept: list[float] = []
        for value in found:  # two thresholds side by side: the first one is written
            if all(abs(value - other) >= self.span / 9 for other in kept):
                kept.append(value)
        return [number(value) for value in kept], kept


def _frame(sheet: Sheet, figure: Points, layout: _Layout, at: int) -> None:
    axes, theme = sheet.axes, sheet.theme
    left, bottom = layout.corner(at)
    if figure.region is not None:
        (x0, x1), (y0, y1) = layout.x(at, figure.region.x), layout.y(at, figure.region.y)
        low, high = figure.limits  # to the frame where the region reaches a limit
        x0, x1 = left if figure.region.x[0] == low else x0, left + SIDE if figure.region.x[1] == high else x1
        top = bottom + layout.panel
        y0, y1 = bottom if figure.region.y[0] == low else y0, top if figure.region.y[1] == high else y1
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, linewidth=0, facecolor=_shade(theme)))
    axes.add_patch(
        Rectangle((left, bottom), SIDE, layout.panel, fill=False, edgecolor=theme["grid"], linewidth=0.8)
    )
    line: Style = {"color": theme["muted"], "linewidth": 0.8, "dashes": (3, 2), "zorder": 1.2}
    for mark in figure.marks:
        if mark.axis == "x":
            axes.plot([layout.x(at, mark.value)] * 2, [bottom, bottom + layout.panel], **line)
        else:
            axes.plot([left, left + SIDE], [layout.y(at, mark.value)] * 2, **line)
    panel = figure.panels[at]
    names = short_names([one.name for one in figure.panels], 44 // layout.columns + 4)
    lines = [(names[at], "ink"), (shorten(panel.note, 60 // layout.columns), "muted")]
    for row, (text, tone) in enumerate(lines if panel.note else lines[:1]):
        rest = layout.head - LINE * (row + 1) + 2
        axes.text(left, bottom + layout.panel + rest, text, size=SIZE, color=theme[tone])
    if not any(cloud.x for cloud in figure.clouds if cloud.panel == panel.name):
        style: Style = {"ha": "center", "va": "center", "color": theme["muted"]}
        axes.text(left + SIDE / 2, bottom + layout.panel / 2, "no points", **style)


def _shade(theme: Theme) -> tuple[str, float]:
    return theme["negative"], 0.13


def _looks(theme: Theme, palette: dict[str, int], clouds: list[Cloud]) -> dict[str, Style]:
    """Colour and shape by name; no two of eight have the same shape, so colour is not needed."""
    names = list(dict.fromkeys(cloud.name for cloud in clouds))
    tones = {cloud.name: cloud.tone for cloud in clouds}
    free = [name for name in names if tones[name] is None]
    colours = {
        group.label: group.look.colour
        for group in groups(theme, palette, [(name, None, "solution") for name in free])
    }
    looks: dict[str, Style] = {}
    for at, name in enumerate(names):
        tone = tones[name]
        most = max(len(cloud.x) for cloud in clouds if cloud.name == name)
        colour = colours[name] if tone is None else theme[tone]
        looks[name] = {
            "marker": MARKERS[at % SLOTS],
            "markerfacecolor": (colour, ALPHA * _thinned(most, 0.2, 0.65, 1.6)),
            "markeredgewidth": 0,
        }
    return looks


def _thinned(count: int, power: float, least: float, largest: float) -> float:
    """A factor that is 1 at FEW points and falls slowly with more."""
    return float(min(largest, max(least, (FEW / max(1, count)) ** power)))


def _marks(figure: Points, layout: _Layout, scale: float) -> list[tuple[Cloud, tuple[Floats, Floats]]]:
    """The marks of each cloud: places on the sheet, and sizes."""
    at = {panel.name: index for index, panel in enumerate(figure.panels)}
    places = [
        np.column_stack([layout.x(at[cloud.panel], cloud.x), layout.y(at[cloud.panel], cloud.y)])
        for cloud in figure.clouds
    ]
    grid = GRID
    while True:
        found = [_merged(one, scale, grid) for one in places]
        if sum(len(sizes) for _, sizes in found) <= MOST:
            return list(zip(figure.clouds, found, strict=True))
        grid *= 1.5


def _merged(places_N2: Floats, scale: float, grid: float) -> tuple[Floats, Floats]:
    """One mark for the points in each cell of a grid, at their mean; its size is log2 of their number."""
    if not len(places_N2):
        return places_N2.reshape(0, 2), np.zeros(0)
    cells = np.round(places_N2 * [scale, 1.0] / grid)
    _, member_N, count_M = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    member_N = member_N.reshape(-1)
    sums = [np.bincount(member_N, weights=places_N2[:, axis]) for axis in (0, 1)]
    sizes = np.minimum(np.floor(np.log2(count_M)), LARGEST)
    return np.column_stack(sums) / count_M[:, None], sizes


def _legend(figure: Points, theme: Theme, looks: dict[str, Style]) -> list[Entry]:
    dot: Style = {"linestyle": "none", "markersize": 6}
    entries: list[Entry] = [(shorten(name, 44), {**dot, **style}) for name, style in looks.items()]
    if figure.region is not None:
        square = {"marker": "s", "markersize": 9, "markeredgewidth": 0, "linestyle": "none"}
        entries.append((shorten(figure.region.label, 44), {**square, "markerfacecolor": _shade(theme)}))
    line: Style = {"color": theme["muted"], "linewidth": 0.8, "linestyle": (0, (3, 2))}
    for mark in figure.marks:
        entries.append((f"{shorten(mark.label, 36)} ({mark.axis} = {number(mark.value)})", line))
    return entries
