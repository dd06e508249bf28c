"""Several experiments from one file, side by side."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em import runs
from em.backbone import Backbone
from em.building import run_directory, world_size
from em.comparison.compare import compare, up_to_date
from em.config import Config, Suite
from em.errors import EmError, Interrupted, RunError
from em.evaluation.stored import TABLE, latest, read_json
from em.experiment import train
from em.files import write_json
from em.loading import load_backbone
from em.progress import is_main_process, say
from em.runs import RunDirectory
from em.suite_tables import show

logger = logging.getLogger("em")
TRAIN = Path(__file__).resolve().parents[1] / "train.py"
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # statuses of a run that saved itself


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


def train_members(suite: Suite, conf: Path, overrides: Sequence[str]) -> int:
    """Train all members, print them side by side and write the page.

    Returns:
        the exit status: 1 when a member or the page failed.

    Raises:
        Interrupted, KeyboardInterrupt: at once; the same command goes on.
    """
    return conclude(suite, run_suite(suite, conf, overrides))


def conclude(suite: Suite, outcomes: Sequence[Outcome]) -> int:
    """Print what became of the members, write comparison.json and the page; the exit status."""
    folder = suite_folder(suite)
    show(write_comparison(folder, outcomes))
    without_page = report(folder, outcomes)
    if without_page is not None:
        say(f"\nThe runs are finished, but their report is not: {without_page}")
    failed = [outcome.name for outcome in outcomes if outcome.error is not None]
    if failed:
        say(
            f"{len(failed)} of {len(outcomes)} failed: {', '.join(failed)}; the same command tries them again"
        )
    return int(bool(failed) or without_page is not None)


def suite_folder(suite: Suite) -> Path:
    """Where the page of a suite and the runs of its members lie."""
    return Path(next(iter(suite.members.values())).runs_dir) / suite.name


def run_suite(suite: Suite, conf: Path, overrides: Sequence[str]) -> list[Outcome]:
    """Train the members one after another; finished ones are skipped, a failed one stops no other.

    One process trains them on one backbone in memory. With several processes each member gets its own
    command, because Lightning starts the other processes by running the command again.

    Raises:
        RunError: the suite's folder is the run of an experiment.
        Interrupted, KeyboardInterrupt: at once; the same command goes on.
    """
    folder = suite_folder(suite)
    if (folder / "manifest.json").exists():
        raise RunError(f"{folder} is the run of one experiment; give its members another folder: name=…")
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
        except Exception as error:  # of torch or the system: the other members may well be trained
            logger.exception("%s failed", config.name)
            shared.clear()  # it may not have been left as it was
            outcomes.append(Outcome(name, run, _noted(run, config, error)))
    return outcomes


def _noted(run: RunDirectory, config: Config, error: Exception) -> str:
    """An error that is not one of ours, with its type, as it is told and kept in the manifest."""
    text = f"{type(error).__name__}: {error}"
    say(f"{config.name} failed: {text}")
    with suppress(EmError):  # a disk that is full is told of once
        if run.manifest().get("status") == "failed":
            run.update_manifest(error=text)
    return text


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
    command = [sys.executable, str(TRAIN), str(conf), *overrides, f"--member={member}"]
    status = subprocess.run(command, env=os.environ.copy(), check=False).returncode
    if status in STOPPED:
        raise Interrupted(f"{member}: its process was stopped and has saved itself", status - 128)
    if status < 0:
        raise RunError(f"its process was killed by signal {-status}")
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
