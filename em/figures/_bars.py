"""Draw a value with its whisker for each category and series, as dots in rows."""

from em.figures._labels import vertical_marks
from em.figures._sheet import LINE, Sheet, wrapped_name
from em.figures._theme import Group, Theme, groups
from em.figures._ticks import set_ticks
from em.figures.model import Bars, BarSeries
from em.figures.words import short_names

APART = 12.0  # points between the rows of two groups
SEEDS_APART = 7.0  # and of two series of one group
ROOM = 14.0  # between two categories
NAME = 17


def bars(figure: Bars, theme: Theme, palette: dict[str, int], title: str | None) -> Sheet:
    """The sheet of a dot-and-whisker chart; one unit of its y axis is one point."""
    found = groups(theme, palette, [(one.name, one.group, one.role) for one in figure.series])
    offsets, tall = _rows(found)
    names = [wrapped_name(name, NAME) for name in short_names(figure.categories, 2 * NAME)]
    lines = max(len(name.splitlines()) for name in names)
    block = max(tall, (lines - 1) * LINE + 8) + ROOM
    height = max(60.0, block * len(figure.categories))
    sheet = Sheet(theme, height, title)
    axes = sheet.axes
    sheet.label(figure.value_label)
    centres = [height - block * (at + 0.5) for at in range(len(names))]
    axes.axvline(0, color=theme["ink"], linewidth=1.0, zorder=1.3)
    for group in found:
        for at in group.members:
            rows = [centre + tall / 2 - offsets[at] for centre in centres]
            _dots(sheet, figure.series[at], rows, group)
    axes.margins(x=0.04)
    for mark in figure.marks:
        axes.update_datalim([(mark.value, 0)], updatey=False)
    axes.autoscale_view()
    set_ticks(axes)
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(0, height)
    axes.set_yticks(centres, names)
    axes.grid(axis="x", color=theme["grid"], linewidth=0.8)
    for at in range(1, len(names)):
        axes.axhline(height - block * at, color=theme["grid"], linewidth=0.8, zorder=1)
    labels = short_names([group.label for group in found], 44)
    keys = [
        {**group.look.dot(5), "linestyle": "-", "color": group.look.colour, "linewidth": 1.2}
        for group in found
    ]
    sheet.legend(list(zip(labels, keys, strict=True)))
    vertical_marks(sheet, figure.marks)
    return sheet


def _rows(found: list[Group]) -> tuple[dict[int, float], float]:
    """Distance of each series from the first row of its category, and of the last."""
    offsets: dict[int, float] = {}
    at = -APART
    for group in found:
        at += APART
        for rank, member in enumerate(group.members):
            at += SEEDS_APART if rank else 0.0
            offsets[member] = at
    return offsets, max(at, 0.0)


def _dots(sheet: Sheet, series: BarSeries, rows: list[float], group: Group) -> None:
    look = group.look
    for at, (value, row) in enumerate(zip(series.values, rows, strict=True)):
        low = series.low[at] if series.low else None
        high = series.high[at] if series.high else None
        if low is not None and high is not None:
            sheet.axes.plot(
                [low, high], [row, row], color=look.colour, linewidth=1.2, solid_capstyle="butt", zorder=2
            )
        if value is not None:
            sheet.axes.plot(
                [value], [row], linestyle="none", zorder=3, **look.dot(4.4 if len(group.members) > 1 else 5)
            )
