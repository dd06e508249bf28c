"""python -m em compare"""

import argparse
from pathlib import Path

from em.commands._common import Commands
from em.errors import EmError


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "compare",
        help="measure trained runs on common rows and a common grid; writes OUT/report.html",
        description="Measure trained runs of one backbone side by side. Runs may be of different kinds and "
        "seeds. Settings are those of the first run's `compare` section, changed by key=value, for example "
        "draws=20 pairs=100 sections=[margins,directions].",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, and key=value settings")
    parser.add_argument("--out", type=Path, help="folder to write to; default: compare/ beside the first run")
    parser.add_argument("--conf", type=Path, help="a YAML file whose `compare` and `data` are used instead")
    parser.set_defaults(run_command=run)


def run(parsed: argparse.Namespace) -> int:
    from em.config import load_comparison

    # A run may be called lr=0.1: what is there on disk is no setting.
    settings = [text for text in parsed.runs if "=" in text and not Path(text).is_dir()]
    paths = [Path(text) for text in parsed.runs if text not in settings]
    if not paths:
        raise EmError("no run to compare; give one or more run directories")
    config = load_comparison(paths[0], parsed.conf, settings)

    from em.comparison.compare import compare
    from em.quiet import quiet

    quiet()
    out = parsed.out or paths[0].resolve().parent / "compare"
    compare(paths, out, config.compare, config.data)
    return 0
