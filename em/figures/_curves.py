"""Draw lines with bands, labelled at their ends where the labels fit."""

import math
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from em.figures._labels import spread, vertical_marks
from em.figures._sheet import LINE, SAMPLE, Entry, Sheet
from em.figures._theme import Group, Theme, groups
from em.figures._ticks import set_ticks
from em.figures.model import Curves, Mark, Series
from em.figures.words import number, short_names, shorten

HEIGHT = 190.0
WIDEST_LABEL = 92.0
MOST_LABELS = 7
MOST_MARKERS = 30


def curves(figure: Curves, theme: Theme, palette: dict[str, int], title: str | None) -> Sheet:
    """The sheet of a line chart."""
    sheet = Sheet(theme, HEIGHT, title)
    axes = sheet.axes
    sheet.label(figure.x_label, figure.y_label)
    if figure.log_x:
        axes.set_xscale("log")
    if figure.log_y:
        axes.set_yscale("log")
    axes.margins(x=0.03, y=0.06)
    axes.grid(axis="y", color=theme["grid"], linewidth=0.8)
    found = groups(theme, palette, [(one.name, one.group, one.role) for one in figure.series])
    for group in found:
        for at in group.members:
            _line(sheet, figure.series[at], group)
    level_style: dict[str, Any] = {"color": theme["muted"], "linewidth": 0.9, "dashes": (3, 2), "zorder": 1.2}
    levels = [mark for mark in figure.marks if mark.axis == "y"]
    for mark in levels:
        axes.axhline(mark.value, **level_style)
    uprights = [mark for mark in figure.marks if mark.axis == "x"]
    for mark in uprights:
        axes.update_datalim([(mark.value, 1)], updatey=False)
    axes.autoscale_view()
    set_ticks(axes, figure.log_x, figure.log_y)
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    if not any(value is not None for one in figure.series for value in one.y):
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color=theme["muted"])
    _name_lines(sheet, figure, found, levels)
    vertical_marks(sheet, uprights)
    return sheet


def _key(group: Group) -> dict[str, Any]:
    return {**group.look.line(), "linewidth": max(group.look.width, 1.5)}


def _line(sheet: Sheet, series: Series, group: Group) -> None:
    """The line with its band; a point between two gaps has no line, so it always gets a marker."""
    values = [math.nan if value is None else value for value in series.y]
    order = 2 if series.role != "solution" else 3
    known = [value is not None for value in series.y]
    padded = [False, *known, False]
    alone = [at for at in range(len(known)) if known[at] and not padded[at] and not padded[at + 2]]
    every = list(range(len(known))) if len(known) <= MOST_MARKERS else alone
    style = group.look.line()
    if series.role == "reference":
        style = {**style, "marker": "None"}
    sheet.axes.plot(series.x, values, markevery=every, zorder=order, solid_capstyle="round", **style)
    if series.low is not None and series.high is not None:
        low, high = (
            [math.nan if bound is None else bound for bound in bounds] for bounds in (series.low, series.high)
        )
        sheet.axes.fill_between(
            series.x, low, high, color=group.look.colour, alpha=0.16, linewidth=0, zorder=order - 0.5
        )


def _name_lines(sheet: Sheet, figure: Curves, found: list[Group], levels: list[Mark]) -> None:
    """Labels at the right where each is beside its line's end, else a legend under the data area."""
    names = short_names([group.label for group in found], 44)
    entries: list[Entry] = [(name, _key(group)) for name, group in zip(names, found, strict=True)]
    level_key = {"color": sheet.theme["muted"], "linewidth": 0.9, "linestyle": (0, (3, 2))}
    texts = [shorten(mark.label, 36) for mark in levels]
    beside = entries + [(text, level_key) for text in texts]
    ends = [_end(sheet, [figure.series[at] for at in group.members]) for group in found]
    ends += [_fraction(sheet, 0, mark.value)[1] for mark in levels]
    places = _beside(sheet, [text for text, _ in beside], ends)
    if places is not None:
        for (text, style), place in zip(beside, places, strict=True):
            _end_label(sheet, text, style, place)
        return
    under = [f"{text} (y = {number(mark.value)})" for text, mark in zip(texts, levels, strict=True)]
    sheet.legend(entries + [(text, level_key) for text in under])


def _beside(sheet: Sheet, texts: list[str], ends: list[float | None]) -> list[float] | None:
    """Heights of the labels in points, or None where they do not all fit beside their lines."""
    wanted = [end * sheet.height for end in ends if end is not None]
    if len(wanted) < len(ends) or len(texts) > MOST_LABELS:
        return None
    if max(sheet.width(text) for text in texts) > WIDEST_LABEL:
        return None
    return spread(wanted, LINE, 0, sheet.height)


def _end_label(sheet: Sheet, text: str, style: dict[str, Any], place: float) -> None:
    axes = sheet.axes
    shift = ScaledTranslation(5 / 72, (place - sheet.height) / 72, sheet.figure.dpi_scale_trans)
    # Points right of the data area's corner, whatever its width turns out to be.
    places = [0.0, SAMPLE / 2 / 72, SAMPLE / 72]
    corner = sheet.figure.dpi_scale_trans + ScaledTranslation(1, 1, axes.transAxes) + shift  # type: ignore[arg-type]
    sample = Line2D(places, [0, 0, 0], markevery=[1], transform=corner, clip_on=False, **style)
    axes.add_line(sample)
    axes.annotate(
        text,
        (1, 1),
        xycoords="axes fraction",
        xytext=(5 + SAMPLE + 5, place - sheet.height),
        textcoords="offset points",
        va="center_baseline",
        color=sheet.theme["ink"],
        annotation_clip=False,
    )


def _fraction(sheet: Sheet, x: float, y: float) -> tuple[float, float]:
    axes = sheet.axes
    if axes.get_xscale() == "log":
        x = max(x, 1e-300)
    place = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
    return float(place[0]), float(place[1])


def _end(sheet: Sheet, members: list[Series]) -> float | None:
    """Mean height of the last points as a fraction; None where a line ends before the right edge."""
    heights = []
    for series in members:
        points = [(x, y) for x, y in zip(series.x, series.y, strict=True) if y is not None]
        if not points:
            return None
        across, height = _fraction(sheet, *max(points))
        if across < 0.93:
            return None
        heights.append(height)
    return sum(heights) / len(heights)
