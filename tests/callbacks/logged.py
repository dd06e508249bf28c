"""What a run logged."""

from typing import Any

from em.runs import RunDirectory


def logged(run: RunDirectory, name: str) -> list[dict[str, Any]]:
    """The rows of one callback, with its name taken off the keys."""
    rows = []
    for row in run.read_metrics():
        own = {key.partition("/")[2]: value for key, value in row.items() if key.startswith(f"{name}/")}
        if own:
            rows.append({"step": row["step"], **own})
    return rows
