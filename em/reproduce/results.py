"""docs/results.md from run directories: every figure, interval, verdict and second of one model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from em.config.values import show
from em.config.yaml_files import read_yaml
from em.errors import ConfigError, RunError
from em.evaluation.stored import RECORD, latest, read_json
from em.figures.draw import draw
from em.figures.model import Figure, Table
from em.figures.words import number, plain
from em.files import write_text
from em.progress import clock
from em.reproduce.page import figures_of, ident
from em.reproduce.result import OUTCOMES, Result
from em.runs import RunDirectory

TEMPLATE = "results.md.j2"
SHOWN_ROWS = 40  # of a table on the page


@dataclass(frozen=True)
class Remark:
    """A paragraph about what came out, shown only while it is true.

    Args:
        when: claim -> the outcome with which it was written; any other outcome drops the paragraph.
    """

    figure: str
    when: dict[str, str]
    text: str


def read_remarks(path: Path, claims: Sequence[str]) -> list[Remark]:
    """The paragraphs of conf/reproduce/discussion.yaml.

    Args:
        claims: the ids that there are.

    Raises:
        ConfigError: all problems of the file at once.
    """
    raw = read_yaml(path)
    listed = raw.get("remarks")
    if set(raw) != {"remarks"} or not isinstance(listed, list):
        raise ConfigError(f"{path}: expected the one key remarks: with a list, got {show(raw)}")
    problems = [
        f"{path}: remarks[{at}]{line}" for at, one in enumerate(listed) for line in _wrong(one, claims)
    ]
    if problems:
        raise ConfigError(problems)
    return [Remark(one["figure"], dict(one["when"]), " ".join(one["text"].split())) for one in listed]


def _wrong(one: Any, claims: Sequence[str]) -> Iterator[str]:
    if (
        not isinstance(one, dict)
        or set(one) != {"figure", "when", "text"}
        or not isinstance(one["when"], dict)
    ):
        yield f": expected figure, when (claim -> outcome) and text, got {show(one)}"
        return
    for claim, outcome in one["when"].items():
        if claim not in claims:
            yield f".when: there is no claim {claim!r}"
        if outcome not in OUTCOMES:
            yield f".when.{claim}: expected one of {', '.join(OUTCOMES)}, got {show(outcome)}"


def write_results(results: Sequence[Result], remarks: Sequence[Remark], command: str, path: Path) -> Path:
    """Write the page, and its figures into a folder of the page's name beside it.

    Args:
        command: that writes it, for its head.

    Returns:
        the page.

    Raises:
        RunError: there is nothing to show, or a file cannot be written.
    """
    if not any(result.found for result in results):
        raise RunError("no figure was measured; run make reproduce FIG=all first")
    folder = path.with_suffix("")
    shown = [_shown(result, remarks, folder, path.parent) for result in results]
    outcomes = {outcome: sum(result.counts()[outcome] for result in results) for outcome in OUTCOMES}
    runs = {name: seconds for result in results for name, seconds in result.runs.items()}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=False,  # markdown; every cell goes through `text`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE).render(
        command=command,
        model=results[0].model.name,
        figures=shown,
        outcomes=outcomes,
        total=sum(outcomes.values()),
        runs=len(runs),
        training=clock(sum(runs.values())),
        measuring=clock(sum(sum(result.seconds.values()) for result in results)),
        slowest=[(name, clock(runs[name])) for name in sorted(runs, key=lambda one: -runs[one])[:5]],
        machine=_machine(results),
        judges=_judges(results),
    )
    write_text(path, page.rstrip() + "\n")
    return path


def _shown(result: Result, remarks: Sequence[Remark], folder: Path, base: Path) -> dict[str, Any]:
    """What the template needs of one figure; writes its drawings."""
    palette = {name: at for at, name in enumerate(result.runs)}
    images = []
    for name, figure in figures_of(result):
        file = folder / f"{ident(result.plan.name, figure.id)}.svg"
        write_text(file, draw(figure, palette).file)
        images.append((_alternative(figure), file.relative_to(base).as_posix(), name))
    outcome = {claim.id: verdict.outcome for claim, verdict in result.verdicts}
    return {
        "plan": result.plan,
        "counts": result.counts(),
        "claims": markdown(result.claims()) if result.verdicts else "",
        "images": images,
        "tables": [
            (table.title, markdown(table)) for found in result.found.values() for table in found.tables
        ],
        "notes": [text(note) for found in result.found.values() for note in found.notes],
        "failed": [(name, text(why)) for name, why in result.failed.items()],
        "remarks": [
            one.text
            for one in remarks
            if one.figure == result.plan.name and all(outcome.get(c) == v for c, v in one.when.items())
        ],
        "runs": len(result.runs),
        "training": clock(sum(result.runs.values())),
        "measuring": clock(sum(result.seconds.values())),
    }


def markdown(table: Table) -> str:
    """A table in markdown, its first rows if it is long; nothing in it is markup."""
    lines = [_row([text(name) for name in table.columns]), _row(["---"] * len(table.columns))]
    lines += [_row([text(_cell(cell)) for cell in row]) for row in table.rows[:SHOWN_ROWS]]
    if len(table.rows) > SHOWN_ROWS:
        lines.append(
            f"\nThe first {SHOWN_ROWS} of {len(table.rows)} rows; the CSV beside the report has all."
        )
    return "\n".join(lines)


def text(value: str) -> str:
    """Text that markdown shows as it is, on one line."""
    value = " ".join(plain(value).split())
    for char in "\\`*_[]<>|":
        value = value.replace(char, f"\\{char}" if char not in "<>" else f"&{'lt' if char == '<' else 'gt'};")
    return value


def _cell(cell: Any) -> str:
    return cell if isinstance(cell, str) else number(cell)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _alternative(figure: Figure) -> str:
    return text(f"{figure.title}. {figure.definition} {figure.interval}")


def _machine(results: Sequence[Result]) -> str:
    """Hardware and versions, as the runs recorded them."""
    told = []
    for manifest in _manifests(results):
        hardware, versions = manifest.get("hardware", {}), manifest.get("versions", {})
        cuda = ", ".join(map(str, hardware.get("cuda", []))) or "no GPU"
        told.append(
            f"{hardware.get('cores', '?')} cores, {cuda}, Python {manifest.get('python', '?')}, "
            f"torch {versions.get('torch', '?')}, transformers {versions.get('transformers', '?')}"
        )
    return "; ".join(dict.fromkeys(told))


def _judges(results: Sequence[Result]) -> str:
    """Who judged, by the evaluations at the end of the runs."""
    names = []
    for path in _folders(results):
        folder = latest(path)
        if folder is not None:
            names.append(str(read_json(folder / RECORD)["judge"]["name"]))
    return ", ".join(dict.fromkeys(names)) or "nobody"


def _manifests(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [RunDirectory(path).manifest() for path in _folders(results)]


def _folders(results: Sequence[Result]) -> list[Path]:
    return list(dict.fromkeys(one.run_of(name) for one in results for name in one.runs))
