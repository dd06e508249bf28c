"""The page of a figure: our figures, the paper's result beside ours, and a verdict for each claim."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from em.figures.model import Figure, Table
from em.progress import clock
from em.report.page import Page, Section, write_page
from em.reproduce.result import Result

PLURAL = {"holds": "hold", "does not hold": "do not hold", "not decidable": "are not decidable"}


def write_figure(result: Result) -> Path:
    """Write FIG/report.html with its figures and tables as files beside it.

    Returns:
        the page.

    Raises:
        RunError: a file cannot be written.
    """
    sections = [_claims(result), *_analyses(result), _numbers(result)]
    page = Page(
        title=result.plan.title,
        summary=[result.plan.about, *_summary(result)],
        facts=_facts(result),
        headline=None,
        sections=[one for one in sections if one.figures or one.tables or one.notes or one.text],
        warnings=[f"{name} has nothing to say: {why}" for name, why in result.failed.items()],
    )
    return write_page(page, result.folder, list(result.runs))


def figures_of(result: Result) -> Iterator[tuple[str, Figure]]:
    """Analysis and figure, with an id that is unique on the page."""
    for name, found in result.found.items():
        for figure in found.figures:
            yield name, replace(figure, id=ident(name, figure.id))


def ident(*parts: str) -> str:
    """An id of lower-case letters, digits, `_` and `-`."""
    return "-".join("".join(c if c.isalnum() or c in "_-" else "-" for c in part.lower()) for part in parts)


def _claims(result: Result) -> Section:
    table = result.claims()
    text = (
        "A claim holds if the whole 95% interval lies where the paper says, and does not hold if none of it "
        "does. Anything between is not decidable at this sample size."
    )
    return Section("claims", "The paper's claims", text, tables=[table] if table.rows else [])


def _analyses(result: Result) -> Iterator[Section]:
    drawn = list(figures_of(result))
    for name, found in result.found.items():
        tables = [replace(one, id=ident(name, one.id)) for one in found.tables]
        own = [figure for of, figure in drawn if of == name]
        yield Section(ident("analysis", name), _heading(name), "", own, tables, found.notes)


def _heading(name: str) -> str:
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _numbers(result: Result) -> Section:
    """Every number that a claim could be made of."""
    rows: list[list[str | float | int | None]] = [
        [name, one.what, one.value, one.low, one.high, one.unit, one.n]
        for name, one in result.statistics.items()
    ]
    columns = ["name", "what", "value", "low", "high", "unit", "n"]
    text = "Claims name these. Write your own into a copy of conf/reproduce/claims.yaml: --claims FILE."
    table = Table("statistics", "All numbers", columns, rows, "n: clusters that the interval is of.")
    return Section("statistics", "All numbers", text, tables=[table] if rows else [])


def _summary(result: Result) -> list[str]:
    counts = result.counts()
    told = [f"{counts[outcome]} {PLURAL[outcome]}" for outcome in counts if counts[outcome]]
    return [f"Of {len(result.verdicts)} claims {', '.join(told)}."] if told else []


def _facts(result: Result) -> list[tuple[str, str]]:
    trained, taken = sum(result.runs.values()), sum(result.seconds.values())
    facts = [
        ("experiment", str(result.plan.experiment)),
        ("in the paper", result.plan.paper),
        ("model", result.model.name),
        ("runs", f"{len(result.runs)}, {clock(trained)} together, shared with other figures"),
        ("measured in", clock(taken)),
    ]
    each = ", ".join(f"{name} {clock(seconds)}" for name, seconds in result.runs.items())
    return [*facts, ("trained in", each)] if each else facts
