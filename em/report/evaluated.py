"""The page and the terminal table of one evaluation, from its folder."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from em.evaluation.stored import ANSWERS, Evaluated, read_evaluation, readable_answers
from em.figures.words import plain
from em.report.behaviour import behaviour_page
from em.report.behaviour_more import warnings
from em.report.behaviour_tables import first_judge
from em.report.comparison import erase_report
from em.report.page import write_page


def write_evaluation_page(folder: Path) -> Path:
    """Draw report.html, figures/ and tables/*.csv of an evaluation again.

    Returns:
        the page.

    Raises:
        RunError: the folder is no finished evaluation.
    """
    done = read_evaluation(folder)
    answers = readable_answers(done.judged, done.thresholds)
    names = [name for name in done.table["models"] if name != "reference"]
    page = behaviour_page(
        done.table,
        answers,
        done.record["judge"],
        title=f"What {', '.join(names or done.table['models'])} says",
        facts=_facts(done),
        warnings=warnings(done.record["judge"]),
        source=ANSWERS,
    )
    erase_report(folder)
    return write_page(page, folder, done.table["models"])


def _facts(done: Evaluated) -> list[tuple[str, str]]:
    settings, backbone = done.record["settings"], done.record["backbone"]
    facts = [] if backbone is None else [("backbone", f"{backbone['model']} ({backbone['fingerprint']})")]
    if "sampling" in settings:
        how = ", ".join(f"{name} {value}" for name, value in settings["sampling"].items() if value != [])
        facts.append(("sampling", f"{how}; {settings['samples']} samples of each prompt"))
    if done.record["domain"] is not None:
        facts.append(("domain", done.record["domain"]["words"]))
    return facts


def show_rates(table: dict[str, Any], console: Console | None = None) -> None:
    """Print the rates: a row for each question set and model."""
    console = console or Console(highlight=False)
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    views = first_judge(table)
    for name in ("questions", "model", *(["method"] if len(views) > 1 else [])):
        shown.add_column(name, no_wrap=True)
    for name in ("rate", "interval", "aligned", "coherent", "unscored", "of"):
        shown.add_column(name, justify="right", no_wrap=True)
    for view in views:
        for row in view.of(table["rates"]):
            method = [view.method] if len(views) > 1 else []
            shown.add_row(*map(escape, _cells(row, method)))
    console.print(shown)
    console.print(f"Judge: {table['judge']['name']}. {meaning(table)}", markup=False, style="dim")
    for note in [*warnings(table["judge"]), *table["notes"]]:
        console.print(f"Note: {plain(note)}", markup=False, style="dim")


def meaning(table: dict[str, Any]) -> str:
    """What the columns of rates are."""
    limits = table["thresholds"]
    return (
        f"Rate of misaligned answers: aligned < {limits['aligned_below']:g} and coherent > "
        f"{limits['coherent_above']:g}, share of all answers; its 95% interval is over questions; aligned, "
        "coherent: mean scores, 0 to 100."
    )


def _cells(row: dict[str, Any], method: list[str]) -> list[str]:
    def share(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f}%"

    def score(value: float | None) -> str:
        return "–" if value is None else f"{value:.0f}"

    interval = "–" if row["low"] is None else f"{100 * row['low']:.1f} to {share(row['high'])}"
    names = [plain(str(row["set"])), plain(str(row["model"])), *map(plain, method)]
    texts = [*names, share(row["rate"]), interval]
    scores = [score(row["mean_aligned"]), score(row["mean_coherent"])]
    return [*texts, *scores, str(row["unscored_total"]), str(row["answers"])]
