"""The members of a suite side by side on the terminal."""

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from em.progress import is_main_process

MOST_COLUMNS = 4  # with more members than this, each gets a row


def show(compared: dict[str, Any], console: Console | None = None) -> None:
    """Print the comparison: a row per domain and three columns per member, or with many a row per member."""
    if not is_main_process():
        return
    console = console or Console(highlight=False)
    good = {name: member for name, member in compared["members"].items() if "error" not in member}
    rows: list[dict[str, Any]] = next(
        (member["domains"] for member in good.values() if member["domains"]), []
    )
    if rows:
        console.print((_table if len(good) <= MOST_COLUMNS else _long_table)(good, rows))
        console.print(
            "Loss on held-out answers in nats per token: of the reference (before), of the\n"
            "adapted model (after); shift = after − before, ± half a 95% interval over\n"
            "prompts; KL(reference ‖ adapted) on the same tokens.",
            style="dim",
        )
    said = {name: member["behaviour"] for name, member in good.items() if member.get("behaviour")}
    if said:
        console.print((_rates if len(said) <= MOST_COLUMNS else _long_rates)(said))
        console.print(
            "Share of judged answers that are misaligned (aligned < 30 and coherent > 50 by default), with\n"
            "its 95% interval over questions. What was said, and who judged it: the report.",
            style="dim",
        )
    for name, member in compared["members"].items():
        if "error" in member:
            console.print(f"{name}: failed: {member['error']}", markup=False)
        else:
            numbers = f"norm {member['norm']:.3f}, {member['tokens_per_second']:.0f} tokens/s"
            console.print(f"{name}: {numbers}, {member['run']}", markup=False)


def _table(members: dict[str, Any], rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    table.add_column("domain", no_wrap=True)
    table.add_column("\nbefore", justify="right", no_wrap=True)
    for name in members:
        table.add_column(f"[bold]{escape(name)}[/bold]\nafter", justify="right", no_wrap=True)
        table.add_column("\nshift", justify="right", no_wrap=True)
        table.add_column("\nKL", justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: not row["training"]):
        cells = [_domain(row), f"{row['loss_reference']:.3f}"]
        for member in members.values():
            cells += _cells(member["domains"], row["domain"])
        table.add_row(*cells)
    table.caption = "* the training domain"
    table.caption_justify = "left"
    return table


def _long_table(members: dict[str, Any], rows: list[dict[str, Any]]) -> Table:
    """A row for each member, shift and KL for each domain."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    table.add_column("member", no_wrap=True)
    ordered = sorted(rows, key=lambda row: not row["training"])
    for row in ordered:
        table.add_column(f"{_domain(row)}\nshift", justify="right", no_wrap=True)
        table.add_column("\nKL", justify="right", no_wrap=True)
    for name, member in members.items():
        cells = [escape(name)]
        for row in ordered:
            cells += _cells(member["domains"], row["domain"])[1:]
        table.add_row(*cells)
    table.caption = "* the training domain"
    table.caption_justify = "left"
    return table


def _domain(row: dict[str, Any]) -> str:
    return escape(row["domain"]) + (" *" if row["training"] else "")


def _rates(said: dict[str, list[dict[str, Any]]]) -> Table:
    """A row for each question set: the reference, then each member."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for name in ("questions", "reference", *said):
        table.add_column(escape(name), justify="left" if name == "questions" else "right", no_wrap=True)
    first = next(iter(said.values()))
    for asked in dict.fromkeys(row["set"] for row in first):
        cells = [_rate(first, asked, "reference"), *(_rate(rows, asked, "run") for rows in said.values())]
        table.add_row(escape(asked), *cells)
    return table


def _long_rates(said: dict[str, list[dict[str, Any]]]) -> Table:
    """A row for the reference and each member, a column for each question set."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    first = next(iter(said.values()))
    sets = list(dict.fromkeys(row["set"] for row in first))
    for name in ("member", *sets):
        table.add_column(escape(name), justify="left" if name == "member" else "right", no_wrap=True)
    table.add_row("reference", *(_rate(first, asked, "reference") for asked in sets))
    for name, rows in said.items():
        table.add_row(escape(name), *(_rate(rows, asked, "run") for asked in sets))
    return table


def _rate(rows: list[dict[str, Any]], asked: str, of: str) -> str:
    row = next((row for row in rows if (row["set"], row["of"]) == (asked, of)), None)
    if row is None or row["rate"] is None:
        return "–"
    if row["low"] is None:
        return f"{100 * row['rate']:.0f}%"
    return f"{100 * row['rate']:.0f}% \\[{100 * row['low']:.0f}, {100 * row['high']:.0f}]"


def _cells(domains: list[dict[str, Any]], domain: str) -> list[str]:
    row = next((row for row in domains if row["domain"] == domain), None)
    if row is None:
        return ["–", "–", "–"]
    low, high = row["shift_interval"]
    return [f"{row['loss']:.3f}", f"{row['shift']:+.2f} ±{(high - low) / 2:.2f}", f"{row['kl']:.3f}"]
