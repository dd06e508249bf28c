"""python -m em report"""

import argparse
from pathlib import Path

from em.commands._common import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser("report", help="draw a page again: of a comparison or of an evaluation")
    parser.add_argument("folder", type=Path)
    parser.set_defaults(run_command=run)


def run(parsed: argparse.Namespace) -> int:
    from em.evaluation.stored import RECORD
    from em.progress import say

    if (parsed.folder / RECORD).is_file():
        from em.report.evaluated import write_evaluation_page

        say(f"report: {write_evaluation_page(parsed.folder)}")
        return 0
    from em.report.comparison import write_report

    say(f"report: {write_report(parsed.folder)}")
    return 0
