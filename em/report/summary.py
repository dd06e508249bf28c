"""What came out of a comparison, in a table and in sentences that say no more than the intervals allow."""

from typing import Any

from em.figures.model import Table

Raw = dict[str, Any]
SHOWN = 4  # sentences
SIDE_BY_SIDE = 3  # solutions; more have a row each


def headline(tables: dict[str, Raw]) -> Table:
    """The summary numbers of every solution; a few solutions stand side by side, many below each other."""
    solutions = tables["solutions"]["solutions"]
    names = [one["name"] for one in solutions]
    columns: list[tuple[str, list[Any]]] = [
        ("seed", [one["seed"] for one in solutions]),
        ("norm", [number(one["norm"]) for one in solutions]),
    ]
    for label, values in _numbers(tables):
        columns.append((label, [_with_interval(values.get(name)) for name in names]))
    rows: list[list[Any]]
    if len(names) <= SIDE_BY_SIDE:
        head, rows = ["", *names], [[label, *map(_text, values)] for label, values in columns]
    else:
        head = ["solution", *(label for label, _ in columns)]
        rows = [[name, *(values[at] for _, values in columns)] for at, name in enumerate(names)]
    return Table(
        "summary",
        "Summary",
        head,
        rows,
        "Brackets: 95% intervals. Loss in nats per token; area: mean gain lost over ε, %; half-life: ε at "
        "which half of the gain is lost; slope: KL on plain text per unit of norm, ×1000; shift: of the "
        "margin between careless and careful answers in the training domain; narrowness: shift elsewhere "
        "over that shift.",
    )


def _text(value: Any) -> str | None:
    return value if value is None else str(value)


def _numbers(tables: dict[str, Raw]) -> list[tuple[str, dict[str, Raw]]]:
    """Columns of the summary: label, and solution -> estimate."""
    found: list[tuple[str, dict[str, Raw]]] = []
    if "efficiency" in tables:
        rows = tables["efficiency"]["solutions"]
        found.append(("loss", {name: row["own"] for name, row in rows.items()}))
        found.append(("loss at equal norm", {name: row["equal_norm"] for name, row in rows.items()}))
    if "stability" in tables:
        rows = tables["stability"]["solutions"]
        found.append(("noise area, %", {name: row["area"] for name, row in rows.items()}))
        found.append(("noise half-life", {name: row["half_life"] for name, row in rows.items()}))
    for name, part in tables.get("significance", {}).get("slices", {}).items():
        slopes = {solution: _times(row["slope"], 1000.0) for solution, row in part["solutions"].items()}
        found.append((f"KL slope ×1000, {name}", slopes))
    if "margins" in tables:
        table = tables["margins"]
        own = [row for row in table["domains"] if row["training"]]
        if own:
            found.append(("margin shift", {name: row["shift"] for name, row in own[0]["solutions"].items()}))
        if table["narrowness"]:
            found.append(("narrowness", table["narrowness"]))
    return found


def number(value: float) -> str:
    """Three significant digits, with a proper minus sign."""
    return f"{value:.3g}".replace("-", "−")


def _times(estimate: Raw, factor: float) -> Raw:
    return {key: None if value is None else value * factor for key, value in estimate.items()}


def _with_interval(estimate: Raw | None) -> str | None:
    if estimate is None or estimate["value"] is None:
        return None
    if estimate["low"] is None or estimate["high"] is None:
        return number(estimate["value"])
    return f"{number(estimate['value'])} [{number(estimate['low'])}, {number(estimate['high'])}]"


def sentences(tables: dict[str, Raw]) -> list[str]:
    """One sentence for each kind of measurement and two arms, at most four."""
    rows = tables["solutions"]["solutions"]
    arms = {row["arm"] for row in rows}
    if len(arms) < 2:
        what = "One solution" if len(rows) == 1 else f"{len(rows)} seeds of one solution"
        return [f"{what}: nothing to compare with; the figures show it against the reference."]
    found: list[str] = []
    more: list[str] = []
    for row in tables.get("efficiency", {}).get("differences", []):
        found.append(
            _compared(row, "loss at equal norm", "nats per token", "more efficient", lower_wins=True)
        )
    for row in tables.get("stability", {}).get("differences", {}).get("area", []):
        found.append(_compared(row, "gain lost to noise, on average", "%", "more stable", lower_wins=True))
    for at, (name, part) in enumerate(tables.get("significance", {}).get("slices", {}).items()):
        for row in part["differences"]:
            scaled = {**row, **_times({key: row[key] for key in ("value", "low", "high")}, 1000.0)}
            what = f"KL on {name} per 1000 units of norm"
            sentence = _compared(scaled, what, "nats per token", "more significant", lower_wins=False)
            (more if at else found).append(sentence)  # further slices after the other kinds
    for row in tables.get("margins", {}).get("differences", []):
        found.append(_compared(row, "narrowness", "", "narrower", lower_wins=True))
    if len(arms) == 2:
        return [*found, *more][:SHOWN]
    return [f"{len(arms)} solutions on one grid; see the table.", *found[: SHOWN - 1]]


def _compared(row: Raw, what: str, unit: str, word: str, lower_wins: bool) -> str:
    a, b, value, low, high = (row[key] for key in ("a", "b", "value", "low", "high"))
    if value is None or low is None or high is None:
        return f"{what}: {a} and {b} cannot be compared (no interval)."
    numbers = f"{what}: {a} − {b} = {number(value)} [{number(low)}, {number(high)}] {unit}".rstrip()
    seeds = f" over {row['seeds']} seeds" if row["seeds"] > 1 else ""
    if not (value < 0 and high < 0) and not (value > 0 and low > 0):
        return f"Neither of {a} and {b} is clearly {word}: {numbers}{seeds}."
    better = a if (value < 0) == lower_wins else b
    return f"{better} is {word}: {numbers}{seeds}."
