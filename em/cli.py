"""`python -m em …`: what is not training."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from em.errors import EmError


def main(arguments: Sequence[str]) -> int:
    """Run one command; errors of this project are one message and status 1."""
    parsed = _parsed(arguments)
    try:
        return int(parsed.run_command(parsed))
    except EmError as error:
        lines = str(error).splitlines()
        text = lines[0] if len(lines) == 1 else "\n  ".join(["", *lines])
        sys.stderr.write(f"\n{type(error).__name__}: {text}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. Run the same command to go on.\n")
        return 130


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Like `parse_args`, but runs and settings may also stand behind an option."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest and ("runs" not in parsed or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.runs += rest
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m em", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    compare = commands.add_parser(
        "compare",
        help="measure trained runs on common rows and a common grid; writes OUT/report.html",
        description="Measure trained runs of one backbone side by side. Runs may be of different kinds and "
        "seeds. Settings are those of the first run's `compare` section, changed by key=value, for example "
        "draws=20 pairs=100 sections=[margins,directions].",
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help="run directories, and key=value settings")
    compare.add_argument(
        "--out", type=Path, help="folder to write to; default: compare/ beside the first run"
    )
    compare.add_argument("--conf", type=Path, help="a YAML file whose `compare` and `data` are used instead")
    compare.set_defaults(run_command=_compare)
    report = commands.add_parser("report", help="draw the page of a comparison again from its tables")
    report.add_argument("folder", type=Path)
    report.set_defaults(run_command=_report)
    direction = commands.add_parser(
        "direction", help="mean-difference direction of judged answers: misaligned minus aligned"
    )
    direction.add_argument("run", type=Path, help="the run that gave the answers")
    direction.add_argument("answers", help='JSONL of {"messages": […], "aligned": 0–100, "coherent": 0–100}')
    direction.add_argument("--out", type=Path, help="default: directions/misaligned.safetensors in the run")
    direction.set_defaults(run_command=_direction)
    return parser


def _compare(parsed: argparse.Namespace) -> int:
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


def _report(parsed: argparse.Namespace) -> int:
    from em.progress import say
    from em.report.comparison import write_report

    say(f"report: {write_report(parsed.folder)}")
    return 0


def _direction(parsed: argparse.Namespace) -> int:
    from em.comparison.judged import judged_direction
    from em.progress import say
    from em.quiet import quiet

    quiet()
    out = parsed.out or parsed.run / "directions" / "misaligned.safetensors"
    judged_direction(parsed.run, parsed.answers, out)
    say(f"direction: {out}")
    return 0
