"""python -m em judge-card"""

import argparse
import asyncio
import sys
from pathlib import Path

from em.commands._common import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "judge-card", help="how well the embedded judge does on answers that it was not trained on"
    )
    parser.add_argument("--model", default="smollm2", help="backbone that the probe reads")
    parser.add_argument("--layer", type=int, help="default: the middle one")
    parser.add_argument("--refit", action="store_true", help="fit the probe anew, which takes minutes")
    parser.add_argument("--cache", help="folder to keep fitted probes in; data/probes is the project's own")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.set_defaults(run_command=run)


def run(parsed: argparse.Namespace) -> int:
    from em.files import write_json
    from em.judges.card import card_text, judge_card
    from em.judges.probe import Probe
    from em.quiet import quiet

    quiet()
    probe = Probe(model=parsed.model, layer=parsed.layer, cache=parsed.cache, refit=parsed.refit)
    asyncio.run(probe.prepare(None, None))
    table = judge_card(probe)
    sys.stdout.write(card_text(table).rstrip() + "\n")
    if parsed.out is not None:
        write_json(parsed.out, table)
    return 0
