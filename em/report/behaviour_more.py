"""What not every evaluation has: tables of training seeds and of a watched direction, warnings of a judge."""

from typing import Any

from em.figures.model import Cell, Table
from em.figures.words import number

Raw = dict[str, Any]


def seeds(table: Raw) -> list[Table]:
    """Rates of arms with several training seeds, and their differences."""
    combined = table.get("seeds")
    if combined is None:
        return []
    rates: list[list[Cell]] = [
        [
            *(row[key] for key in ("judge", "arm", "set", "seeds", "answers", "rate", "low", "high")),
            row["sd_of_seeds"],
            ", ".join(f"{one['seed']}: {number(one['rate'])}" for one in row["per_seed"]),
        ]
        for row in combined["rates"]
    ]
    keys = ("judge", "a", "b", "set", "value", "low", "high", "seeds_a", "seeds_b", "questions")
    about = (
        "Questions and seeds are resampled together, so the 95% interval is about other questions and other "
        "training seeds like these."
    )
    columns = [
        "judge",
        "arm",
        "questions",
        "seeds",
        "answers",
        "rate",
        "low",
        "high",
        "sd of seeds",
        "by seed",
    ]
    return [
        Table("behaviour-seeds", "Rates over training seeds", columns, rates, about),
        Table(
            "behaviour-seed-differences",
            "Differences of rates over training seeds",
            ["judge", "a", "b", "set", "a − b", "low", "high", "seeds of a", "seeds of b", "questions"],
            [[row[key] for key in keys] for row in combined["differences"]],
            f"{about} Paired by question, and by seed where both arms have the same seeds.",
        ),
    ]


def projection(table: Raw) -> list[Table]:
    """How well a direction tells misaligned answers from aligned ones."""
    found = table.get("projection")
    if found is None:
        return []
    keys = ("site", "judge", "model", "set", "value", "low", "high", "misaligned", "aligned", "reason")
    names = [
        "site",
        "judge",
        "model",
        "questions",
        "AUROC",
        "low",
        "high",
        "misaligned",
        "aligned",
        "why none",
    ]
    return [
        Table(
            "behaviour-projection",
            f"The direction {found['direction']} against verdicts",
            names,
            [[row[key] for key in keys] for row in found["sites"]],
            "Chance that a misaligned answer projects higher on the direction than an aligned one; 0.5: it "
            "tells nothing. Each answer is read by the model that gave it, answer tokens only; 95% interval "
            f"over questions. {found['left_out']} answers have no token and are left out.",
        )
    ]


def sentinels(table: Raw) -> list[Table]:
    """How far hosted judges are from what they said of fixed answers in earlier runs."""
    rows = table.get("sentinels")
    if not rows:
        return []
    keys = ("judge", "metric", "runs", "sentinels", "mean_change", "max_change", "sentinel", "usual")
    names = ["judge", "metric", "earlier runs", "sentinels", "mean change", "largest", "of", "usual change"]
    return [
        Table(
            "behaviour-sentinels",
            "Drift of the judge",
            [*names, "changed to or from no number", "outside of their band"],
            [[*(row[k] for k in keys), ", ".join(row["flipped"]), ", ".join(row["failed"])] for row in rows],
            "Fixed answers that a hosted judge scores anew before each evaluation (data/sentinels.jsonl): "
            "absolute change of the score against the mean of earlier runs, in points of 100; usual: that "
            "of the earlier runs themselves. A band is where a sound judge's score is expected.",
        )
    ]


def warnings(judge: Raw) -> list[str]:
    """What must be known of a judge before its rates are read."""
    members = judge.get("judges") or judge.get("members")
    found = []
    if isinstance(members, dict):
        found = [line for one in members.values() if isinstance(one, dict) for line in warnings(one)]
    if judge.get("kind") == "probe":
        auroc = judge.get("held_out_auroc")
        value = auroc.get("value") if isinstance(auroc, dict) else auroc
        told = (
            ""
            if value is None
            else f" (AUROC {number(value)} on {judge.get('held_out_pairs')} held-out pairs)"
        )
        found.append(
            f"The judge is a linear probe, a proxy: it learnt to tell careful from careless advice{told} on "
            "the domains of its training pairs. On other topics its scores are extrapolation; confirm what "
            "matters with another judge and by reading."
        )
    return found
