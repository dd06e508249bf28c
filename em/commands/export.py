"""python -m em export"""

import argparse
import sys
from pathlib import Path

from em.commands._common import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser("export", help="write a run as what a vLLM server can load")
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a trained run")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.set_defaults(run_command=run)


def run(parsed: argparse.Namespace) -> int:
    from em.generation.export import export_vllm
    from em.quiet import quiet

    quiet()
    sys.stdout.write(export_vllm(parsed.run, parsed.out).rstrip() + "\n")
    return 0
