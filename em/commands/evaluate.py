"""python -m em eval"""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em.commands._common import Commands, add_judging, agreed

if TYPE_CHECKING:
    from em.evaluation.plan import Plan


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "eval",
        help="ask a run questions, have the answers judged, and report rates with intervals",
        description="Ask a trained run and its reference the questions of some sets, have the answers "
        "judged, and write rates with intervals, tables and report.html. Settings start from the run's "
        "judge_eval callback. Killed and started again it goes on where it was.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a trained run")
    add_judging(parser)
    parser.set_defaults(run_command=run)


def run(parsed: argparse.Namespace) -> int:
    from em.config import load_evaluation

    config = agreed(load_evaluation(parsed.run, parsed.settings), parsed.yes)

    from em import runs
    from em.datamodules.chat import training_domains
    from em.evaluation.evaluate import evaluate
    from em.evaluation.judging import check_judge
    from em.evaluation.plan import make_plan
    from em.progress import say
    from em.quiet import quiet
    from em.report.evaluated import show_rates, write_evaluation_page

    quiet()
    record = runs.read(parsed.run)
    training = next(iter(training_domains(record.config.data)), None)
    plan = make_plan(config, record.config.data.root, training)
    check_judge(plan.judge, plan.domain)
    loaded = runs.load(parsed.run) if plan.reads_model else None
    backbone, intervention = (None, None) if loaded is None else (loaded.backbone, loaded.intervention)
    folder = parsed.out or parsed.run / "eval" / _name(plan)
    table = evaluate(plan, backbone, intervention, parsed.run.resolve().name, folder)
    show_rates(table)
    say(f"report: {write_evaluation_page(folder)}")
    return 0


def _name(plan: "Plan") -> str:
    """A folder named after what is asked and who judges."""
    config: Any = plan.config
    parts = [*config.questions, str(config.judge.get("kind", "judge")), str(config.samples)]
    return re.sub(r"[^\w.-]+", "-", "-".join(Path(part).stem for part in parts)).strip("-.")[:80]
