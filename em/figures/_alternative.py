"""Text alternatives: what a reader of the figure would see, in words, under 1200 characters."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from em.figures.words import number, plain, sentence_list, shorten

if TYPE_CHECKING:
    from em.figures.model import Bars, Curves, Mark, Matrix, Path, Paths, Points

LIMIT = 1150
NAME = 40
AXIS = 80
LISTED = 6


def of_curves(figure: Curves) -> str:
    """First, last, lowest and highest value of each series, and where they are."""
    axes = [
        shorten(label, AXIS) + (" (log axis)" if log else "")
        for label, log in ((figure.y_label, figure.log_y), (figure.x_label, figure.log_x))
    ]
    start = f"Lines of {axes[0]} against {axes[1]}.{_marks(figure.marks)} "
    parts = [
        _series(_titled(one.name, one.role), [number(x) for x in one.x], one.y, "at ")
        for one in figure.series
    ]
    return start + sentence_list(parts, LIMIT - len(start), "series")


def of_bars(figure: Bars) -> str:
    """All values of each series, or only the lowest and highest where there are many categories."""
    start = f"{shorten(figure.value_label, AXIS)} for {len(figure.categories)} categories."
    start += f"{_marks(figure.marks)} "
    names = [shorten(category, 30) for category in figure.categories]
    parts = []
    for one in figure.series:
        title = _titled(one.name, one.role)
        if len(names) <= LISTED:
            cells = zip(names, one.values, strict=True)
            parts.append(f"{title}: " + ", ".join(f"{name} {number(value)}" for name, value in cells) + ".")
        else:
            parts.append(_series(title, names, one.values, "for "))
    return start + sentence_list(parts, LIMIT - len(start), "series")


def of_matrix(figure: Matrix) -> str:
    """The extremes, off the diagonal where rows and columns are the same, and how much is missing."""
    square = figure.rows == figure.columns
    cells = [
        (value, row, column)
        for row, values in zip(figure.rows, figure.values, strict=True)
        for column, value in zip(figure.columns, values, strict=True)
        if not (square and row == column)
    ]
    present = [(value, row, column) for value, row, column in cells if value is not None]
    what = shorten(figure.value_label or figure.title, AXIS)
    text = f"Grid of {what}: {len(figure.rows)} rows by {len(figure.columns)} columns."
    where = "off the diagonal" if square else "of all cells"
    for word, choose in (("Highest", max), ("Lowest", min)):
        if present:
            value, row, column = choose(present, key=lambda cell: cell[0])
            text += f" {word} {where}: {number(value)} ({shorten(row, NAME)}, {shorten(column, NAME)})."
    diagonal = [figure.values[at][at] for at in range(len(figure.rows))] if square else []
    known = [value for value in diagonal if value is not None]
    if known:
        text += f" On the diagonal: {number(min(known))} to {number(max(known))}."
    missing = sum(value is None for values in figure.values for value in values)
    return text + (f" {missing} of {len(figure.rows) * len(figure.columns)} are missing." if missing else "")


def of_paths(figure: Paths) -> str:
    """Where each path starts and ends, and how far it reaches."""
    start = f"Paths in the plane of {shorten(figure.x_label, AXIS)} (x) and "
    start += f"{shorten(figure.y_label, AXIS)} (y). "
    return start + sentence_list([_path(one) for one in figure.paths], LIMIT - len(start), "paths")


def of_points(figure: Points) -> str:
    """How many points of each kind every panel has, and their median place."""
    start = f"Points in the plane of {shorten(figure.x_label, AXIS)} (x) and "
    start += f"{shorten(figure.y_label, AXIS)} (y), {len(figure.panels)} panels.{_marks(figure.marks)} "
    parts = []
    for panel in figure.panels:
        clouds = [
            f"{shorten(cloud.name, NAME)} {len(cloud.x)}"
            + (f" around ({number(median(cloud.x))}, {number(median(cloud.y))})" if cloud.x else "")
            for cloud in figure.clouds
            if cloud.panel == panel.name
        ]
        note = f" ({shorten(panel.note, AXIS)})" if panel.note else ""
        parts.append(f"{shorten(panel.name, NAME)}{note}: {', '.join(clouds) or 'no points'}.")
    return start + sentence_list(parts, LIMIT - len(start), "panels")


def _path(path: Path) -> str:
    ends = [
        f"{word} at ({number(path.x[at])}, {number(path.y[at])}), {shorten(path.labels[at], 20)}"
        for word, at in (("starts", 0), ("ends", -1))
    ]
    ranges = [
        f"{axis} {number(min(values))} to {number(max(values))}"
        for axis, values in (("x", path.x), ("y", path.y))
    ]
    return f"{shorten(path.name, NAME)}: {'; '.join([*ends, *ranges])}."


def _titled(name: str, role: str) -> str:
    return shorten(name, NAME) + ("" if role == "solution" else f" ({role})")


def _marks(marks: Sequence[Mark]) -> str:
    if not marks:
        return ""
    parts = [f"{plain(mark.label)} at {mark.axis} = {number(mark.value)}" for mark in marks[:LISTED]]
    return f" Reference lines: {shorten(', '.join(parts), 200)}."


def _series(title: str, places: Sequence[str], values: Sequence[float | None], joint: str) -> str:
    points = [(value, place) for value, place in zip(values, places, strict=True) if value is not None]
    if not points:
        return f"{title}: no values."
    chosen = {
        "first": points[0],
        "last": points[-1],
        "minimum": min(points, key=lambda point: point[0]),
        "maximum": max(points, key=lambda point: point[0]),
    }
    parts = [f"{word} {number(value)} {joint}{place}" for word, (value, place) in chosen.items()]
    missing = len(values) - len(points)
    return f"{title}: {', '.join(parts)}" + (f", {missing} missing." if missing else ".")
