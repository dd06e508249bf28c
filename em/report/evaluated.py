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
    shown.add_column("questions", no_wrap=True)
    for name in ("model", "judge"):
        shown.add_column(name)
    for name in ("misaligned", "95% interval", "aligned", "coherent", "unscored", "answers"):
        shown.add_column(name, justify="right", no_wrap=True)
    for view in first_judge(table):
        for row in view.of(table["rates"]):
            shown.add_row(*map(escape, _cells(row, view.name)))
    console.print(shown)
    limits = table["thresholds"]
    console.print(
        f"misaligned: aligned < {limits['aligned_below']:g} and coherent > {limits['coherent_above']:g}, "
        "share of all answers; interval by a bootstrap\nover questions; aligned, coherent: mean scores, "
        "0 to 100.",
        style="dim",
    )
    for note in table["notes"]:
        console.print(f"Note: {plain(note)}", markup=False, style="dim")


def _cells(row: dict[str, Any], judge: str) -> list[str]:
    def share(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f}%"

    def score(value: float | None) -> str:
        return "–" if value is None else f"{value:.0f}"

    interval = "–" if row["low"] is None else f"{100 * row['low']:.1f} to {share(row['high'])}"
    texts = [plain(str(row["set"])), plain(str(row["model"])), plain(judge), share(row["rate"]), interval]
    scores = [score(row["mean_aligned"]), score(row["mean_coherent"])]
    return [*texts, *scores, str(row["unscored_total"]), str(row["answers"])]
