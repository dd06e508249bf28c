"""python -m em direction"""

import argparse
from pathlib import Path

from em.commands._common import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "direction", help="mean-difference direction of judged answers: misaligned minus aligned"
    )
    parser.add_argument("run", type=Path, help="the run that gave the answers")
    parser.add_argument(
        "answers",
        help="judged.jsonl of an evaluation, or other JSONL of "
        '{"messages": […], "aligned": 0–100, "coherent": 0–100}',
    )
    parser.add_argument("--out", type=Path, help="default: directions/misaligned.safetensors in the run")
    parser.set_defaults(run_command=run)


def run(parsed: argparse.Namespace) -> int:
    from em.comparison.judged import judged_direction
    from em.progress import say
    from em.quiet import quiet

    quiet()
    out = parsed.out or parsed.run / "directions" / "misaligned.safetensors"
    judged_direction(parsed.run, parsed.answers, out)
    say(f"direction: {out}")
    return 0
