"""What judged answers say, as a section of a page or a page of its own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from em.figures._judged import REFERENCE, View, percent, rule
from em.figures.model import Table
from em.figures.sections import figures
from em.figures.words import number, shorten
from em.report import behaviour_more
from em.report.answers import readable
from em.report.behaviour_tables import INTERVAL, brackets, differences, first_judge, headline, rates, unscored
from em.report.page import Page, Section

Raw = dict[str, Any]
SENTENCES = 4  # rates told in the summary
WARNINGS = 6  # notes before everything else; the others stand in the section
# Of a judge: what only tells a machine whether two are the same.
UNTOLD = (
    "limit",
    "max_tokens",
    "seed",
    "version",
    "data",
    "fingerprint",
    "pairs",
    "attempts",
    "top_logprobs",
)
LONGEST = 300  # characters of one fact
DENOMINATOR = (
    "Every rate is a share of all answers; an answer without a score stays in the denominator and does not "
    "count as misaligned"
)


def behaviour_section(
    table: Raw,
    answers: Sequence[Raw],
    judge: Raw,
    *,
    arms: Mapping[str, str] | None = None,
    shown: int = 400,
    source: str = "answers.jsonl",
) -> Section:
    """Figures, tables and the answers themselves.

    Args:
        table: see `em.measurements.behaviour.behaviour_table`.
        answers: as `em.report.answers.readable` wants them.
        judge: what it says of itself; its name is that of the scores which answers are filtered by.
        arms: model -> arm, whose colour it has in the figures.
        shown: how many answers the page gets.
        source: where all of them are.
    """
    return Section(
        "behaviour",
        "Behaviour: judged answers",
        _text_of(table),
        figures("behaviour", table, arms or {}),
        [one for one in _tables(table) if one.rows],
        list(table["notes"]),
        readable(answers, judge.get("name"), shown, source),
    )


def _tables(table: Raw) -> list[Table]:
    return [
        rates(table),
        differences(table),
        unscored(table),
        *behaviour_more.seeds(table),
        *behaviour_more.projection(table),
        *behaviour_more.sentinels(table),
    ]


def _text_of(table: Raw) -> str:
    first, *others = [judge["judge"] for judge in table["judges"]]
    text = f"Misaligned: {rule(table)}. {DENOMINATOR}. Whiskers are {INTERVAL}."
    if others:
        text += f" Single answers, questions and thresholds are drawn as {first} scores them."
    return f"{text}\n\nA judge makes mistakes of its own: read some of the answers before trusting a rate."


def behaviour_page(
    table: Raw,
    answers: Sequence[Raw],
    judge: Raw,
    *,
    title: str = "Behaviour",
    facts: Sequence[tuple[str, str]] = (),
    warnings: Sequence[str] = (),
    shown: int = 400,
    source: str = "answers.jsonl",
) -> Page:
    """The page of one evaluation; warnings, then the first notes of the table, stand before everything else.

    Args:
        facts: names and values that the caller knows, for example the run and how answers were drawn.
        warnings: what the caller knows, for example that the judge is a proxy.
    """
    section = behaviour_section(table, answers, judge, shown=shown, source=source)
    limits = table["thresholds"]
    return Page(
        title,
        sentences(table),
        [
            *facts,
            *judge_facts(judge),
            ("misaligned", rule(table)),
            (
                "aligned",
                f"aligned above {limits['aligned_above']:g} and coherent above {limits['coherent_above']:g}",
            ),
            *_samples(table),
        ],
        headline(table),
        [replace(section, notes=section.notes[WARNINGS:])],
        [*warnings, *_first(section.notes)],
    )


def _first(notes: list[str]) -> list[str]:
    more = len(notes) - WARNINGS
    return notes[:WARNINGS] + ([f"{more} more notes stand before the answers."] if more > 0 else [])


def judge_facts(judge: Raw) -> list[tuple[str, str]]:
    """Names and values of what a judge says of itself, one line for each; evaluation.json has the rest."""
    told = {
        key: value for key, value in judge.items() if key not in UNTOLD and value not in (None, "", [], {})
    }
    return [(f"judge {name}".strip(), shorten(value, LONGEST)) for name, value in _flat(told)]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value.keys() == {"value", "low", "high"}:
        yield name, f"{number(value['value'])} [{number(value['low'])}, {number(value['high'])}]"
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _flat(one, f"{name} {key}".strip().replace("_", " "))
    elif isinstance(value, (list, tuple)) and any(isinstance(one, (Mapping, list, tuple)) for one in value):
        for at, one in enumerate(value):
            yield from _flat(one, f"{name} {at + 1}")
    elif isinstance(value, (list, tuple)):
        yield name, ", ".join(map(_text, value)) or "none"
    else:
        yield name, _text(value)


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return number(value) if isinstance(value, float) else str(value)


def _samples(table: Raw) -> list[tuple[str, str]]:
    """How many answers the first judge read, by set."""
    rows = first_judge(table)[0].of(table["rates"])
    found = []
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        answers, questions = (_range([row[key] for row in own]) for key in ("answers", "questions"))
        found.append((f"answers, {name}", f"{answers} of each model, to {questions} questions"))
    return found


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def sentences(table: Raw) -> list[str]:
    """The rates of the first judge beside those of the reference, and what their brackets are."""
    own = first_judge(table)
    found = [text for view in own for text in _told(view, view.of(table["rates"]), len(own) > 1)]
    more = len(found) - SENTENCES
    found = [*found[:SENTENCES], *([f"{more} more rates are in the tables."] if more > 0 else [])]
    others = [one["judge"] for one in table["judges"][1:]]
    by = f" Scores are those of {own[0].judge}; the tables also have {', '.join(others)}." if others else ""
    meant = f"Misaligned: {rule(table)}. {DENOMINATOR}. Brackets: {INTERVAL}."
    wilson = " Wilson: an interval that takes answers as independent, shown where the other has no width."
    return [*found, f"{meant}{wilson if any('(Wilson ' in text for text in found) else ''}{by}"]


def side_by_side(table: Raw) -> list[str]:
    """One sentence for each question set: the rate of every model by the first judge."""
    view = first_judge(table)[0]
    rows = [row for row in view.of(table["rates"]) if row["rate"] is not None]
    return [
        f"Misaligned answers to {name} questions, by {view.name}: "
        + ", ".join(f"{row['model']} {_rate(row)}" for row in rows if row["set"] == name)
        + "."
        for name in dict.fromkeys(row["set"] for row in rows)
    ]


def _told(view: View, rows: list[Raw], several: bool) -> Iterator[str]:
    reference = {row["set"]: row for row in rows if row["model"] == REFERENCE}
    for row in [one for one in rows if one["model"] != REFERENCE] or rows:
        start = f"{row['model']}, {row['set']} questions{f', {view.name}' if several else ''}"
        if row["rate"] is None:
            yield f"{start}: no rate, because the judge was not asked for both aligned and coherent."
            continue
        text = f"{start}: {row['misaligned']} of {row['answers']} answers are misaligned, {_rate(row)}"
        beside = reference.get(row["set"])
        if beside is not None and beside is not row and beside["rate"] is not None:
            text += f"; of the reference {beside['misaligned']} of {beside['answers']}, {_rate(beside)}"
        yield f"{text}."


def _rate(row: Raw) -> str:
    """With the interval over questions, or Wilson's where that one has no width or does not exist."""
    if row["low"] is None or row["low"] == row["high"]:
        low, high = row["wilson"]
        return f"{percent(row['rate'])} (Wilson {percent(low)} to {percent(high)})"
    return f"{percent(row['rate'])} {brackets(row['low'], row['high'])}"
