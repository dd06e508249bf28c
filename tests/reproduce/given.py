"""An analysis that says what it is told, and counts how often it was asked."""

from em.analyses.base import Analysis, Context, Found, Raw, Statistic
from em.errors import MeasurementError
from em.figures.model import Bars, BarSeries, Table


class Given(Analysis):
    """One statistic, `number`, with the interval that it was given.

    Args:
        low, high: of the interval; its middle is the value.
        error: raised instead.
    """

    asked = 0

    def __init__(self, members: list[str], low: float = 0.0, high: float = 1.0, error: str | None = None):
        super().__init__(members)
        self.low, self.high, self.error = low, high, error

    def measure(self, context: Context) -> Raw:
        type(self).asked += 1
        if self.error is not None:
            raise MeasurementError(self.error)
        runs = context.chosen(self.members)
        return {"low": self.low, "high": self.high, "norms": [one.manifest["norm"] for one in runs.values()]}

    def read(self, raw: Raw) -> Found:
        low, high = raw["low"], raw["high"]
        value = (low + high) / 2
        number = Statistic(value, low, high, 20, "nats", "a number that was given")
        series = [BarSeries("it", [value], [low], [high])]
        bars = Bars("it", "It <b>", "What is given.", "Given too.", "nats", ["it | *them*"], series)
        return Found(
            {"number": number},
            [bars],
            [Table("norms", "Norms", ["norm"], [[n] for n in raw["norms"]])],
            ["a <note>"],
        )
