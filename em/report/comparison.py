"""The page of a comparison, from the tables in its folder."""

import json
import re
from pathlib import Path
from typing import Any

from em.errors import RunError
from em.figures.model import Table
from em.figures.sections import figures
from em.report.behaviour import behaviour_section, side_by_side
from em.report.behaviour_more import warnings
from em.report.page import Page, Section, write_page
from em.report.summary import headline, number, sentences

Raw = dict[str, Any]
# Heading, introduction, and the tables whose figures stand under it.
SECTIONS = [
    (
        "inductive-bias",
        "Efficiency, stability, significance",
        "How low the loss is at a given size of the solution; how much of the gain is lost when it is turned "
        "by noise; how much it changes predictions on text that has nothing to do with the data. Bands are "
        "for one solution alone. Whether two differ is in the tables of paired differences, because they "
        "share prompts and noise.",
        ("efficiency", "stability", "significance"),
    ),
    (
        "margins",
        "Margins without a judge",
        "Whether the model has moved towards careless answers, in its training domain and elsewhere.",
        ("margins",),
    ),
    (
        "directions",
        "Directions",
        "Which way solutions move the residual stream, and whether one direction tells answers apart.",
        ("directions",),
    ),
    (
        "interventions",
        "Steering and ablation",
        "What adding careless − careful does to a model that was never finetuned, and what is left of a "
        "solution when a direction, its own or another run's, is projected out.",
        ("steering", "ablation"),
    ),
    ("training", "Training", "How solutions grew and turned while they were trained.", ("trajectory",)),
]


# Keys without which a table cannot be drawn.
NEEDED = {
    "solutions": ("solutions", "backbone", "training"),
    "efficiency": ("solutions", "reference", "differences", "examples", "tokens"),
    "stability": ("solutions", "differences"),
    "significance": ("slices",),
    "margins": ("domains", "narrowness", "differences"),
    "directions": ("layers", "between", "matrix", "updates", "written"),
    "steering": ("coefficients", "direction", "random"),
    "ablation": ("solutions", "layers"),
    "trajectory": ("runs", "frames"),
    "behaviour": ("thresholds", "models", "rates", "differences", "points", "judge", "notes"),
    "behaviour_answers": ("answers",),
}
BEFORE_BEHAVIOUR = 2  # sections
LINK = re.compile(r'href="((?:figures|tables)/[a-z0-9_-]+\.(?:svg|png|csv))"')


def erase_report(folder: Path) -> None:
    """Remove a page and the files that it links to."""
    page = folder / "report.html"
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    page.unlink()
    for name in LINK.findall(text):
        (folder / name).unlink(missing_ok=True)


def write_report(folder: Path) -> Path:
    """Draw report.html, figures/ and tables/*.csv again from tables/*.json.

    Args:
        folder: of a comparison.

    Returns:
        the page.

    Raises:
        RunError: the folder holds no comparison, or a table cannot be read.
    """
    paths = {name: folder / "tables" / f"{name}.json" for name in NEEDED}
    tables = {name: _read(path) for name, path in paths.items() if path.is_file()}
    if "solutions" not in tables:
        raise RunError(f"{folder}: no tables/solutions.json; make it with `python -m em compare RUN…`")
    compared = tables["solutions"]
    arms = {row["name"]: row["arm"] for row in compared["solutions"]}
    groups = list(dict.fromkeys(arms.values()))
    sections = [
        Section(
            ident,
            title,
            text,
            [figure for name in names if name in tables for figure in figures(name, tables[name], arms)],
            _tables(ident, {name: tables[name] for name in names if name in tables}),
            [note for name in names if name in tables for note in _notes(tables[name])],
        )
        for ident, title, text, names in SECTIONS
    ]
    warned: list[str] = []
    said: list[str] = []
    if "behaviour" in tables and "behaviour_answers" in tables:
        behaviour, answers = tables["behaviour"], tables["behaviour_answers"]["answers"]
        source = "answers.jsonl in the eval/ folder of each run"
        warned, said = warnings(behaviour["judge"]), side_by_side(behaviour)
        made = behaviour_section(behaviour, answers, behaviour["judge"], arms=arms, source=source)
        sections.insert(BEFORE_BEHAVIOUR, made)
    page = Page(
        title=" against ".join(groups) if len(groups) <= 3 else f"{len(groups)} solutions compared",
        summary=[*sentences(tables), *said],
        facts=_facts(tables, folder),
        headline=headline(tables),
        sections=[section for section in sections if section.figures or section.tables or section.notes],
        warnings=[*compared.get("notes", []), *warned],
    )
    return write_page(page, folder, groups)


def _read(path: Path) -> Raw:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); make the comparison again") from error
    lacking = [key for key in NEEDED[path.stem] if not isinstance(table, dict) or key not in table]
    if lacking:
        raise RunError(f"{path}: lacks {', '.join(lacking)}; make the comparison again")
    return dict(table)


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


def _tables(section: str, tables: dict[str, Raw]) -> list[Table]:
    made = []
    if "directions" in tables:
        made += [_updates(tables["directions"]), _written(tables["directions"])]
    found = [row for name, table in tables.items() for row in _different(name, table)]
    made.append(_differences(section, found))
    return [table for table in made if table.rows]


def _different(name: str, table: Raw) -> list[tuple[str, Raw]]:
    """What two arms differ in: quantity and difference."""
    if name == "efficiency":
        return [("loss at equal norm, nats per token", row) for row in table["differences"]]
    if name == "stability":
        area = [("gain lost over ε, %", row) for row in table["differences"]["area"]]
        return area + [("noise half-life, ε", row) for row in table["differences"]["half_life"]]
    if name == "significance":
        return [
            (f"KL slope on {part}, nats per token and norm", row)
            for part, one in table["slices"].items()
            for row in one["differences"]
        ]
    if name == "margins":
        shifts = [
            (f"shift in {one['domain']}", row) for one in table["domains"] for row in one["differences"]
        ]
        return shifts + [("narrowness", row) for row in table["differences"]]
    return []


def _differences(section: str, found: list[tuple[str, Raw]]) -> Table:
    columns = ["quantity", "a", "b", "a − b", "low", "high", "seeds", "by seed"]
    rows: list[list[Any]] = [
        [
            what,
            *(row[key] for key in ("a", "b", "value", "low", "high", "seeds")),
            ", ".join("–" if one is None else number(one) for one in row["by_seed"]),
        ]
        for what, row in found
    ]
    return Table(
        f"{section}-differences",
        "Paired differences",
        columns,
        rows,
        "Means over seeds; 95% intervals from prompts (and draws of noise) that both sides share. Seeds are "
        "listed because the interval does not cover their choice.",
    )


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


def _notes(table: Raw) -> list[str]:
    return [f"{solution}: {reason}" for solution, reason in table.get("missing", {}).items()]
