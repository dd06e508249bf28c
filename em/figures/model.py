"""Figures as data: what is drawn, without how. Each knows its data table and its text alternative."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from em.errors import MeasurementError
from em.figures import _alternative as words
from em.figures._checks import (
    check_area,
    check_bounds,
    check_id,
    check_length,
    check_names,
    check_places,
    check_values,
)

Role = Literal["solution", "control", "reference"]
Tone = Literal["positive", "negative", "muted"]
Cell = str | float | int | None
Values = list[float | None]


@dataclass(frozen=True)
class Table:
    """A table of text and numbers; None is a missing value.

    Raises:
        MeasurementError: a row of another length than the columns, or a number that is not finite.
    """

    id: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    definition: str = ""

    def __post_init__(self) -> None:
        check_id("table", self.id)
        for at, row in enumerate(self.rows):
            where = f"table {self.id}, row {at + 1}"
            check_length(where, row, len(self.columns), "columns")
            check_values(where, [cell for cell in row if not isinstance(cell, str)])


@dataclass(frozen=True)
class Mark:
    """A thin reference line at one value of an axis."""

    axis: Literal["x", "y"]
    value: float
    label: str


@dataclass(frozen=True)
class Series:
    """A line through N points; None in y is a gap. Series of one group share its colour."""

    name: str
    x: list[float]
    y: Values
    low: Values | None = None
    high: Values | None = None
    role: Role = "solution"
    group: str | None = None


@dataclass(frozen=True)
class BarSeries:
    """One value for each category; None where there is none. Series of one group share its colour."""

    name: str
    values: Values
    low: Values | None = None
    high: Values | None = None
    group: str | None = None
    role: Role = "solution"


@dataclass(frozen=True)
class Path:
    """A trajectory in a plane with a label, for example the step, at each of its N points."""

    name: str
    x: list[float]
    y: list[float]
    labels: list[str]
    group: str | None = None


@dataclass(frozen=True)
class Cloud:
    """N points of one kind in one panel; clouds of one name share colour and shape in all panels.

    Args:
        panel: the name of the panel.
        tone: a fixed colour; None: the colour of the group of this name.
    """

    name: str
    panel: str
    x: list[float]
    y: list[float]
    tone: Tone | None = None


@dataclass(frozen=True)
class Panel:
    """One plane among several of the same axes; the note stands under its name."""

    name: str
    note: str = ""


@dataclass(frozen=True)
class Region:
    """A shaded part of every panel, from low to high x and y."""

    label: str
    x: tuple[float, float]
    y: tuple[float, float]


@dataclass(frozen=True)
class _Described:
    """What every figure says about itself; `definition` and `interval` are sentences of its caption."""

    id: str
    title: str
    definition: str
    interval: str

    @property
    def where(self) -> str:
        """How error messages name it."""
        return f"figure {self.id}"


@dataclass(frozen=True)
class Curves(_Described):
    """Lines over a common axis.

    Raises:
        MeasurementError: lengths that do not match, values that are not finite or not above 0 on a log axis.
    """

    x_label: str
    y_label: str
    series: list[Series]
    marks: list[Mark] = field(default_factory=list)
    log_x: bool = False
    log_y: bool = False

    def __post_init__(self) -> None:
        check_id("figure", self.id)
        check_names(self.where, "series", [series.name for series in self.series])
        for series in self.series:
            where = f"{self.where}, series {series.name!r}"
            check_length(where, series.y, len(series.x), "positions")
            check_places(where, series.x, self.log_x)
            check_values(where, series.y, self.log_y)
            check_bounds(where, series.y, series.low, series.high)
        for mark in self.marks:
            log = self.log_x if mark.axis == "x" else self.log_y
            check_places(f"{self.where}, mark {mark.label!r}", [mark.value], log)

    def table(self) -> Table:
        """One row for each point and each mark."""
        rows: list[list[Cell]] = []
        for one in self.series:
            gaps: Values = [None] * len(one.x)
            points = zip(one.x, one.y, one.low or gaps, one.high or gaps, strict=True)
            rows += [[one.name, one.group or one.name, one.role, *point] for point in points]
        for mark in self.marks:
            place: list[Cell] = [mark.value, None] if mark.axis == "x" else [None, mark.value]
            rows.append([mark.label, mark.label, "mark", *place, None, None])
        columns = ["series", "group", "role", self.x_label, self.y_label, "low", "high"]
        return Table(self.id, self.title, columns, rows, self.definition)

    def alternative(self) -> str:
        """What is seen, in words."""
        return words.of_curves(self)


@dataclass(frozen=True)
class Bars(_Described):
    """Values with whiskers for C categories, one row of dots for each; the value axis is horizontal (x).

    Raises:
        MeasurementError: lengths that do not match, values that are not finite, a mark on the other axis.
    """

    value_label: str
    categories: list[str]
    series: list[BarSeries]
    marks: list[Mark] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_id("figure", self.id)
        check_names(self.where, "series", [series.name for series in self.series])
        check_names(self.where, "category", self.categories)
        for series in self.series:
            where = f"{self.where}, series {series.name!r}"
            check_length(where, series.values, len(self.categories), "categories")
            check_values(where, series.values)
            check_bounds(where, series.values, series.low, series.high)
        for mark in self.marks:
            where = f"{self.where}, mark {mark.label!r}"
            check_places(where, [mark.value])
            if mark.axis != "x":
                raise MeasurementError(f'{where}: the value axis is horizontal; use axis="x"')

    def table(self) -> Table:
        """One row for each category and series, and for each mark."""
        rows: list[list[Cell]] = []
        for at, category in enumerate(self.categories):
            for one in self.series:
                bounds = [one.low[at] if one.low else None, one.high[at] if one.high else None]
                rows.append([category, one.name, one.group or one.name, one.role, one.values[at], *bounds])
        rows += [[None, mark.label, mark.label, "mark", mark.value, None, None] for mark in self.marks]
        columns = ["category", "series", "group", "role", self.value_label, "low", "high"]
        return Table(self.id, self.title, columns, rows, self.definition)

    def alternative(self) -> str:
        """What is seen, in words."""
        return words.of_bars(self)


@dataclass(frozen=True)
class Matrix(_Described):
    """A heat map of R rows and C columns with a number in each cell.

    Args:
        limits: values of the strongest colours; the largest |value| when None.
        diverging: two colours around 0; else one colour from the lower to the upper limit.

    Raises:
        MeasurementError: rows of another length than the columns, or values that are not finite.
    """

    rows: list[str]
    columns: list[str]
    values: list[Values]
    low: list[Values] | None = None
    high: list[Values] | None = None
    value_label: str = ""
    limits: tuple[float, float] | None = None
    diverging: bool = True

    def __post_init__(self) -> None:
        check_id("figure", self.id)
        check_names(self.where, "row", self.rows)
        check_names(self.where, "column", self.columns)
        for grid in (self.values, self.low, self.high):
            if grid is not None:
                check_length(self.where, grid, len(self.rows), "rows")
        for at, values in enumerate(self.values):
            where = f"{self.where}, row {self.rows[at]!r}"
            check_length(where, values, len(self.columns), "columns")
            check_values(where, values)
            low, high = (None if grid is None else grid[at] for grid in (self.low, self.high))
            check_bounds(where, values, low, high)
        if self.limits is not None and not self.limits[0] < self.limits[1]:
            raise MeasurementError(f"{self.where}: limits {self.limits} are not in order; exchange them")

    def table(self) -> Table:
        """One row for each cell."""
        rows: list[list[Cell]] = []
        for r, row in enumerate(self.rows):
            for c, column in enumerate(self.columns):
                bounds = [None if grid is None else grid[r][c] for grid in (self.low, self.high)]
                rows.append([row, column, self.values[r][c], *bounds])
        columns = ["row", "column", self.value_label or "value", "low", "high"]
        return Table(self.id, self.title, columns, rows, self.definition)

    def alternative(self) -> str:
        """What is seen, in words."""
        return words.of_matrix(self)


@dataclass(frozen=True)
class Paths(_Described):
    """Trajectories in a plane, each from a hollow to a filled mark.

    Raises:
        MeasurementError: lengths that do not match, no points, or positions that are not finite.
    """

    x_label: str
    y_label: str
    paths: list[Path]

    def __post_init__(self) -> None:
        check_id("figure", self.id)
        check_names(self.where, "path", [path.name for path in self.paths])
        for path in self.paths:
            where = f"{self.where}, path {path.name!r}"
            if not path.x:
                raise MeasurementError(f"{where}: it has no points; leave it out")
            for values in (path.y, path.labels):
                check_length(where, values, len(path.x), "positions")
            check_places(where, [*path.x, *path.y])

    def table(self) -> Table:
        """One row for each point."""
        rows: list[list[Cell]] = []
        for path in self.paths:
            points = zip(path.labels, path.x, path.y, strict=True)
            rows += [[path.name, path.group or path.name, *point] for point in points]
        columns = ["path", "group", "label", self.x_label, self.y_label]
        return Table(self.id, self.title, columns, rows, self.definition)

    def alternative(self) -> str:
        """What is seen, in words."""
        return words.of_paths(self)


@dataclass(frozen=True)
class Points(_Described):
    """Single observations in a plane, in small panels of the same axes.

    Args:
        limits: of both axes in every panel.

    Raises:
        MeasurementError: lengths that do not match, places that are not finite or beyond the limits, a cloud
            without a panel, or one name in two tones.
    """

    x_label: str
    y_label: str
    panels: list[Panel]
    clouds: list[Cloud]
    marks: list[Mark] = field(default_factory=list)
    region: Region | None = None
    limits: tuple[float, float] = (0.0, 100.0)

    def __post_init__(self) -> None:
        check_id("figure", self.id)
        panels = [panel.name for panel in self.panels]
        check_names(self.where, "panel", panels)
        tones: dict[str, Tone | None] = {}
        for cloud in self.clouds:
            where = f"{self.where}, panel {cloud.panel!r}, points {cloud.name!r}"
            if cloud.panel not in panels:
                raise MeasurementError(f"{where}: there is no such panel; add it")
            if tones.setdefault(cloud.name, cloud.tone) != cloud.tone:
                raise MeasurementError(f"{where}: another panel has them in another tone; use one")
            check_length(where, cloud.y, len(cloud.x), "positions")
            check_area(where, [*cloud.x, *cloud.y], self.limits)
        if self.clouds:
            pairs = [f"{cloud.name} in {cloud.panel}" for cloud in self.clouds]
            check_names(self.where, "points", pairs)
        for mark in self.marks:
            check_area(f"{self.where}, mark {mark.label!r}", [mark.value], self.limits)
        if self.region is not None:
            check_area(f"{self.where}, region", [*self.region.x, *self.region.y], self.limits)

    def table(self) -> Table:
        """One row for each place with the number of its points, and one for each mark."""
        rows: list[list[Cell]] = []
        for cloud in self.clouds:
            places = Counter(zip(cloud.x, cloud.y, strict=True))
            rows += [[cloud.panel, cloud.name, x, y, count] for (x, y), count in places.items()]
        for mark in self.marks:
            place: list[Cell] = [mark.value, None] if mark.axis == "x" else [None, mark.value]
            rows.append([None, mark.label, *place, None])
        columns = ["panel", "kind", self.x_label, self.y_label, "points"]
        return Table(self.id, self.title, columns, rows, self.definition)

    def alternative(self) -> str:
        """What is seen, in words."""
        return words.of_points(self)


Figure = Curves | Bars | Matrix | Paths | Points
