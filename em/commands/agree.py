"""python -m em agree"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from em.commands._common import Commands

if TYPE_CHECKING:
    from em.datamodules.answers import Answer
    from em.judges.base import Verdict


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "agree",
        help="how far judges, and people, agree on the same answers",
        description="Compare the verdicts of judges on the same answers, and with labels that people gave: "
        "rates by rater, κ and Krippendorff's α with intervals over questions, and the answers on which they "
        "disagree most.",
    )
    parser.add_argument(
        "judged",
        nargs="+",
        type=Path,
        help="folders that `em eval` or `em judge` wrote (one of a panel is enough), and filled CSV files of "
        "`em labels`",
    )
    parser.add_argument("--out", type=Path, help="also write the figures and disagreements as JSON")
    parser.add_argument("--most", type=int, default=20, help="disagreements that are listed")
    parser.set_defaults(run_command=run)


def run(parsed: argparse.Namespace) -> int:
    from em.files import write_json
    from em.measurements.agreement import agreement_table
    from em.progress import say
    from em.report.agreement import show_agreement

    ratings, answers = _raters(parsed.judged)
    table = agreement_table(ratings, answers, most=parsed.most)
    show_agreement(table)
    if parsed.out is not None:
        write_json(parsed.out, table)
        say(f"agreement: {parsed.out}")
    return 0


def _raters(paths: list[Path]) -> tuple[dict[str, dict[str, "Verdict"]], dict[str, "Answer"]]:
    """Rater -> answer -> verdict, and the answers."""
    from em.errors import RunError
    from em.evaluation.stored import read_evaluation
    from em.measurements.agreement import ratings_of
    from em.measurements.labels import read_labels
    from em.progress import say

    tables = [path for path in paths if path.suffix.lower() == ".csv"]
    ratings: dict[str, dict[str, Verdict]] = {}
    answers: dict[str, Answer] = {}
    for path in (one for one in paths if one not in tables):
        done = read_evaluation(path)
        answers |= {one.answer.key: one.answer for one in done.judged}
        for name, own in ratings_of(done.judged).items():
            ratings[_unused(name, path, ratings)] = own
    if not answers:
        raise RunError("give at least one folder that `em eval` or `em judge` wrote, for its answers")
    for path in tables:
        name = _unused(path.stem, path, ratings)
        labels = read_labels(path, list(answers.values()), name)
        say(f"{path}: {labels.account}")
        ratings[name] = labels.ratings
    return ratings, answers


def _unused(name: str, path: Path, known: dict[str, dict[str, "Verdict"]]) -> str:
    return name if name not in known else f"{name} ({path.name})"
