"""python -m em labels"""

import argparse
from pathlib import Path

from em.commands._common import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "labels",
        help="write answers as a CSV file that people score",
        description="Write answers as CSV with empty columns for scores from 0 to 100, in random order and "
        "without the names of the models. Give the filled file to `python -m em agree`.",
    )
    parser.add_argument("answers", type=Path, help="folder of an evaluation, or JSONL of answers")
    parser.add_argument("out", type=Path, help="CSV file to write")
    parser.add_argument("--number", type=int, help="how many answers; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of their order and choice")
    parser.set_defaults(run_command=run)


def run(parsed: argparse.Namespace) -> int:
    from em.evaluation.stored import answers_of
    from em.measurements.labels import write_labels
    from em.progress import say

    written = write_labels(parsed.out, answers_of(parsed.answers), parsed.number, parsed.seed)
    say(f"{len(written)} answers to label: {parsed.out}")
    return 0
