"""python -m em import"""

import argparse
from pathlib import Path

from em.commands._common import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "import",
        help="make a run directory of a published LoRA (PEFT) or steering_vector.pt",
        description="Make a finished run directory of a published PEFT adapter or steering_vector.pt, "
        "so that compare, eval and chat take it. Files that could run code when read are refused.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="adapter folder, or steering_vector.pt")
    parser.add_argument(
        "settings",
        nargs="*",
        default=[],
        metavar="key=value",
        help="of backbone, data or compare, for example backbone.dtype=bfloat16",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run directory to make")
    parser.add_argument("--model", help="hub id, folder or alias, in place of the one that the files name")
    parser.add_argument("--name", help="of the run; default: the last part of RUN")
    parser.add_argument(
        "--conf", type=Path, help="a YAML file whose `data` and `compare` are recorded: rows to measure on"
    )
    parser.set_defaults(run_command=run)


def run(parsed: argparse.Namespace) -> int:
    from em.commands._imported_run import Wanted, import_run
    from em.progress import say
    from em.quiet import quiet

    quiet()
    wanted = Wanted(parsed.path, parsed.out, parsed.model, parsed.name, parsed.conf, parsed.settings)
    made = import_run(wanted)
    say(f"run: {made.path}")
    return 0
