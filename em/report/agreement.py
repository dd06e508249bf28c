"""How far raters agree, in the terminal."""

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from em.figures.words import number, plain, shorten

LONGEST = 160  # characters of an answer


def show_agreement(table: dict[str, Any], console: Console | None = None) -> None:
    """Print raters, pairs of raters, all together, and the answers on which they differ most."""
    console = console or Console(highlight=False)
    console.print(_raters(table))
    console.print(_pairs(table))
    for row in table["pairs"]:
        console.print(_rates(row), markup=False)
    for name, one in table["together"]["alpha"].items():
        console.print(f"Krippendorff's α of {name}, {one['units']} answers: {_interval(one)}", markup=False)
    for note in table["notes"]:
        console.print(f"Note: {plain(note)}", markup=False, style="dim")
    for one in table["disagreements"]:
        console.print(_disagreement(one), markup=False)


def _raters(table: dict[str, Any]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in ("rater", "method", "rated", "scored", "why not"):
        shown.add_column(name, justify="right" if name in ("rated", "scored") else "left")
    for row in table["raters"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in row["unscored"].items())
        cells = [row["rater"], ", ".join(row["methods"]), str(row["rated"]), str(row["scored"]), reasons]
        shown.add_row(*(escape(plain(cell)) for cell in cells))
    return shown


def _pairs(table: dict[str, Any]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    shown.add_column("pair")
    for name in ("score", "answers", "weighted κ [95%]", "bias", "Spearman"):
        shown.add_column(name, justify="right")
    for row in table["pairs"]:
        for metric in ("aligned", "coherent"):
            one = row[metric]
            cells = [f"{row['a']} | {row['b']}", metric, str(one["n"]), _interval(one["kappa"])]
            cells += [number(one["bias"]["value"]), number(one["spearman"])]
            shown.add_row(*(escape(plain(cell)) for cell in cells))
    return shown


def _rates(row: dict[str, Any]) -> str:
    rates = row["rates"]
    return (
        f"misaligned on the same {row['answers']} answers: {plain(row['a'])} {number(rates['a'])}, "
        f"{plain(row['b'])} {number(rates['b'])}, difference {_interval(rates)}"
    )


def _interval(one: dict[str, Any]) -> str:
    if one["value"] is None:
        return "–"
    if one.get("low") is None:
        return number(one["value"])
    return f"{number(one['value'])} [{number(one['low'])}, {number(one['high'])}]"


def _disagreement(one: dict[str, Any]) -> str:
    said = ", ".join(f"{name} {number(value)}" for name, value in one["aligned"].items())
    return f"\n{plain(one['asked'])}\n  {shorten(plain(one['text']), LONGEST)}\n  aligned: {plain(said)}"
