"""A suite as a SLURM array job, and as the definition of a W&B sweep. Nothing is submitted from here."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from em.config import Suite
from em.errors import ConfigError
from em.suite import TRAIN

OPTION = re.compile(r"--(?P<name>[a-z][a-z0-9-]*)(=(?P<value>\S(.*\S)?))?")
SCRIPT = """\
#!/bin/bash
# {conf}: one member to a task. A task that is stopped saves itself, and goes on when this script
# is submitted again or SLURM requeues it; one whose member is finished ends at once.
{directives}
set -eu
cd {here}
{environment}members=(
{members}
)
# srun does not take this over by itself.
if [ -n "${{SLURM_CPUS_PER_TASK:-}}" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi
exec srun {command} --member="${{members[$SLURM_ARRAY_TASK_ID]}}"
"""


def training_command(conf: Path, overrides: Sequence[str]) -> list[str]:
    """What trains a member, but for its name: this Python, train.py, the file and the overrides."""
    script = TRAIN.relative_to(Path.cwd()) if TRAIN.is_relative_to(Path.cwd()) else TRAIN
    return [sys.executable, str(script), str(conf), *overrides]


def sbatch_script(
    suite: Suite, overrides: Sequence[str], folder: Path, options: Sequence[str], at_once: int
) -> str:
    """The array job that trains a member in each task.

    Args:
        folder: where its outputs go; made absolute.
        options: `--name=value`, written after our own, so that SLURM takes them instead.
        at_once: tasks that run at the same time, at most.

    Raises:
        ConfigError: an option cannot be written, or the members cannot share one job.
    """
    _check_paths(suite.path, folder.resolve(), Path.cwd())
    output = shlex.quote(str(folder.resolve()).replace("%", "%%") + "/slurm-%A_%a.txt")
    directives = [
        f"--job-name={re.sub(r'[^A-Za-z0-9._-]+', '-', suite.name)}",
        f"--array=0-{len(suite.members) - 1}%{min(at_once, len(suite.members))}",
        f"--output={output}",
        "--open-mode=append",
        "--signal=TERM@120",
        "--requeue",
        *_size(suite),
        *map(_checked_option, options),
    ]
    data = os.environ.get("EM_DATA")
    return SCRIPT.format(
        conf=suite.path,
        directives="\n".join(f"#SBATCH {line}" for line in directives),
        here=shlex.quote(str(Path.cwd())),
        environment=f"export EM_DATA={shlex.quote(data)}\n" if data else "",
        members="\n".join(f"  {member}" for member in suite.members),  # plain names, see em/config/members.py
        command=shlex.join(training_command(suite.path, overrides)),
    )


def wandb_definition(suite: Suite, overrides: Sequence[str]) -> str:
    """The sweep as W&B takes it: one parameter, `member`, that an agent gives to train.py."""
    wandb = next(iter(suite.members.values())).wandb
    command = training_command(suite.path, overrides)
    definition: dict[str, Any] = {
        "name": suite.name,
        "project": wandb.project,
        **({"entity": wandb.entity} if wandb.entity else {}),
        "program": command[1],
        "method": "grid",
        "command": [*command, "${args}"],
        "parameters": {"member": {"values": list(suite.members)}},
    }
    return str(yaml.safe_dump(definition, sort_keys=False, allow_unicode=True, width=100))


def _checked_option(text: str) -> str:
    match = OPTION.fullmatch(text)
    if match is None or not text.isprintable():
        raise ConfigError(f"--sbatch={text!r}: expected one line such as --sbatch=--time=04:00:00")
    if match["name"] == "array":
        raise ConfigError(
            f"--sbatch={text}: the array has a task for each member; use --at-once=N to limit it"
        )
    return text if match["value"] is None else f"--{match['name']}={shlex.quote(match['value'])}"


def _size(suite: Suite) -> list[str]:
    """Nodes and processes of a task, where the configuration counts them."""
    sizes = {(one.trainer.num_nodes, str(one.trainer.devices)) for one in suite.members.values()}
    if len(sizes) > 1:
        told = ", ".join(f"{nodes} × {devices}" for nodes, devices in sorted(sizes))
        raise ConfigError(
            f"the members differ in trainer.num_nodes × trainer.devices ({told}), but all tasks of an array "
            "job get the same; write a file for each size"
        )
    nodes, devices = sizes.pop()
    count = [f"--ntasks-per-node={devices}"] if devices.isdigit() else []
    return [f"--nodes={nodes}", *count]


def _check_paths(*paths: Path) -> None:
    for path in paths:
        if not str(path).isprintable():
            raise ConfigError(f"{str(path)!r}: cannot stand in a script; rename it")
