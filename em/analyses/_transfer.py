"""What answers under ablation and steering say: rates, shares that go, tables and figures."""

from dataclasses import dataclass

import numpy as np

from em.analyses._answers import Rows, rate_draws, spread
from em.analyses._comparison_statistics import APART
from em.analyses.base import Found, Raw, Statistic
from em.figures.model import Bars, BarSeries, Table
from em.measurements.shares import interval
from em.proportions import newcombe, wilson
from em.stats import Estimate, Floats, Resampling

RANDOM = "random"
PLAIN = "plain"
INTERVALS = "95% bootstrap over questions; Wilson's where no answer or every answer is misaligned"
NOTE = f"Unscored answers stay in the denominator. Intervals: {INTERVALS}."


@dataclass(frozen=True)
class How:
    """The options of the analysis that its numbers are named by."""

    targets: list[str]
    sources: list[str]
    coefficients: list[float]


def told(raw: Raw, targets: list[str], sources: list[str], coefficients: list[float]) -> Found:
    """Statistics, tables and figures from the answers of every condition."""
    how = How(targets, sources, coefficients)
    made = Found(notes=_notes(raw))
    for target in targets:
        _ablation_statistics(made, _Cells(raw, "ablation", target), target, how)
    if coefficients:
        _steering_statistics(made, _Cells(raw, "steering", "reference"), how)
    made.tables.append(_table(raw, made))
    made.figures += _figures(made, how)
    return made


def _name(cell: Raw) -> str:
    if cell["kind"] == "steering":
        return f"steered/{cell['direction']}@{cell['c']:g}"
    return f"{cell['target']}-{cell['direction']}"


def _notes(raw: Raw) -> list[str]:
    told = [f"{name}: {account}" for name, account in raw["counts"].items()]
    where = "every layer" if raw["where"] == "all" else f"layer {raw['layer']} alone"
    return [
        f"Directions at layer {raw['layer']} from judged answers: {'; '.join(told)}.",
        f"Projected out of the output of {where}; added at layer {raw['layer']}, in units of ‖h‖.",
    ]


class _Cells:
    """Answers of one model under each treatment, and its questions in resamples that all treatments share."""

    def __init__(self, raw: Raw, kind: str, model: str):
        cells = [cell for cell in raw["cells"] if (cell["kind"], cell["target"]) == (kind, model)]
        self.rows = {_name(cell): Rows.of(cell["rows"]) for cell in cells}
        questions = sorted({name for rows in self.rows.values() for name in rows.questions})
        self.draws = Resampling(questions, raw["resamples"], raw["seed"])
        self.rates = {name: rate_draws(rows, questions, self.draws) for name, rows in self.rows.items()}

    def rate(self, name: str, what: str) -> Statistic:
        """Share of misaligned answers under one treatment."""
        return self._percent(spread(self.rows[name], interval(self.rates[name], self.draws)), what)

    def gain(self, name: str, other: str, what: str) -> Statistic:
        """Rate under one treatment minus that under another."""
        found = interval(self.rates[name] - self.rates[other], self.draws)
        if found.low is not None and found.low == found.high:
            found = newcombe(self.rows[name].counts, self.rows[other].counts)
            what += "; without spread over questions, so the interval is Newcombe's"
        return self._percent(found, what)

    def removed(self, name: str, plain: str, what: str) -> Statistic:
        """1 − rate under a treatment / rate without it."""
        return self._percent(self._removed(name, plain), _why(self, plain, what))

    def more_removed(self, name: str, other: str, plain: str, what: str) -> Statistic:
        """How much more one treatment removes than another."""
        found = interval(self._gone(name, plain) - self._gone(other, plain), self.draws)
        if found.low is not None and found.low == found.high:
            a, b = self._removed(name, plain), self._removed(other, plain)
            assert a.low is not None and a.high is not None and b.low is not None and b.high is not None
            found = Estimate(found.value, a.low - b.high, a.high - b.low)
            what += f"; without spread over questions, so {APART}"
        return self._percent(found, _why(self, plain, what))

    def _gone(self, name: str, plain: str) -> Floats:
        with_R, plain_R = self.rates[name], self.rates[plain]
        return np.asarray(1 - with_R / np.where(plain_R > 0, plain_R, np.nan))

    def _removed(self, name: str, plain: str) -> Estimate:
        found = interval(self._gone(name, plain), self.draws)
        if found.low is None or found.low != found.high:
            return found
        rows, before = self.rows[name], float(self.rates[plain][0])
        left = wilson(*rows.counts)  # its rate is as uncertain as any, whatever its spread
        assert left.low is not None and left.high is not None
        return Estimate(found.value, 1 - left.high / before, 1 - left.low / before)

    def _percent(self, found: Estimate, what: str) -> Statistic:
        value, low, high = (None if x is None else 100 * x for x in (found.value, found.low, found.high))
        return Statistic(value, low, high, self.draws.count, "%", what)


def _why(cells: _Cells, plain: str, what: str) -> str:
    """With the reason why there is no share, or no interval of it."""
    plain_R = cells.rates[plain]
    if plain_R[0] == 0:
        return f"{what}; it gives no misaligned answer, so nothing can go"
    few = (
        cells.draws.count > 1
        and interval(1 / np.where(plain_R > 0, plain_R, np.nan), cells.draws).low is None
    )
    return f"{what}; no interval: too few questions have a misaligned answer" if few else what


def _ablation_statistics(made: Found, cells: _Cells, target: str, how: How) -> None:
    plain, random = f"{target}-{PLAIN}", f"{target}-{RANDOM}"
    made.statistics[f"rate/{target}"] = cells.rate(plain, f"misaligned answers of {target}")
    for label in (*how.sources, RANDOM):
        name = f"{target}-{label}"
        what = f"misaligned answers of {target} with the direction of {label} projected out"
        made.statistics[f"rate/{name}"] = cells.rate(name, what)
        what = f"share of {target}'s misaligned answers that goes with the direction of {label}"
        made.statistics[f"removed/{name}"] = cells.removed(name, plain, what)
    for label in how.sources:
        key = f"own-random/{target}" if label == target else f"other-random/{target}-{label}"
        what = f"share that goes from {target} with the direction of {label}, more than with a random one"
        made.statistics[key] = cells.more_removed(f"{target}-{label}", random, plain, what)


def _steering_statistics(made: Found, cells: _Cells, how: How) -> None:
    plain = f"steered/{PLAIN}@0"
    made.statistics["steered/reference"] = cells.rate(plain, "misaligned answers of the reference")
    for c in how.coefficients:
        random = f"steered/{RANDOM}@{c:g}"
        for label in (*how.sources, RANDOM):
            what = f"misaligned answers of the reference with {c:g}·‖h‖ of the direction of {label} added"
            name = f"steered/{label}@{c:g}"
            made.statistics[name] = cells.rate(name, what)
        for label in how.sources:
            what = f"the same with the direction of {label}, minus with a random one"
            name = f"steered/{label}-random@{c:g}"
            made.statistics[name] = cells.gain(f"steered/{label}@{c:g}", random, what)


def _table(raw: Raw, made: Found) -> Table:
    rows: list[list[str | float | int | None]] = []
    for cell in raw["cells"]:
        counted = Rows.of(cell["rows"])
        name = f"rate/{cell['target']}" if cell["direction"] == PLAIN else f"rate/{_name(cell)}"
        if cell["kind"] == "steering":
            name = "steered/reference" if cell["direction"] == PLAIN else _name(cell)
        one = made.statistics[name]
        told = [counted.answers, counted.misaligned, counted.unscored]
        rows.append([cell["target"], cell["kind"], cell["direction"], cell.get("c"), *told])
        rows[-1] += [one.value, one.low, one.high]
    columns = [
        "model",
        "treatment",
        "direction",
        "c",
        "answers",
        "misaligned",
        "unscored",
        "%",
        "low",
        "high",
    ]
    return Table("transfer", "Misaligned answers under ablation and steering", columns, rows, NOTE)


def _figures(made: Found, how: How) -> list[Bars]:
    labels = [*how.sources, RANDOM]
    ablated = _bars(
        "ablation",
        "Misaligned answers with a direction projected out",
        "Each row is a finetune, each mark what was projected out of it.",
        list(how.targets),
        {
            label: [made.statistics[_rate(target, label)] for target in how.targets]
            for label in ("nothing", *labels)
        },
    )
    if not how.coefficients:
        return [ablated]
    steered = _bars(
        "steering",
        "Misaligned answers of the reference with a direction added",
        "Each row is a coefficient in units of the length of the residual stream.",
        [f"{c:g}" for c in how.coefficients],
        {label: [made.statistics[f"steered/{label}@{c:g}"] for c in how.coefficients] for label in labels},
    )
    return [ablated, steered]


def _bars(
    ident: str, title: str, definition: str, rows: list[str], series: dict[str, list[Statistic]]
) -> Bars:
    made = [
        BarSeries(label, [one.value for one in s], [one.low for one in s], [one.high for one in s])
        for label, s in series.items()
    ]
    return Bars(ident, title, definition, f"Whiskers: {INTERVALS}.", "misaligned answers, %", rows, made)


def _rate(target: str, label: str) -> str:
    return f"rate/{target}" if label == "nothing" else f"rate/{target}-{label}"
