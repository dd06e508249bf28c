"""The table on a terminal and as markdown, and the page docs/performance.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from rich.table import Table

from benchmarks.results import Result, Summary, largest_difference, median, summary, verdict
from benchmarks.rows import Target

COLUMNS = ["work", "against", "ours", "peer", "ratio (min to max)", "target", ""]
TEMPLATE = "performance.md.j2"
# Why a row falls short on a machine, in words: the numbers of the page say by how much.
MACHINE_BOUND = (
    "Our step runs at the share of the matmul limit in the row `limit`, so what is left is arithmetic: "
)
REASONS = {
    "kl": (
        MACHINE_BOUND + "padding, the shared system prompt, logits at prompt tokens and the reference's "
        "passes are gone; forward and backward over the rest of the rows are the same for both, and no exact "
        "way around them was found."
    ),
    "vector": (
        MACHINE_BOUND + "the lower half of the model, the reference's passes and padding are gone; forward "
        "and backward through the upper half and the head at answer positions remain. The peer's backward "
        "pass ends at the vector as well."
    ),
    "start": (
        "Imports take about ten seconds, most of them Lightning's own (torchmetrics, torch._dynamo; listed "
        "above). The quickstart's first step comes after the states of the frozen model are stored, which "
        "later steps and the second member then read."
    ),
    "limit": (
        "The share is of what bare products reach with nothing between them; norms, rotary angles, attention "
        "weights, copies between layouts and the optimizer are in the step too, as the profile shows."
    ),
}


def lines(results: Sequence[Result]) -> list[list[str]]:
    """Cells of the table, one line for each target of each row."""
    return [_line(result, target) for result in results for target in result.row.targets]


def _line(result: Result, target: Target) -> list[str]:
    scale = "" if result.settings["scale"] == "full" else f" ({result.settings['scale']} size)"
    arch = "" if result.settings["arch"] == "smollm2" else f" [{result.settings['arch']}]"
    ours, peer = (_amount(result, side, target) for side in ("ours", "peer"))
    return [
        f"{result.row.work}{arch}{scale}: {_what(target)}",
        result.row.against,
        ours,
        peer if result.row.peer else "",
        _ratio(target, summary(result, target)),
        target.text(),
        verdict(result, target),
    ]


def _what(target: Target) -> str:
    return {"speed": "speed", "memory": "peak memory", "seconds": "time", "share": "share"}[target.measure]


def _amount(result: Result, side: str, target: Target) -> str:
    """What a side took or did, in its unit: tokens per second where there are tokens."""
    if target.measure == "memory":
        peak = median(result, side, "peak_mb")
        return "" if peak is None else f"{peak:,.0f} MB"
    if target.measure == "share":
        done = median(result, side, "gflops")
        return "" if done is None else f"{done:,.0f} GFLOP/s"
    seconds = median(result, side, "seconds")
    if seconds is None:
        return ""
    tokens = median(result, side, "tokens")
    return f"{seconds:,.1f} s" if tokens is None else f"{tokens / seconds:,.0f} tokens/s"


def _ratio(target: Target, found: Summary | None) -> str:
    if found is None:
        return ""
    if target.measure == "share":
        return f"{found.median:.0%} ({found.low:.0%} to {found.high:.0%})"
    unit = " s" if target.measure == "seconds" else "×"
    return f"{found.median:.2f}{unit} ({found.low:.2f} to {found.high:.2f})"


def show(results: Sequence[Result], console: Console) -> None:
    """Print the table, and below it what went wrong."""
    table = Table(*[column or "verdict" for column in COLUMNS], show_lines=True)
    for cells in lines(results):
        table.add_row(*[cell.replace("[", "\\[") for cell in cells])
    console.print(table)
    for text in machines(results):
        console.print(text, markup=False)
    for result in results:
        for problem in result.problems:
            console.print(f"{result.row.name}: {problem}", markup=False)


def markdown_table(results: Sequence[Result]) -> str:
    rows = [COLUMNS, ["---"] * len(COLUMNS), *lines(results)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in rows)


def machines(results: Sequence[Result]) -> list[str]:
    """Each machine in a line, with its matmul rate around every row."""
    found = dict.fromkeys(_machine(result.header["machine"]) for result in results)
    rates = [
        f"{result.row.name} {_rates(result.header['machine'])} before, {_rates(result.after)} after"
        for result in results
        if result.after
    ]
    return [*found, *([f"matmul rate, GFLOP/s fp32 (bf16): {'; '.join(rates)}"] if rates else [])]


def _machine(machine: dict[str, Any]) -> str:
    accelerator = f", {machine['accelerator']}" if "accelerator" in machine else ""
    return (
        f"{machine['processor']} ({machine['instructions']}), {machine['cores']} cores, "
        f"{machine['threads']} threads, {machine['memory_gb']} GB{accelerator}, "
        f"Python {machine['python']}, torch {machine['torch']}"
    )


def _rates(machine: dict[str, Any]) -> str:
    return f"{machine['rates']['fp32']:.0f} ({machine['rates']['bf16']:.0f})"


def performance_page(results: Sequence[Result]) -> str:
    """docs/performance.md: the template's text with the table, the machine and the profile in it."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    by_name = {result.row.name: result for result in results}
    return environment.get_template(TEMPLATE).render(
        table=markdown_table(results),
        machines=machines(results),
        commands=list(dict.fromkeys(" ".join(result.header["command"]) for result in results)),
        data=sorted({result.settings["data"] for result in results}),
        differences=[(result.row.name, largest_difference(result)) for result in results],
        missed=[
            (result.row, target, summary(result, target))
            for result in results
            for target in result.row.targets
            if verdict(result, target) == "not reached"
        ],
        reasons=REASONS,
        limit=_last(by_name.get("limit")),
        start=_last(by_name.get("start")),
        problems=[(result.row.name, problem) for result in results for problem in result.problems],
    )


def _last(result: Result | None) -> dict[str, Any] | None:
    found = [] if result is None else result.of("ours")
    return found[-1] if found else None
