"""What became of the members of a suite, read from their run directories; nothing is changed."""

import fcntl
import json
from typing import Any

from rich.console import Console

from em.building import run_directory
from em.config import Config, Suite
from em.errors import RunError
from em.progress import clock, is_main_process, say
from em.runs import RunDirectory
from em.suite import Outcome


def show_status(suite: Suite, console: Console | None = None) -> None:
    """Print a row for each member: finished, running, interrupted, failed, not started, or in the way."""
    if not is_main_process():
        return
    console = console or Console(highlight=False, soft_wrap=True)
    states = {name: member_state(config) for name, config in suite.members.items()}
    width = max(map(len, states))
    for name, (state, detail) in states.items():
        # No table: it would fold an error into a narrow column.
        row = f"{name:{width}}  {state:11}  {detail}".rstrip()
        console.print(row.replace("\n", "\n" + " " * (width + 15)), markup=False)
    done = sum(state == "finished" for state, _ in states.values())
    console.print(f"{done} of {len(states)} finished")


def finished_members(suite: Suite) -> tuple[list[Outcome], list[str]]:
    """The members that are finished, and the names of those that are not, which are told.

    Raises:
        RunError: none is.
    """
    states = {name: member_state(config) for name, config in suite.members.items()}
    rest = [name for name, (state, _) in states.items() if state != "finished"]
    if len(rest) == len(states):
        raise RunError(
            f"no member of {suite.path} is finished, so there is nothing to draw; train them first"
        )
    for name in rest:
        state, detail = states[name]
        say(f"left out: {name}: {state}" + (f": {detail}" if detail else ""))
    kept = [name for name in suite.members if name not in rest]
    return [
        Outcome(name, run_directory(suite.members[name]), config=suite.members[name]) for name in kept
    ], rest


def member_state(config: Config) -> tuple[str, str]:
    """The state of a member in one or two words, and what there is to say of it."""
    run = run_directory(config)
    try:
        manifest = run.manifest()
        state = run.state(config)
    except RunError as error:
        return "in the way", str(error)
    if state == "fresh":
        return "not started", ""
    if state == "finished":
        return "finished", f"in {clock(float(manifest.get('wall_seconds', 0)))}"
    if _busy(run):
        return "running", _progress(run, manifest)
    if manifest.get("status") == "failed":
        return "failed", str(manifest.get("error"))
    return "interrupted", _progress(run, manifest)


def _busy(run: RunDirectory) -> bool:
    """Whether a process holds the directory."""
    try:
        with (run.path / ".lock").open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _progress(run: RunDirectory, manifest: dict[str, Any]) -> str:
    """How far it is by its last whole line of metrics; another process may be writing the next one."""
    lines = run.metrics.read_text(encoding="utf-8").split("\n")[:-1] if run.metrics.is_file() else []
    step = json.loads(lines[-1])["step"] if lines else 0
    steps = manifest.get("steps")
    return f"after step {step}" + (f" of {steps}" if steps else "")
