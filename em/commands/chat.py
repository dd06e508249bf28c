"""python -m em chat"""

import argparse
from pathlib import Path

from em.commands._common import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser("chat", help="talk to a run, reference and adapted model side by side")
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a trained run")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=200, help="longest answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--system", help="system prompt")
    parser.set_defaults(run_command=run)


def run(parsed: argparse.Namespace) -> int:
    from em import runs
    from em.chatting import Conversation, chat
    from em.generation.sampling import Sampling
    from em.progress import say
    from em.quiet import quiet

    quiet()
    sampling = Sampling(parsed.temperature, max_tokens=parsed.tokens, seed=parsed.seed)
    record = runs.read(parsed.run)
    say(f"loading {record.config.backbone.model}")
    chat(Conversation(runs.load(parsed.run), sampling, parsed.system))
    return 0
