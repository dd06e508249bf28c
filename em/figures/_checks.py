"""What every figure and table refuses, with a message that names it."""

import math
import re
from collections.abc import Sequence

from em.errors import MeasurementError

ID = re.compile(r"[a-z0-9_-]+")
Values = Sequence[float | None]


def check_id(what: str, name: str) -> None:
    """Ids become file names and anchors.

    Raises:
        MeasurementError: any other character than a-z, 0-9, _ and -.
    """
    if not ID.fullmatch(name):
        raise MeasurementError(f"{what} {name!r}: an id may hold only a-z, 0-9, _ and -; rename it")


def check_names(where: str, what: str, names: Sequence[str]) -> None:
    """At least one name, and no name twice.

    Raises:
        MeasurementError: otherwise.
    """
    if not names:
        raise MeasurementError(f"{where}: no {what} to draw; leave the figure out")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MeasurementError(f"{where}: {what} {twice[0]!r} occurs twice; give each its own name")


def check_length(where: str, values: Sequence[object], expected: int, of: str) -> None:
    """As many values as there are places for them.

    Raises:
        MeasurementError: otherwise.
    """
    if len(values) != expected:
        raise MeasurementError(f"{where}: {len(values)} values for {expected} {of}; give one for each")


def check_places(where: str, values: Sequence[float], log: bool = False) -> None:
    """Positions along an axis: all present and finite, above 0 on a log axis.

    Raises:
        MeasurementError: otherwise.
    """
    for value in values:
        if not math.isfinite(value):
            raise MeasurementError(f"{where}: a position is {value}; leave the point out")
    _check_log(where, values, log)


def check_area(where: str, values: Sequence[float], limits: tuple[float, float]) -> None:
    """Positions within fixed limits of an axis.

    Raises:
        MeasurementError: otherwise, or limits that are not in order.
    """
    low, high = limits
    if not low < high:
        raise MeasurementError(f"{where}: limits {limits} are not in order; exchange them")
    check_places(where, values)
    for value in values:
        if not low <= value <= high:
            raise MeasurementError(f"{where}: {value:g} is outside {low:g} to {high:g}; widen the limits")


def check_values(where: str, values: Values, log: bool = False) -> None:
    """Measured values: finite or None.

    Raises:
        MeasurementError: NaN or infinite, or not above 0 on a log axis.
    """
    present = [value for value in values if value is not None]
    for value in present:
        if not math.isfinite(value):
            raise MeasurementError(f"{where}: a value is {value}; use None for a missing value")
    _check_log(where, present, log)


def check_bounds(where: str, values: Values, low: Values | None, high: Values | None) -> None:
    """An interval has both bounds, in order, one pair for each value.

    Raises:
        MeasurementError: otherwise.
    """
    if (low is None) != (high is None):
        raise MeasurementError(f"{where}: an interval needs both low and high; give the other or neither")
    if low is None or high is None:
        return
    for bounds in (low, high):
        check_length(where, bounds, len(values), "values")
        check_values(where, bounds)
    for below, above in zip(low, high, strict=True):
        if (below is None) != (above is None):
            raise MeasurementError(f"{where}: an interval has one bound only; use None for both")
        if below is not None and above is not None and below > above:
            raise MeasurementError(f"{where}: low {below:g} is above high {above:g}; exchange them")


def _check_log(where: str, values: Sequence[float], log: bool) -> None:
    for value in values:
        if log and value <= 0:
            raise MeasurementError(
                f"{where}: {value:g} has no place on a log axis; use None, leave the point out or use a "
                "linear axis"
            )
