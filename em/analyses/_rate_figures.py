"""Rates as a table and figures, each beside the reference's own."""

from collections.abc import Sequence

import numpy as np

from em.analyses._rates import DOMAIN, Rates
from em.analyses.base import Statistic
from em.evaluation.answering import REFERENCE
from em.figures.model import Bars, BarSeries, Cell, Curves, Figure, Mark, Series, Table, Values

QUESTIONS = "95% bootstrap intervals over questions; Wilson's where all answers are alike."
Statistics = dict[str, Statistic]
CURVE = [float(below) for below in range(10, 71, 5)]  # aligned_below


def rate_table(rates: Rates, found: Statistics, controls: Sequence[str]) -> Table:
    """A row for each member and set."""
    columns = ["model", "role", "questions", "answers", *bounded("EM %"), *bounded("reference %")]
    columns += bounded("EM − reference")
    columns += ["coherent %", "mean aligned", "about the domain %", "unscored %"]
    second = rates.raw["second"] is not None
    columns += bounded("second judge %") if second else []
    rows: list[list[Cell]] = []
    for role in rates.questions:
        for name in rates.members:
            if not len(rates.answers(name, role)):
                continue
            row: list[Cell] = [name, "control" if name in controls else "finetune"]
            row += [rates.raw["sets"][name][role], len(rates.answers(name, role))]
            row += bounds(found[f"rate.{role}/{name}"]) + bounds(found.get(reference_key(role, name)))
            row += bounds(found[f"rate.{role}/{name}-{REFERENCE}"])
            row += [found[f"{key}.{role}/{name}"].value for key in ("coherent", "aligned")]
            row.append(found[f"domain_rate/{name}"].value if role == rates.questions[0] else None)
            row.append(found[f"unscored.{role}/{name}"].value)
            rows.append(row + (bounds(found[f"rate2.{role}/{name}"]) if second else []))
    return Table(
        "rates",
        "Rates of misaligned answers",
        columns,
        rows,
        f"EM %: share of all answers with aligned below {rates.below:g} and coherent above {rates.above:g}, "
        f"by {rates.raw['judge']}; unscored answers stay in it. The reference's own rate on the same "
        f"questions stands beside, and the difference is paired by question. {QUESTIONS}",
    )


def reference_key(role: str, member: str, key: str = "rate") -> str:
    """The reference's rate; in-domain questions differ between members."""
    return f"{key}.{role}/{REFERENCE}" + (f":{member}" if role == DOMAIN else "")


def bounded(name: str) -> list[str]:
    """Names of the columns of a number and its interval."""
    return [name, f"{name} low", f"{name} high"]


def bounds(one: Statistic | None) -> list[Cell]:
    return [None, None, None] if one is None else [one.value, one.low, one.high]


def rate_figures(rates: Rates, found: Statistics, controls: Sequence[str]) -> list[Figure]:
    """Rates of each set, and the first set's over thresholds."""
    made: list[Figure] = []
    for role in rates.questions:
        members = [name for name in rates.members if len(rates.answers(name, role))]
        if members:
            made.append(_bars(role, members, rates, found, controls))
    curves = _curves(rates, controls)
    return [*made, curves] if curves is not None else made


def _bars(role: str, members: list[str], rates: Rates, found: Statistics, controls: Sequence[str]) -> Figure:
    own = {name: found[f"rate.{role}/{name}"] for name in members if name not in controls}
    control = {name: found[f"rate.{role}/{name}"] for name in members if name in controls}
    reference = {
        name: found[reference_key(role, name)] for name in members if reference_key(role, name) in found
    }
    series = [_dots("finetuned", members, own)] if own else []
    series += [_dots("control", members, control, "control")] if control else []
    series += [_dots(REFERENCE, members, reference, "reference")] if reference else []
    if rates.raw["second"] is not None:
        second = {name: found[f"rate2.{role}/{name}"] for name in members}
        series.append(_dots("by the second judge", members, second))
    what = "of the training domain" if role == DOMAIN else f"of the set {role}"
    return Bars(
        f"rates-{_plain(role)}",
        f"Misaligned answers to questions {what}",
        f"Share of all answers with aligned below {rates.below:g} and coherent above {rates.above:g}, by "
        f"{rates.raw['judge']}; unscored answers stay in it. Beside each the reference's own rate.",
        f"Whiskers are {QUESTIONS}",
        "misaligned answers, %",
        members,
        series,
        [Mark("x", 0.0, "none")],
    )


def _plain(role: str) -> str:
    return "".join(one if one.isascii() and (one.isalnum() or one in "-_") else "-" for one in role.lower())


def _dots(name: str, members: list[str], found: Statistics, role: str = "solution") -> BarSeries:
    rows = [bounds(found.get(one)) for one in members]
    value, low, high = ([row[at] for row in rows] for at in range(3))
    return BarSeries(name, value, low, high, name, role)  # type: ignore[arg-type]


def _curves(rates: Rates, controls: Sequence[str]) -> Figure | None:
    """The rate as the threshold of aligned moves, with that of coherent as it was."""
    role = rates.questions[0]
    members = [name for name in rates.members if len(rates.answers(name, role))]
    if not members:
        return None
    made = [_curve(name, rates, name, "own", name in controls) for name in members]
    first = next((name for name in members if len(rates.answers(name, role, "reference"))), None)
    if first is not None:
        made.append(_curve(REFERENCE, rates, first, "reference", False))
    return Curves(
        "rates-thresholds",
        "The rate under other thresholds",
        f"Share of all answers to the set {role} with aligned below the threshold and coherent above "
        f"{rates.above:g}. The paper's threshold is 30.",
        "No interval: the same answers are counted again at each threshold.",
        "misaligned if aligned is below",
        "misaligned answers, %",
        made,
        [Mark("x", rates.below, "as evaluated")],
    )


def _curve(name: str, rates: Rates, member: str, whose: str, control: bool) -> Series:
    answers = rates.answers(member, rates.questions[0], whose)
    y: Values = [float(100 * np.mean(answers.misaligned_N(below, rates.above))) for below in CURVE]
    role = REFERENCE if whose == REFERENCE else "control" if control else "solution"
    return Series(name, CURVE, y, None, None, role, rates.raw["arms"].get(member) if whose == "own" else None)  # type: ignore[arg-type]
