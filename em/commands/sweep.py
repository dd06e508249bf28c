"""python -m em sweep"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from em.commands._common import Commands
from em.errors import ConfigError

if TYPE_CHECKING:
    from em.config import Suite

AT_ONCE = 8


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "sweep",
        help="train the members of a suite or sweep: here, as a SLURM array, or as a W&B sweep",
        description="Train the members of a file with `sweep` or `members`, here and one after another, "
        "and write their page. Finished ones are skipped; a failed one stops no other.",
    )
    parser.add_argument("conf", type=Path, metavar="CONF", help="YAML file with `sweep` or `members`")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        default=[],
        help="overrides as of train.py; sweep.kl.weight=[0.1,1] replaces a list, or adds one",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--slurm", action="store_true", help="write an array job instead; submits nothing")
    how.add_argument("--wandb", action="store_true", help="write a W&B sweep instead; uploads nothing")
    how.add_argument("--status", action="store_true", help="only say what became of each member")
    how.add_argument("--page", action="store_true", help="train nothing; the page of those that are finished")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="a line of the array job, such as --sbatch=--time=04:00:00; may be repeated",
    )
    parser.add_argument(
        "--at-once", type=int, metavar="N", help=f"tasks of the array job at a time; default {AT_ONCE}"
    )
    parser.set_defaults(run_command=run)


def run(parsed: argparse.Namespace) -> int:
    suite = _suite(parsed)
    if parsed.slurm:
        return _slurm(suite, parsed)
    if parsed.wandb:
        return _wandb(suite, parsed)

    from em.quiet import quiet
    from em.suite import conclude, train_members
    from em.suite_status import finished_members, show_status

    quiet()
    if parsed.status:
        show_status(suite)
        return 0
    if parsed.page:
        outcomes, rest = finished_members(suite)
        return max(conclude(suite, outcomes), int(bool(rest)))
    return train_members(suite, parsed.conf, parsed.settings)


def _suite(parsed: argparse.Namespace) -> "Suite":
    from em.config import Suite, load

    if not parsed.slurm and (parsed.sbatch or parsed.at_once is not None):
        raise ConfigError("--sbatch and --at-once are of an array job; add --slurm")
    if parsed.at_once is not None and parsed.at_once < 1:
        raise ConfigError(f"--at-once: expected at least 1, got {parsed.at_once}")
    loaded = load(parsed.conf, parsed.settings)
    if not isinstance(loaded, Suite):
        raise ConfigError(
            f"{parsed.conf} has neither `sweep` nor `members`; add a list to sweep over, for example "
            "'sweep.seed=[0,1,2]', or use train.py"
        )
    again = [name for name, config in loaded.members.items() if config.overwrite]
    if again and (parsed.slurm or parsed.wandb):
        raise ConfigError(
            f"overwrite: true would train {again[0]} anew each time its task starts, also after an "
            "interruption; leave it out"
        )
    return loaded


def _slurm(suite: "Suite", parsed: argparse.Namespace) -> int:
    from em.commands._array import sbatch_script
    from em.files import write_text
    from em.suite import suite_folder

    folder = suite_folder(suite)
    path = folder / "sweep.sbatch"
    at_once = AT_ONCE if parsed.at_once is None else parsed.at_once
    options = [text or "" for text in parsed.sbatch]  # argparse takes `--sbatch=--` for an empty list
    write_text(path, sbatch_script(suite, parsed.settings, folder, options, at_once))
    _say(f"{path}: {len(suite.members)} members, one to a task. Nothing is submitted. To submit it:")
    _say(f"    sbatch {shlex.quote(str(path))}")
    _say_afterwards(parsed)
    return 0


def _wandb(suite: "Suite", parsed: argparse.Namespace) -> int:
    from em.commands._array import wandb_definition
    from em.files import write_text
    from em.suite import suite_folder

    path = suite_folder(suite) / "sweep.wandb.yaml"
    write_text(path, wandb_definition(suite, parsed.settings))
    wandb = Path(sys.executable).with_name("wandb")
    program = shlex.quote(str(wandb) if wandb.is_file() else "wandb")
    _say(f"{path}: {len(suite.members)} members. Nothing is uploaded. To register the sweep:")
    _say(f"    {program} sweep {shlex.quote(str(path))}")
    _say("It prints the sweep's name. To train, from this folder, on as many machines as there are:")
    _say(f"    {program} agent ENTITY/PROJECT/SWEEP")
    silent = sorted({one.wandb.mode for one in suite.members.values()} - {"online"})
    if silent:
        _say(
            f"\nwandb.mode is {' or '.join(silent)}: an agent would train the members, but W&B would show "
            "none of their\nmetrics. Write the file again with wandb.mode=online to see them there."
        )
    _say_afterwards(parsed)
    return 0


def _say_afterwards(parsed: argparse.Namespace) -> None:
    again = shlex.join([sys.executable, "-m", "em", "sweep", str(parsed.conf), *parsed.settings])
    _say(f"To see how far it is, and to draw the page when it is done:\n    {again} --status")
    _say(f"    {again} --page")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
