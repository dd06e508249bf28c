"""Figures of judged answers: rates, where single answers lie, and what the thresholds do to them."""

from collections.abc import Sequence
from typing import Any

from em.figures._common import Arms, Raw
from em.figures._judged import REFERENCE, View, percent, rule, views
from em.figures.model import (
    Bars,
    BarSeries,
    Cloud,
    Curves,
    Figure,
    Mark,
    Matrix,
    Panel,
    Points,
    Region,
    Role,
    Series,
    Tone,
    Values,
)

# Rare and important first; an answer without a score has no place.
TONES: dict[str, Tone] = {
    "misaligned": "negative",
    "between": "muted",
    "aligned": "positive",
    "incoherent": "muted",
}
STRONGEST = (0.25, 0.5, 1.0)  # rates of the strongest colour of a grid


def behaviour(table: Raw, arms: Arms) -> list[Figure]:
    """Rates by every judge; then of each set the single answers, questions and thresholds by the first one.

    Args:
        table: see `em.measurements.behaviour.behaviour_table`.
        arms: model -> arm; models of one arm share a colour.
    """
    rates: list[Figure] = []
    made: list[Figure] = []
    for view in views(table):
        rated = [row for row in view.of(table["rates"]) if row["rate"] is not None]
        if rated:
            rates.append(_rates(table, arms, view, rated, _numbered("behaviour-rates", len(rates))))
        if view.judge != table["judges"][0]["judge"]:
            continue
        for name in (one for one in table["sets"] if any(row["set"] == one for row in rated)):
            more = sum(isinstance(figure, Points) for figure in made)
            made.append(_quadrants(table, view, name, _numbered("behaviour-answers", more)))
            made += _by_question(table, view, name, _numbered("behaviour-questions", more))
            made.append(_thresholds(table, arms, view, name, _numbered("behaviour-thresholds", more)))
    return rates + made


def _numbered(name: str, before: int) -> str:
    return f"{name}-{before + 1}" if before else name


def _titled(text: str, view: View) -> str:
    return f"{text}, by {view.title}" if view.title else text


def _role(model: str) -> Role:
    return "reference" if model == REFERENCE else "solution"


def _models(table: Raw, rows: Sequence[Raw]) -> list[str]:
    """Those that have rows, in the order of the table."""
    present = {row["model"] for row in rows}
    return [model for model in table["models"] if model in present]


def _rates(table: Raw, arms: Arms, view: View, rows: list[Raw], name: str) -> Figure:
    found = {(row["model"], row["set"]): row for row in rows}
    sets = [one for one in table["sets"] if any(row["set"] == one for row in rows)]

    def values(model: str, key: str) -> Values:
        return [found[model, one][key] if (model, one) in found else None for one in sets]

    series = [
        BarSeries(
            model,
            values(model, "rate"),
            values(model, "low"),
            values(model, "high"),
            arms.get(model, model),
            _role(model),
        )
        for model in _models(table, rows)
    ]
    return Bars(
        name,
        _titled("Misaligned answers by question set", view),
        f"Share of all answers that {view.name} scores {rule(table)}. Answers without a score stay in the "
        "denominator and do not count as misaligned.",
        "Whiskers are 95% bootstrap intervals over questions. They have no length where no answer is "
        "misaligned, and are missing where there is one question only: read Wilson's in the table of rates.",
        "share of all answers that is misaligned",
        sets,
        series,
    )


def _quadrants(table: Raw, view: View, questions: str, name: str) -> Figure:
    points = [point for point in view.of(table["points"]) if point["questions"] == questions]
    limits = table["thresholds"]
    panels, missing = [], []
    clouds: list[Cloud] = []
    for model in _models(table, points):
        own = [point for point in points if point["model"] == model]
        bad = sum(point["label"] == "misaligned" for point in own)
        panels.append(Panel(model, f"{bad} of {len(own)} misaligned, {percent(bad / len(own))}"))
        placed = [point for point in own if point["aligned"] is not None and point["coherent"] is not None]
        clouds += _clouds(model, placed)
        if len(placed) < len(own):
            missing.append(f"{model} {len(own) - len(placed)}")
    clouds.sort(key=lambda cloud: list(TONES).index(cloud.name))
    without = f" Answers without both scores have no place and are not drawn: {', '.join(missing)}."
    return Points(
        name,
        _titled(f"Alignment and coherence of each answer: {questions}", view),
        f"One point for each answer as {view.name} scores it; a larger one is several answers at one place. "
        f"Shaded: misaligned, that is {rule(table)}.{without if missing else ''}",
        "",
        "aligned score",
        "coherent score",
        panels,
        clouds,
        [
            Mark("x", limits["aligned_below"], "misaligned below"),
            Mark("x", limits["aligned_above"], "aligned above"),
            Mark("y", limits["coherent_above"], "coherent above"),
        ],
        Region(
            "where misaligned ones lie", (0.0, limits["aligned_below"]), (limits["coherent_above"], 100.0)
        ),
    )


def _clouds(model: str, placed: list[Raw]) -> list[Cloud]:
    made = []
    for label, tone in TONES.items():
        chosen = [point for point in placed if point["label"] == label]
        x, y = ([float(point[key]) for point in chosen] for key in ("aligned", "coherent"))
        if chosen:
            made.append(Cloud(label, model, x, y, tone))
    return made


def _by_question(table: Raw, view: View, questions: str, name: str) -> list[Figure]:
    """A grid of questions and models; nothing for one question, whose rate is that of its set."""
    every = view.of(table["by_question"])
    rows = [row for row in every if row["set"] == questions and row["rate"] is not None]
    asked = list(dict.fromkeys(row["question"] for row in rows))
    if len(asked) < 2:
        return []
    models = _models(table, rows)
    found = {(row["question"], row["model"]): row for row in rows}

    def grid(key: str, part: int | None = None) -> list[Values]:
        def one(question: str, model: str) -> Any:
            value = found[question, model][key] if (question, model) in found else None
            return value if part is None or value is None else value[part]

        return [[one(question, model) for model in models] for question in asked]

    counts = sorted({row["answers"] for row in rows})
    each = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    most = max(row["rate"] for row in every if row["rate"] is not None)
    return [
        Matrix(
            name,
            _titled(f"Misaligned answers by question: {questions}", view),
            f"Share of all answers to a question that {view.name} scores {rule(table)}; {each} "
            "answers of each model to each question.",
            "95% Wilson intervals are in the table.",
            asked,
            models,
            grid("rate"),
            grid("wilson", 0),
            grid("wilson", 1),
            "share misaligned",
            (0.0, next(one for one in STRONGEST if most <= one)),  # one scale for all sets of a judge
            diverging=False,
        )
    ]


def _thresholds(table: Raw, arms: Arms, view: View, questions: str, name: str) -> Figure:
    """The rate against the threshold of alignment; a band for the threshold of coherence."""
    rows = [row for row in view.of(table["sensitivity"]) if row["set"] == questions]
    wanted = table["thresholds"]["coherent_above"]
    strict = sorted({row["coherent_above"] for row in rows})
    middle = min(strict, key=lambda one: abs(one - wanted))
    series = []
    for model in _models(table, rows):
        rates = {
            (row["aligned_below"], row["coherent_above"]): row["rate"]
            for row in rows
            if row["model"] == model
        }
        x = sorted({below for below, _ in rates})
        line, low, high = ([rates[below, above] for below in x] for above in (middle, strict[-1], strict[0]))
        places = [float(one) for one in x]
        series.append(Series(model, places, line, low, high, _role(model), arms.get(model, model)))
    return Curves(
        name,
        _titled(f"The rate under other thresholds: {questions}", view),
        f"Share of all answers with aligned below the value on the axis and coherent above {middle:g}, as "
        f"{view.name} scores them.",
        f"Not an interval: the band is the range from coherent above {strict[-1]:g} to above {strict[0]:g}.",
        "misaligned if aligned is below",
        "share of all answers that is misaligned",
        series,
        [Mark("x", table["thresholds"]["aligned_below"], "used here")],
    )
