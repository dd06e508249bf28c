"""Tables of judged answers: rates, differences and why answers have no score."""

from typing import Any

from em.figures._judged import View, percent, views
from em.figures.model import Cell, Table
from em.judges.base import REASONS

Raw = dict[str, Any]
INTERVAL = (
    "95% intervals from a bootstrap over questions, because answers to one question are not independent"
)
NOT_ASKED = {"not_asked": "the judge was not asked for both aligned and coherent"}


def first_judge(table: Raw) -> list[View]:
    """Those of the first judge, whose answers the page shows."""
    return [view for view in views(table) if view.judge == table["judges"][0]["judge"]]


def brackets(low: float | None, high: float | None) -> str | None:
    """An interval in %; None where there is none."""
    return None if low is None or high is None else f"[{percent(low)}, {percent(high)}]"


def headline(table: Raw) -> Table:
    """The rates of the first judge."""
    own = first_judge(table)
    rows: list[list[Cell]] = [
        [
            *([view.method] if len(own) > 1 else []),
            row["model"],
            row["set"],
            row["answers"],
            row["misaligned"],
            None if row["rate"] is None else percent(row["rate"]),
            None if row["low"] == row["high"] else brackets(row["low"], row["high"]),
            None if row["wilson"] is None else brackets(*row["wilson"]),
            row["unscored_total"],
            None if row["worst_case"] is None else percent(row["worst_case"]),
        ]
        for view in own
        for row in view.of(table["rates"])
    ]
    columns = ["model", "questions", "answers", "misaligned", "rate", "over questions", "Wilson", "unscored"]
    return Table(
        "behaviour-summary",
        f"Misaligned answers, by {table['judges'][0]['judge']}",
        [*(["method"] if len(own) > 1 else []), *columns, "rate if all unscored were"],
        rows,
        f"Rate: misaligned over all answers, unscored ones included. Over questions: {INTERVAL}; none "
        "where all questions have the same rate, or there is one question only. Wilson: 95% interval that "
        "takes all answers as independent, so it is too narrow where questions differ. Last column: the rate "
        "if every unscored answer were misaligned.",
    )


RATES = {
    "model": "model",
    "set": "questions",
    "questions": "number of questions",
    "answers": "answers",
    "scored": "scored",
    "misaligned": "misaligned",
    "rate": "rate",
    "low": "low",
    "high": "high",
    "rate_of_scored": "rate of scored",
    "worst_case": "rate if all unscored were",
    "aligned_rate": "aligned",
    "between_rate": "between",
    "incoherent_rate": "incoherent",
    "mean_aligned": "mean aligned",
    "mean_coherent": "mean coherent",
    "domain_rate": "in the domain",
    "mean_harm": "mean harm",
    "design_effect": "design effect",
    "length_cut": "cut off",
    "mean_tokens": "mean tokens",
}


def rates(table: Raw) -> Table:
    """Everything that was counted, for every judge; columns that nothing fills are left out."""
    who, rows = _who(table), table["rates"]
    filled = [key for key in RATES if any(row[key] is not None for row in rows)]
    voted = [True] if any("majority" in row for row in rows) else []
    columns = [*who, *(RATES[key] for key in filled), "Wilson low", "Wilson high", "any of k", "k"]
    cells: list[list[Cell]] = [
        [
            *(row[key] for key in (*who, *filled)),
            *(row["wilson"] or [None, None]),
            row["any_of_k"]["value"],
            row["any_of_k"]["k"],
            *(row.get("majority", {}).get("value") for _ in voted),
        ]
        for row in rows
    ]
    votes = " Majority: share that more than half of the members that scored it call misaligned."
    return Table(
        "behaviour-all-rates",
        "All that was counted" + (", by every judge" if who else ""),
        [*columns, *("majority of members" for _ in voted)],
        cells,
        "Shares are of all answers, unscored ones included, but for the rate of scored ones. Low and high: "
        f"{INTERVAL}; Wilson: 95%, of independent answers. Means are over the answers that have the score. "
        "In the domain: share of the answers asked about it with a domain score above 50. Cut off: share of "
        "the answers whose end is known. Any of k: chance that at least one of k answers to a prompt is "
        "misaligned. Design effect: how many times wider the variance is because answers to one question are "
        f"alike; 1: not at all.{votes if voted else ''}",
    )


def differences(table: Raw) -> Table:
    """Rates of two models on the same questions."""
    who = _who(table)
    keys = [*who, "set", "a", "b", "rate_a", "rate_b", "value", "low", "high", "questions"]
    names = ["questions", "a", "b", "rate of a", "rate of b", "a − b", "low", "high", "number of questions"]
    return Table(
        "behaviour-differences",
        "Differences of rates",
        [*who, *names, "smallest rise to be found"],
        [[*(row[key] for key in keys), row["minimum_detectable"]] for row in table["differences"]],
        "Over the questions that both models answered, each question paired with itself; shares of all their "
        f"answers, unscored ones included. Low and high: {INTERVAL}. They say nothing about other training "
        "seeds. Smallest rise: above the rate of b, what a test of these many answers finds 8 times in 10.",
    )


def unscored(table: Raw) -> Table:
    """Reasons with their counts, for each judge, model and set."""
    who, words = _who(table), {**REASONS, **NOT_ASKED}
    keys = [*who, "model", "set"]
    rows: list[list[Cell]] = [
        [*(row[key] for key in keys), reason, words.get(reason), count, row["answers"]]
        for row in table["rates"]
        for reason, count in row["unscored"].items()
    ]
    return Table(
        "behaviour-unscored",
        "Answers without a score, by reason",
        [*who, "model", "questions", "reason", "what it means", "answers", "of all"],
        rows,
        "They stay in the denominator of every rate and do not count as misaligned. An answer that is "
        "incoherent by its score counts as incoherent, whatever became of its other scores.",
    )


def _who(table: Raw) -> list[str]:
    """Columns that tell judges apart, where there is more than one."""
    return ["judge", "method"] if len(views(table)) > 1 else []
