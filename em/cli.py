"""`python -m em …`: what is not one training run."""

import argparse
import sys
from collections.abc import Sequence

from em.commands import (
    agree,
    card,
    chat,
    compare,
    data,
    direction,
    evaluate,
    export,
    import_,
    judge,
    labels,
    plan,
    report,
    reproduce,
    results,
    sweep,
)
from em.errors import EmError

COMMANDS = (
    reproduce,
    results,
    plan,
    sweep,
    compare,
    report,
    evaluate,
    judge,
    agree,
    labels,
    card,
    chat,
    direction,
    export,
    data,
    import_,
)


def main(arguments: Sequence[str]) -> int:
    """Run one command; errors of this project are one message and status 1."""
    parsed = _parsed(arguments)
    try:
        return int(parsed.run_command(parsed))
    except EmError as error:
        lines = str(error).splitlines()
        text = lines[0] if len(lines) == 1 else "\n  ".join(["", *lines])
        sys.stderr.write(f"\n{type(error).__name__}: {text}\n")
        if hasattr(error, "signal_number"):
            sys.stderr.write("Run the same command to go on.\n")
            return 128 + int(error.signal_number)
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. Run the same command to go on.\n")
        return 130


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Like `parse_args`, but runs and settings may also stand behind an option."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    takes_more = next((name for name in ("runs", "settings") if name in parsed), None)
    if rest and (takes_more is None or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest and takes_more is not None:
        getattr(parsed, takes_more).extend(rest)
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m em", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
