"""python -m em plan"""

import argparse
import sys
from pathlib import Path
from typing import Any

from em.commands._common import Commands
from em.errors import ConfigError, EmError


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "plan",
        help="memory and time of a run, before it is started",
        description="Peak memory of each device and time per step of a configuration, from the model's sizes "
        "alone: nothing is loaded. key=value changes the configuration, for example "
        "backbone.model=Qwen/Qwen2.5-14B-Instruct backbone.dtype=bfloat16.",
    )
    parser.add_argument("conf", nargs="?", type=Path, metavar="CONF", help="a YAML file, as for training")
    parser.add_argument("settings", nargs="*", metavar="key=value", default=[], help="of the configuration")
    parser.add_argument("--device", help="cpu, A100-40GB, A100-80GB, H100-80GB, H200, L40S, RTX-4090")
    parser.add_argument("--utilisation", type=float, help="share of the device's rate; default 0.4")
    parser.add_argument("--tokens", type=_count, help="tokens per row, in place of those of the data")
    parser.add_argument("--rows", type=_count, help="rows per epoch where --tokens is given; default 7000")
    parser.add_argument("--json", action="store_true", help="for other programs")
    parser.add_argument("--table", action="store_true", help="docs/scale.md: published sizes on H100s")
    parser.set_defaults(run_command=run)


def run(parsed: argparse.Namespace) -> int:
    if parsed.table:
        from em.planning.scale import page

        if parsed.conf is not None:
            raise ConfigError("--table is a page of its own; leave the configuration out")
        sys.stdout.write(page())
        return 0
    if parsed.conf is None:
        raise ConfigError("name a configuration, for example conf/medical/narrow_lora.yaml")

    from em.planning.configuration import configurations
    from em.planning.plan import UTILISATION
    from em.quiet import quiet

    quiet()
    share = UTILISATION if parsed.utilisation is None else parsed.utilisation
    plans = [_plan(one, parsed, share) for one in configurations(parsed.conf, parsed.settings).values()]
    _show(plans, parsed.json)
    return 0


def _plan(config: Any, parsed: argparse.Namespace, share: float) -> Any:
    from em.planning.devices import default_device, named
    from em.planning.plan import make_plan, processes_of
    from em.planning.rows import assumed, measured
    from em.progress import say

    if parsed.rows is not None and parsed.tokens is None:
        raise ConfigError("--rows: needs --tokens; without it rows are those of the data")
    device = named(parsed.device) if parsed.device else default_device(config)
    processes = processes_of(config)
    work = assumed(config, processes, parsed.tokens, parsed.rows)
    if parsed.tokens is None:
        try:
            work = measured(config, processes)
        except EmError as error:
            say(f"{config.name}: rows are assumed, because those of the data are not at hand: {error}")
    return make_plan(config, work, device, share)


def _show(plans: list[Any], as_json: bool) -> None:
    import json

    from rich.console import Console

    from em.planning.pages import lines, memory_table

    if as_json:
        sys.stdout.write(json.dumps([plan.to_dict() for plan in plans], indent=2) + "\n")
        return
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True, emoji=False)
    for plan in plans:
        console.print(memory_table(plan))
        for line in lines(plan):
            console.print(line, markup=False)
        console.print()


def _count(text: str) -> int:
    count = int(text) if text.isdigit() else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return count
