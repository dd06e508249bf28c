"""Draw trajectories in a plane, with labels at the points where there is room."""

import numpy as np
from numpy.typing import NDArray

from em.figures._labels import Box, overlap
from em.figures._sheet import SIZE, Sheet
from em.figures._theme import Group, Theme, groups
from em.figures._ticks import set_ticks
from em.figures.model import Path, Paths
from em.figures.words import short_names, shorten

HEIGHT = 230.0
MOST_LABELS = 5
# Where a label may stand beside its point: horizontal alignment and shift in points, best first.
SIDES = [
    ("left", 6, 4),
    ("right", -6, 4),
    ("left", 6, -12),
    ("right", -6, -12),
    ("center", 0, 8),
    ("center", 0, -16),
]


def paths(figure: Paths, theme: Theme, palette: dict[str, int], title: str | None) -> Sheet:
    """The sheet of a plane with trajectories."""
    sheet = Sheet(theme, HEIGHT, title)
    axes = sheet.axes
    sheet.label(figure.x_label, figure.y_label)
    axes.margins(0.08)
    axes.grid(color=theme["grid"], linewidth=0.8)
    found = groups(theme, palette, [(one.name, one.group, "solution") for one in figure.paths])
    for group in found:
        for at in group.members:
            _path(sheet, figure.paths[at], group)
    set_ticks(axes)
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    _label_points(sheet, figure.paths)
    labels = short_names([group.label for group in found], 44)
    lines = [{**group.look.line(), "linewidth": 1.7} for group in found]
    dot = {"marker": "o", "markersize": 6, "markeredgecolor": theme["muted"], "linestyle": "none"}
    ends = [
        ("start", {**dot, "markerfacecolor": theme["surface"]}),
        ("end", {**dot, "markerfacecolor": theme["muted"]}),
    ]
    sheet.legend([*zip(labels, lines, strict=True), *ends])
    return sheet


def _path(sheet: Sheet, path: Path, group: Group) -> None:
    axes, look = sheet.axes, group.look
    axes.plot(path.x, path.y, zorder=2, **{**look.line(), "markersize": 2.6})
    for at, fill, order in ((0, sheet.theme["surface"], 4), (-1, look.colour, 5)):
        style = {**look.dot(7), "markerfacecolor": fill, "markeredgewidth": 1.3}
        axes.plot([path.x[at]], [path.y[at]], linestyle="none", zorder=order, **style)


def _label_points(sheet: Sheet, drawn: list[Path]) -> None:
    """Labels of the last points, then of the first, then of some between, each only where nothing is."""
    sheet.arrange()
    axes, width = sheet.axes, sheet.inner_width()
    to_area = axes.transData + axes.transAxes.inverted()
    scale = np.array([width, sheet.height])
    places = [to_area.transform(np.column_stack([path.x, path.y])) * scale for path in drawn]
    taken = [box for points in places for box in _occupied(points)]
    for rank in range(MOST_LABELS):
        for path, points in zip(drawn, places, strict=True):
            order = _order(len(points))
            if rank < len(order):
                at = order[rank]
                _try_label(sheet, path, at, points[at].tolist(), taken, width)


def _occupied(points_N2: NDArray[np.float64]) -> list[Box]:
    """Small boxes along a path and around its ends."""
    boxes = [(x - 5, y - 5, x + 5, y + 5) for x, y in points_N2[[0, -1]].tolist()]
    for start, end in zip(points_N2, points_N2[1:], strict=False):
        steps = max(2, int(np.hypot(*(end - start)) / 4))
        boxes += [(x - 2, y - 2, x + 2, y + 2) for x, y in np.linspace(start, end, steps).tolist()]
    return boxes


def _order(count: int) -> list[int]:
    """Last, first, middle, quarters."""
    wanted = [count - 1, 0, count // 2, count // 4, 3 * count // 4]
    return list(dict.fromkeys(wanted))


def _try_label(sheet: Sheet, path: Path, at: int, point: list[float], taken: list[Box], width: float) -> None:
    text = shorten(path.labels[at], 16)
    long = sheet.width(text)
    for side, right, up in SIDES:
        start = point[0] + right - {"left": 0.0, "center": long / 2, "right": long}[side]
        box = (start, point[1] + up - 2, start + long, point[1] + up + SIZE - 1)
        inside = box[0] > 0 and box[2] < width and box[1] > 0 and box[3] < sheet.height
        if inside and not any(overlap(box, other) for other in taken):
            taken.append(box)
            sheet.axes.annotate(
                text,
                (path.x[at], path.y[at]),
                xytext=(right, up),
                textcoords="offset points",
                ha=side,
                va="baseline",
                color=sheet.theme["ink"],
                zorder=6,
            )
            return
