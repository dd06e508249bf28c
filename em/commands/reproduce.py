"""python -m em reproduce"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from em.commands._common import Commands

if TYPE_CHECKING:
    from em.reproduce.result import Result

OUT = Path("runs/reproduce")
CLAIMS = Path("conf/reproduce/claims.yaml")


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "reproduce",
        help="an experiment of the paper: train, measure, decide its claims, write its page",
        description="Train what an experiment of the paper needs (finished runs are used again), measure it, "
        "and write OUT/MODEL/FIG/report.html with a verdict for each claim.",
    )
    parser.add_argument("figure", metavar="FIG", help="list, all, or the name of an experiment")
    parser.add_argument("settings", nargs="*", metavar="key=value", default=[], help="overrides of every run")
    parser.add_argument("--model", default="smollm2", help="of conf/reproduce/models.yaml; default smollm2")
    parser.add_argument("--out", type=Path, default=OUT, help=f"default {OUT}")
    parser.add_argument("--claims", type=Path, default=CLAIMS, help=f"default {CLAIMS}")
    parser.add_argument(
        "--finished", action="store_true", help="train nothing: use the runs that are finished"
    )
    parser.set_defaults(run_command=run)


def run(parsed: argparse.Namespace) -> int:
    if parsed.figure == "list":
        return _list()
    from em.progress import say
    from em.quiet import quiet
    from em.reproduce.claims import read_claims
    from em.reproduce.figures import named, read_figures, read_models
    from em.reproduce.run import reproduce_all

    figures, models = read_figures(), read_models()
    model = named("MODEL", parsed.model, models)
    plans = list(figures.values()) if parsed.figure == "all" else [named("FIG", parsed.figure, figures)]
    claims = read_claims(parsed.claims, {name: list(one.analyses) for name, one in figures.items()})
    quiet()
    results, failed = reproduce_all(
        plans, model, claims, parsed.out / model.name, parsed.settings, parsed.finished
    )
    for result in results:
        _show(result)
    for name, why in failed.items():
        say(f"{name} failed: {why}")
    return int(bool(failed) or any(result.failed for result in results))


def _list() -> int:
    from rich.table import Table

    from em.progress import console
    from em.reproduce.figures import read_figures, read_models

    table = Table("FIG", "", "experiment", "in the paper", "runs", box=None, pad_edge=False)
    for name, plan in read_figures().items():
        table.add_row(name, str(plan.experiment), plan.title, plan.paper, str(len(plan.members())))
    console.print(table)
    models = Table("MODEL", "needs", box=None, pad_edge=False)
    for name, model in read_models().items():
        models.add_row(name, model.needs)
    console.print()
    console.print(models)
    console.print("\nmake reproduce FIG=NAME [MODEL=smollm2]; FIG=all runs every one of them")
    return 0


def _show(result: "Result") -> None:
    """Verdicts, and where the page is."""
    from rich.markup import escape
    from rich.table import Table

    from em.progress import console, say
    from em.reproduce.claims import written

    table = Table("claim", "ours", "verdict", title=escape(result.plan.title), title_justify="left", box=None)
    numbers = result.statistics
    for claim, verdict in result.verdicts:
        ours = written(numbers.get(claim.statistic)) or "–"
        table.add_row(escape(claim.claim), escape(ours), verdict.outcome)
    console.print()
    console.print(table)
    for name, why in result.failed.items():
        say(f"{name} has nothing to say: {why}")
    say(f"page: {result.page}")
