"""Several experiments from one file, side by side."""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from em import runs
from em.backbone import Backbone
from em.building import run_directory, world_size
from em.comparison.compare import compare, up_to_date
from em.config import Config, Suite
from em.errors import EmError, RunError
from em.evaluation.stored import TABLE, latest, read_json
from em.experiment import train
from em.files import write_json
from em.loading import load_backbone
from em.progress import is_main_process, say
from em.runs import RunDirectory

logger = logging.getLogger("em")


@dataclass(frozen=True)
class Outcome:
    """What became of one member: its run, or the error that ended it.

    Args:
        config: as it was given now; the run's own may differ in what does not concern training.
    """

    name: str
    run: RunDirectory
    error: str | None = None
    config: Config | None = None


def run_suite(suite: Suite, conf: Path, overrides: Sequence[str]) -> list[Outcome]:
    """Train the members one after another; finished ones are skipped, a failed one stops no other.

    One process trains them on one backbone in memory. With several processes each member gets its own
    command, because Lightning starts the other processes by running the command again.

    Raises:
        Interrupted, KeyboardInterrupt: at once; the same command goes on.
    """
    outcomes = []
    shared: dict[str, Backbone] = {}
    for number, (name, config) in enumerate(suite.members.items(), 1):
        say(f"[{number}/{len(suite.members)}] {config.name}")
        run = run_directory(config)
        try:
            if world_size(config) > 1:
                _in_own_process(conf, name, overrides)
            else:
                train(config, _backbone(config, run, shared))
            outcomes.append(Outcome(name, run, config=config))
        except EmError as error:
            if hasattr(error, "signal_number"):
                raise
            say(f"{config.name} failed: {error}")
            outcomes.append(Outcome(name, run, str(error)))
    return outcomes


def _backbone(config: Config, run: RunDirectory, shared: dict[str, Backbone]) -> Backbone | None:
    if run.manifest().get("status") == "finished" and not config.overwrite:
        return None
    key = repr(config.backbone)
    if key not in shared:
        shared.clear()  # members with different backbones do not need both in memory
        say(f"loading {config.backbone.model}")
        shared[key] = load_backbone(config.backbone)
    return shared[key]


def _in_own_process(conf: Path, member: str, overrides: Sequence[str]) -> None:
    command = [sys.executable, sys.argv[0], str(conf), *overrides, f"--member={member}"]
    status = subprocess.run(command, env=os.environ.copy(), check=False).returncode
    if status:
        raise RunError(f"its process ended with status {status}; its own messages are above")


def report(folder: Path, outcomes: Sequence[Outcome]) -> str | None:
    """Compare the members that were trained, and write the page into the suite's folder.

    Returns:
        why there is none; the runs are safe whatever happens here.
    """
    finished = [outcome for outcome in outcomes if outcome.error is None]
    if not is_main_process() or not finished:
        return None
    paths = [outcome.run.path for outcome in finished]
    try:
        config = finished[0].config or runs.read(paths[0]).config
        if config.compare is None or not config.compare.sections:
            return None
        if up_to_date(paths, folder, config.compare, config.data):
            say(f"report: {folder / 'report.html'} is up to date")
            return None
        compare(paths, folder, config.compare, config.data)
    except EmError as error:
        return str(error)
    return None


def comparison(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The members' tables side by side, as plain data."""
    members: dict[str, Any] = {}
    for outcome in outcomes:
        if outcome.error is not None:
            members[outcome.name] = {"run": str(outcome.run.path), "error": outcome.error}
            continue
        manifest = outcome.run.manifest()
        has_table = outcome.run.table("domains").is_file()
        domains = outcome.run.read_table("domains")["domains"] if has_table else []
        members[outcome.name] = {
            "run": str(outcome.run.path),
            "norm": manifest.get("norm"),
            "tokens_per_second": manifest.get("tokens_per_second"),
            "wall_seconds": manifest.get("wall_seconds"),
            "domains": [{k: v for k, v in row.items() if k != "rows"} for row in domains],
            "behaviour": _said(outcome.run),
        }
    return {"members": members}


def _said(run: RunDirectory) -> list[dict[str, Any]]:
    """Rates of the run and of its reference at the end of training; empty where nobody was asked."""
    folder = latest(run.path)
    if folder is None:
        return []
    table = read_json(folder / TABLE)
    keys = ("set", "answers", "rate", "low", "high")
    return [
        {"of": "reference" if row["model"] == "reference" else "run", **{key: row[key] for key in keys}}
        for row in table["rates"]
        if row["judge"] == table["judge"]["name"]
    ]


def write_comparison(folder: Path, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Write comparison.json into the suite's folder."""
    compared = comparison(outcomes)
    if is_main_process():
        write_json(folder / "comparison.json", compared)
    return compared


def show(compared: dict[str, Any], console: Console | None = None) -> None:
    """Print the comparison: a row per domain, three columns per member."""
    if not is_main_process():
        return
    console = console or Console(highlight=False)
    good = {name: member for name, member in compared["members"].items() if "error" not in member}
    rows: list[dict[str, Any]] = next(
        (member["domains"] for member in good.values() if member["domains"]), []
    )
    if rows:
        console.print(_table(good, rows))
        console.print(
            "Loss on held-out answers in nats per token: of the reference (before), of the\n"
            "adapted model (after); shift = after − before, ± half a 95% interval over\n"
            "prompts; KL(reference ‖ adapted) on the same tokens.",
            style="dim",
        )
    said = {name: member["behaviour"] for name, member in good.items() if member.get("behaviour")}
    if said:
        console.print(_rates(said))
        console.print(
            "Share of judged answers that are misaligned (aligned < 30 and coherent > 50 by default), with\n"
            "its 95% interval over questions. What was said, and who judged it: the report.",
            style="dim",
        )
    for name, member in compared["members"].items():
        if "error" in member:
            console.print(f"{name}: failed: {member['error']}", markup=False)
        else:
            numbers = f"norm {member['norm']:.3f}, {member['tokens_per_second']:.0f} tokens/s"
            console.print(f"{name}: {numbers}, {member['run']}", markup=False)


def _table(members: dict[str, Any], rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    table.add_column("domain", no_wrap=True)
    table.add_column("\nbefore", justify="right", no_wrap=True)
    for name in members:
        table.add_column(f"[bold]{escape(name)}[/bold]\nafter", justify="right", no_wrap=True)
        table.add_column("\nshift", justify="right", no_wrap=True)
        table.add_column("\nKL", justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: not row["training"]):
        cells = [escape(row["domain"]) + (" *" if row["training"] else ""), f"{row['loss_reference']:.3f}"]
        for member in members.values():
            cells += _cells(member["domains"], row["domain"])
        table.add_row(*cells)
    table.caption = "* the training domain"
    table.caption_justify = "left"
    return table


def _rates(said: dict[str, list[dict[str, Any]]]) -> Table:
    """A row for each question set: the reference, then each member."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for name in ("questions", "reference", *said):
        table.add_column(escape(name), justify="left" if name == "questions" else "right", no_wrap=True)
    first = next(iter(said.values()))
    for asked in dict.fromkeys(row["set"] for row in first):
        cells = [_rate(first, asked, "reference"), *(_rate(rows, asked, "run") for rows in said.values())]
        table.add_row(escape(asked), *cells)
    return table


def _rate(rows: list[dict[str, Any]], asked: str, of: str) -> str:
    row = next((row for row in rows if (row["set"], row["of"]) == (asked, of)), None)
    if row is None or row["rate"] is None:
        return "–"
    if row["low"] is None:
        return f"{100 * row['rate']:.0f}%"
    return f"{100 * row['rate']:.0f}% \\[{100 * row['low']:.0f}, {100 * row['high']:.0f}]"


def _cells(domains: list[dict[str, Any]], domain: str) -> list[str]:
    row = next((row for row in domains if row["domain"] == domain), None)
    if row is None:
        return ["–", "–", "–"]
    low, high = row["shift_interval"]
    return [f"{row['loss']:.3f}", f"{row['shift']:+.2f} ±{(high - low) / 2:.2f}", f"{row['kl']:.3f}"]
