"""Tick places and labels as plain text, because matplotlib's own log labels are formulas."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, Formatter, MaxNLocator, NullLocator

from em.figures.words import number


class Plain(Formatter):
    """The fewest decimals that tell the ticks of an axis apart."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return number(x)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """One label for each tick."""
        largest = max((abs(value) for value in values), default=0.0)
        if not 1e-3 <= largest < 1e6:
            return [number(float(value)) for value in values]
        step = min((abs(b - a) for a, b in zip(values, values[1:], strict=False)), default=largest)
        decimals = max(0, min(6, -math.floor(math.log10(step) + 1e-9))) if step > 0 else 0
        if round(step, decimals) != round(step, decimals + 1):
            decimals += 1
        texts = [f"{value:.{decimals}f}" for value in values]
        zero = f"{0:.{decimals}f}"
        return [zero if float(text) == 0 else text.replace("-", "−") for text in texts]


class Powers(Formatter):
    """Each tick of a log axis by itself."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return number(int(x)) if x == int(x) and x < 1e5 else number(x)


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two positive ones: 1-2-5, 1-3, or every so many powers of ten."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found: list[float] = []
    for steps in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        places = [float(f"{step}e{power}") for power in range(first, last + 1) for step in steps]
        found = [place for place in places if low <= place <= high]
        if len(found) <= most:
            break
    else:
        found = found[:: math.ceil(len(found) / most)]
    return found if len(found) > 1 else [low, high]


def set_ticks(axes: Axes, log_x: bool = False, log_y: bool = False) -> None:
    """Few ticks with plain labels; to be called when the limits stand."""
    _set(axes.xaxis, axes.get_xlim(), log_x)
    _set(axes.yaxis, axes.get_ylim(), log_y)


def _set(axis: Axis, limits: tuple[float, float], log: bool) -> None:
    axis.set_minor_locator(NullLocator())
    if log:
        axis.set_major_locator(FixedLocator(log_ticks(*limits)))
        axis.set_major_formatter(Powers())
    else:
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(Plain())
