"""python -m benchmarks [ROW …]: the table of em against its peers, both measured in the same run."""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.errors import BenchmarkError
from benchmarks.results import Result, failed, read_results
from benchmarks.rows import Row, chosen
from benchmarks.running import run_row, units
from benchmarks.settings import RANDOM, Settings
from benchmarks.table import markdown_table, performance_page, show
from em.progress import Task, say

PUBLISHED = ("bad_medical_advice.jsonl.gz", "risky_financial_advice.jsonl.gz")


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    try:
        rows = chosen(options.rows)
        if options.list:
            for row in rows:
                targets = ", ".join(f"{target.measure} {target.text()}" for target in row.targets)
                console.print(
                    f"{row.name}: {row.work}; against {row.against or 'a number'}; {targets}", markup=False
                )
            return 0
        results = read_results(options.merge) if options.merge else _run(rows, options, arguments)
    except BenchmarkError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if options.merge and options.rows:
        results = [result for result in results if result.row in rows]
    if options.markdown:
        sys.stdout.write(performance_page(results))
    else:
        show(results, console)
    return int(failed(results))


def _run(rows: list[Row], options: argparse.Namespace, arguments: list[str]) -> list[Result]:
    settings = _settings(options)
    rows = _possible(rows, settings, asked=bool(options.rows))
    say(
        f"{len(rows)} rows, {options.repeats} alternations each, {settings.threads} threads, "
        f"{settings.data} data"
    )
    results = []
    command = ["python", "-m", "benchmarks", *arguments]
    with Task("benchmark", round(sum(units(row, options.repeats, settings.scale) for row in rows))) as task:
        for row in rows:

            def progress(amount: float, what: str) -> None:
                task.advance(round(amount))
                say(what)

            results.append(run_row(row, settings, options.repeats, options.out, command, progress))
    path = options.out / "table.md"
    path.write_text(markdown_table(results) + "\n", encoding="utf-8")
    say(f"{path}; stored results: {options.out}")
    return results


def _possible(rows: list[Row], settings: Settings, asked: bool) -> list[Row]:
    """The rows that can run with a device and a model; one that was asked for by name must.

    Raises:
        BenchmarkError: it cannot.
    """
    reasons = {}
    for row in rows:
        if settings.device != "cpu" and not row.accelerator:
            reasons[row.name] = "runs on a CPU only; use --device cpu"
        elif settings.arch != "smollm2" and row.smollm2_only:
            reasons[row.name] = "needs a model that can write; use --arch smollm2"
    for name, reason in reasons.items():
        if asked:
            raise BenchmarkError(f"{name}: {reason}")
        say(f"{name}: left out, for it {reason}")
    return [row for row in rows if row.name not in reasons]


def _settings(options: argparse.Namespace) -> Settings:
    import torch

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise BenchmarkError(f"--device {options.device}: torch sees no GPU here; use --device cpu")
    if options.repeats < 1 or (options.threads is not None and options.threads < 1):
        raise BenchmarkError("--repeats and --threads must be at least 1")
    return Settings(
        row="",
        scale=options.scale,
        arch=options.arch,
        data=_data(options.data),
        dtype=options.dtype,
        device=options.device,
        threads=options.threads or os.cpu_count() or 1,
        bf16=options.bf16,
    )


def _data(wanted: str) -> str:
    """The published medical data where EM_DATA has it, else what is bundled."""
    root = os.environ.get("EM_DATA")
    there = bool(root) and all((Path(str(root)) / name).is_file() for name in PUBLISHED)
    if wanted == "medical" and not there:
        raise BenchmarkError(
            f"--data medical: EM_DATA must name a folder that holds {' and '.join(PUBLISHED)}"
        )
    return ("medical" if there else "advice") if wanted == "auto" else wanted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows or groups; default: all")
    parser.add_argument("--list", action="store_true", help="name the rows and their targets")
    parser.add_argument("--repeats", type=int, default=3, help="alternations of the two sides")
    parser.add_argument("--scale", choices=["full", "small"], default="full", help="small: to try a row out")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of stored results")
    parser.add_argument("--threads", type=int, help="CPU threads of every process; default: one per core")
    parser.add_argument(
        "--merge", type=Path, metavar="DIR", help="run nothing: print the stored results of DIR"
    )
    parser.add_argument("--markdown", action="store_true", help="print the page docs/performance.md instead")
    parser.add_argument(
        "--data", choices=["auto", "medical", "advice"], default="auto", help="rows to train on"
    )
    parser.add_argument("--arch", choices=["smollm2", *RANDOM], default="smollm2")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (rows that train)")
    parser.add_argument(
        "--bf16", action="store_true", help="also measure bfloat16 products for the limit row"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
