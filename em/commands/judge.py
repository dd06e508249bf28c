"""python -m em judge"""

import argparse
import re
from pathlib import Path

from em.commands._common import Commands, add_judging, agreed
from em.errors import ConfigError

# Settings of an evaluation that mean nothing where the answers are there already.
ASKING = (
    *("questions", "samples", "temperature", "top_p", "max_tokens", "stop", "batch_size", "endpoint"),
    *("reference", "judge_prompts", "direction"),
)


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "judge",
        help="judge any file of answers",
        description="Judge the answers of a JSONL file: rows of an evaluation, `messages` that end in an "
        "answer, or `question` and `answer`. Writes verdicts, rates and report.html.",
    )
    parser.add_argument("answers", type=Path, help="JSONL file, or the folder of an evaluation")
    add_judging(parser)
    parser.add_argument("--run", type=Path, help="the run whose reference a probe reads; default: smollm2")
    parser.set_defaults(run_command=run)


def run(parsed: argparse.Namespace) -> int:
    from em.config import load_evaluation

    foreign = [text for text in parsed.settings if re.split(r"[.=]", text)[0] in ASKING]
    if foreign:
        raise ConfigError(
            f"{', '.join(foreign)}: concerns how a run is asked, but these answers are given; use "
            "`python -m em eval`, or leave it out"
        )
    config = agreed(load_evaluation(None, parsed.settings), parsed.yes)

    from em import runs
    from em.evaluation.evaluate import judge_only
    from em.evaluation.plan import make_judging
    from em.evaluation.stored import answers_of
    from em.loading import load_backbone
    from em.progress import say
    from em.quiet import quiet
    from em.report.evaluated import show_rates, write_evaluation_page

    quiet()
    answers = answers_of(parsed.answers)
    judging = make_judging(config)
    backbone = None if parsed.run is None else load_backbone(runs.read(parsed.run).config.backbone)
    kind = str(config.judge.get("kind", "judge"))
    beside = parsed.answers if parsed.answers.is_dir() else parsed.answers.with_suffix("")
    folder = parsed.out or beside.with_name(f"{beside.name}-{kind}")
    table = judge_only(judging, answers, folder, backbone)
    show_rates(table)
    say(f"report: {write_evaluation_page(folder)}")
    return 0
