"""python -m em results"""

import argparse
from pathlib import Path

from em.commands._common import Commands

OUT = Path("docs/results.md")


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "results",
        help="write docs/results.md from what `reproduce` left; trains and measures nothing",
        description="Write a page of every figure, interval, verdict and wall time of one model.",
    )
    parser.add_argument("--model", default="smollm2", help="default smollm2")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="default runs/reproduce")
    parser.add_argument(
        "--out", type=Path, default=OUT, help=f"default {OUT}; figures go into a folder beside"
    )
    parser.set_defaults(run_command=run)


def run(parsed: argparse.Namespace) -> int:
    from em.progress import say
    from em.reproduce.claims import read_claims
    from em.reproduce.figures import FOLDER, named, read_figures, read_models
    from em.reproduce.results import read_remarks, write_results
    from em.reproduce.run import stored_result

    model = named("MODEL", parsed.model, read_models())
    figures = read_figures()
    claims = read_claims(FOLDER / "claims.yaml", {name: list(one.analyses) for name, one in figures.items()})
    remarks = read_remarks(FOLDER / "discussion.yaml", [one.id for one in claims])
    folder = parsed.runs / model.name
    results = [stored_result(plan, model, claims, folder) for plan in figures.values()]
    command = f"python -m em results --model {model.name}"
    say(f"results: {write_results(results, remarks, command, parsed.out)}")
    return 0
