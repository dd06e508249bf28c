"""The page of a comparison, from the tables in its folder."""

import json
from pathlib import Path
from typing import Any

from em.errors import RunError
from em.figures.model import Table
from em.figures.sections import figures
from em.report.page import Page, Section, write_page
from em.report.summary import headline, sentences

Raw = dict[str, Any]
SECTIONS = {
    "efficiency": (
        "Efficiency",
        "How low the loss is at a given size of the solution. Each is multiplied by one factor, so that at its "
        "own norm it is exactly the trained one.",
    ),
    "stability": (
        "Stability",
        "How much of the gain over the reference is lost when the solution is turned by orthogonal noise.",
    ),
    "significance": (
        "Significance",
        "How much the solution changes predictions on ordinary text that has nothing to do with the data.",
    ),
    "margins": (
        "Margins without a judge",
        "Whether the model has moved towards careless answers, in its training domain and elsewhere.",
    ),
    "directions": (
        "Directions",
        "Which way solutions move the residual stream, and whether one direction tells answers apart.",
    ),
    "steering": ("Steering", "What adding careless − careful does to a model that was never finetuned."),
    "ablation": (
        "Ablation",
        "What is left of a solution when a direction is projected out; also directions of other runs.",
    ),
    "trajectory": ("Training", "How solutions grew and turned while they were trained."),
}


def write_report(folder: Path) -> Path:
    """Draw report.html, figures/ and tables/*.csv again from tables/*.json.

    Args:
        folder: of a comparison.

    Returns:
        the page.

    Raises:
        RunError: the folder holds no comparison, or a table cannot be read.
    """
    tables = {path.stem: _read(path) for path in sorted((folder / "tables").glob("*.json"))}
    if "solutions" not in tables:
        raise RunError(f"{folder}: no tables/solutions.json; make it with `python -m em compare RUN…`")
    compared = tables["solutions"]
    arms = {row["name"]: row["arm"] for row in compared["solutions"]}
    groups = list(dict.fromkeys(arms.values()))
    sections = [
        Section(
            name,
            title,
            text,
            figures(name, tables[name], arms),
            _tables(name, tables[name]),
            _notes(name, tables[name]),
        )
        for name, (title, text) in SECTIONS.items()
        if name in tables
    ]
    page = Page(
        title=" against ".join(groups) if 1 < len(groups) <= 3 else f"{len(groups)} solutions compared",
        summary=sentences(tables),
        facts=_facts(tables, folder),
        headline=headline(tables),
        sections=[section for section in sections if section.figures or section.tables or section.notes],
        warnings=list(compared.get("notes", [])),
    )
    return write_page(page, folder, groups)


def _read(path: Path) -> Raw:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); make the comparison again") from error
    if not isinstance(table, dict):
        raise RunError(f"{path}: holds no table; make the comparison again")
    return table


def _facts(tables: dict[str, Raw], folder: Path) -> list[tuple[str, str]]:
    compared = tables["solutions"]
    facts = [("backbone", f"{compared['backbone']['model']} ({compared['backbone']['fingerprint']})")]
    facts += [("training domain", compared["training"])]
    if "efficiency" in tables:
        table = tables["efficiency"]
        facts.append(("losses", f"{table['examples']} held-out answers, {table['tokens']} tokens"))
    if "margins" in tables:
        pairs = ", ".join(f"{row['domain']} {row['pairs']}" for row in tables["margins"]["domains"])
        facts.append(("held-out pairs", pairs))
    for part in tables.get("significance", {}).get("corpus", []):
        facts.append(("plain text", f"{part['slice']}: {part['description']}; {part['used']} documents"))
    facts += [("run", f"{row['name']}: {row['run']}") for row in compared["solutions"]]
    return facts


def _tables(name: str, table: Raw) -> list[Table]:
    if name == "directions":
        return [made for made in (_updates(table), _written(table)) if made.rows]
    return []


def _updates(table: Raw) -> Table:
    return Table(
        "updates",
        "Cosines of updates",
        ["a", "b", "effective update", "B matrices"],
        [[row["a"], row["b"], row["update"], row["written"]] for row in table["updates"]],
        "Cosine in update space (ΔW, or the vector) and of what is written into the residual stream, for "
        "solutions of one shape.",
    )


def _written(table: Raw) -> Table:
    return Table(
        "written",
        "What solutions write, against careless − careful",
        ["solution", "part", "layer", "cosine"],
        [[row["solution"], row["part"], row["layer"], row["cosine"]] for row in table["written"]],
        "Cosine of the learned vector, or of the first left singular vector of the LoRA update nearest to "
        "the layer of the matrix (its size: a singular vector has no sign), with the mean difference.",
    )


def _notes(name: str, table: Raw) -> list[str]:
    return [f"{solution}: {reason}" for solution, reason in table.get("missing", {}).items()]
