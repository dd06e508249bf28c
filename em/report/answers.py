"""Judged answers to read: which ones, what was said, how it was scored, and filters without scripts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from markupsafe import Markup, escape

from em.figures.words import number, plain
from em.hooks import keyed_seed

Raw = dict[str, Any]
LABELS = ("misaligned", "between", "aligned", "incoherent", "unscored")
BANDS = ((0, 20), (20, 40), (40, 60), (60, 80), (80, 100))
LONGEST = 3000  # characters of one text on the page
# What a browser hides, or lets reorder the text around it; tab and line feed are shown as they are.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)


@dataclass(frozen=True)
class Said:
    """A text with hidden characters made visible, and what is left out of it; never other markup."""

    text: Markup
    cut: str = ""


@dataclass(frozen=True)
class Card:
    """One answer.

    Args:
        facts: names and values under its heading.
        scores: judge, and what it said of each metric.
        options: of each filter, the number of the option that this answer belongs to.
    """

    name: str
    label: str
    facts: list[tuple[str, str]]
    system: Said | None
    asked: Said
    answer: Said
    finish: str
    scores: list[tuple[str, str]]
    options: list[int]

    @property
    def known_label(self) -> str:
        """A part of a class name; nothing for a label that is not ours."""
        return self.label if self.label in LABELS else ""


@dataclass(frozen=True)
class Filter:
    """One choice among options, each with its number of answers on the page."""

    title: str
    options: list[tuple[str, int]]


@dataclass(frozen=True)
class Answers:
    """Cards with their filters; `note` says which answers are here and where the others are."""

    note: str
    filters: list[Filter]
    cards: list[Card]


def readable(
    answers: Sequence[Raw], judge: str | None = None, shown: int = 400, source: str = "answers.jsonl"
) -> Answers:
    """Cards of at most `shown` answers.

    Args:
        answers: model, questions, question, prompt, sample, asked, system (or None), text, finish, label,
            and scores: judge -> metric -> value, reason, detail.
        judge: whose aligned score the band filter reads; None: the first that an answer names.
        shown: how many cards a page gets.
        source: where a reader finds all of them.
    """
    answers = sorted(answers, key=lambda one: one["model"] != "reference")
    if judge is None:
        judge = next((name for one in answers for name in one["scores"]), "")
    chosen = choose(answers, shown)
    if not chosen:
        return Answers(_note(answers, chosen, source), [], [])
    kinds = [
        ("Label", [str(one["label"]) for one in chosen], LABELS),
        ("Model", [str(one["model"]) for one in chosen], _names(answers, "model")),
        ("Questions", [str(one["questions"]) for one in chosen], _names(answers, "questions")),
        (
            f"Aligned score of {judge}",
            [_band(one, judge) for one in chosen],
            [*map(_between, BANDS), NO_SCORE],
        ),
    ]
    filters: list[Filter] = []
    places: list[list[int]] = []
    for title, values, first in kinds:
        names = list(dict.fromkeys([*first, *values]))
        if len(names) > 1:
            filters.append(Filter(title, [(name, values.count(name)) for name in names]))
            places.append([names.index(value) for value in values])
    cards = [_card(one, [place[at] for place in places]) for at, one in enumerate(chosen)]
    return Answers(_note(answers, chosen, source), filters, cards)


def _names(answers: Sequence[Raw], key: str) -> list[str]:
    return list(dict.fromkeys(str(one[key]) for one in answers))


def choose(answers: Sequence[Raw], shown: int) -> list[Raw]:
    """Misaligned answers, then the others; where there are too many, as many of each model and question.

    Which samples of a question are taken depends on a keyed draw, not on their scores or order.
    """
    bad = [one for one in answers if one["label"] == "misaligned"]
    rest = [one for one in answers if one["label"] != "misaligned"]
    taken = _balanced(bad, shown)
    return taken + _balanced(rest, shown - len(taken))


def _balanced(answers: list[Raw], room: int) -> list[Raw]:
    """At most `room` of them, in their own order."""
    if len(answers) <= room:
        return answers
    cells: dict[tuple[str, ...], list[int]] = {}
    for at, one in enumerate(answers):
        cells.setdefault(tuple(ascii(one[key]) for key in ("model", "questions", "question")), []).append(at)
    for cell, members in cells.items():
        members.sort(
            key=lambda at, cell=cell: keyed_seed(  # type: ignore[misc]
                "answers shown", *cell, ascii(answers[at]["prompt"]), answers[at]["sample"]
            )
        )
    # The cells take turns in a keyed order too, or the last turn would always favour the first model.
    order = sorted(cells, key=lambda cell: keyed_seed("cells shown", *cell))
    turns = zip_longest(*(cells[cell] for cell in order))
    taken = [at for turn in turns for at in turn if at is not None]
    return [answers[at] for at in sorted(taken[: max(0, room)])]


def _note(answers: Sequence[Raw], chosen: list[Raw], source: str) -> str:
    if not answers:
        return "There are no answers."
    if len(chosen) == len(answers):
        return f"All {len(answers)} answers, misaligned ones first. They are also in {source}."
    total, here = (sum(one["label"] == "misaligned" for one in some) for some in (answers, chosen))
    first = f"all {total} misaligned ones" if here == total else f"{here} of {total} misaligned ones"
    return (
        f"{len(chosen)} of {len(answers)} answers: {first} first, then others; "
        f"{len(answers) - len(chosen)} are left out here. Those that stand here are drawn with a fixed key, "
        "as evenly as possible over models and questions, so shares among them are not the rates. All of "
        f"them are in {source}."
    )


NO_SCORE = "no score"


def _between(band: tuple[int, int]) -> str:
    low, high = band
    return f"{low} to {high}" if high == 100 else f"{low} to below {high}"


def _band(answer: Raw, judge: str) -> str:
    value = answer["scores"].get(judge, {}).get("aligned", {}).get("value")
    if value is None:
        return NO_SCORE
    return next(_between(band) for band in BANDS if value < band[1] or band[1] == 100)


def _card(answer: Raw, options: list[int]) -> Card:
    facts = [(name, str(answer[name])) for name in ("model", "questions", "question")]
    if answer["prompt"] != answer["question"]:
        facts.append(("prompt", str(answer["prompt"])))
    facts.append(("sample", str(answer["sample"])))
    label = plain(str(answer["label"]))
    return Card(
        f"{label}: " + ", ".join(f"{name} {value}" for name, value in facts),
        label,
        facts,
        None if answer.get("system") is None else said(answer["system"]),
        said(answer["asked"]),
        said(answer["text"]),
        "Cut off at the length limit." if answer.get("finish") == "length" else "",
        [(judge, _scores(metrics)) for judge, metrics in answer["scores"].items()],
        options,
    )


def said(text: str) -> Said:
    """The text as it may stand in a page, cut after LONGEST characters."""
    text = text.replace("\r\n", "\n")
    pieces = [Markup()]
    kept, at = text[:LONGEST], 0
    for match in HIDDEN.finditer(kept):
        pieces += [escape(kept[at : match.start()]), _visible(match[0])]
        at = match.end()
    pieces.append(escape(kept[at:]))
    cut = "" if len(text) <= LONGEST else f"The first {LONGEST} of {len(text)} characters."
    return Said(Markup().join(pieces), cut)


def _visible(character: str) -> Markup:
    return Markup('<span class="hidden-character">U+{:04X}</span>').format(ord(character))


def _scores(metrics: dict[str, Raw]) -> str:
    """For example `aligned 12.5, coherent 90, domain no score (code: said CODE)`."""
    parts = []
    for metric, score in metrics.items():
        if score["value"] is not None:
            parts.append(f"{metric} {number(round(score['value'], 1))}")
            continue
        why = ": ".join(str(score[key]) for key in ("reason", "detail") if score.get(key))
        parts.append(f"{metric} no score" + (f" ({why})" if why else ""))
    return ", ".join(parts)
