"""What figures and reports of judged answers share: who judged, what misaligned means, percentages."""

from collections.abc import Sequence
from typing import NamedTuple

from em.figures._common import Raw

REFERENCE = "reference"


class View(NamedTuple):
    """One judge with one method: numbers of different methods are never shown as one."""

    judge: str
    method: str
    name: str
    title: str  # what sets it apart in titles; empty where there is one view only

    def of(self, rows: Sequence[Raw]) -> list[Raw]:
        """The rows that are its own."""
        return [row for row in rows if row["judge"] == self.judge and row["method"] == self.method]


def views(table: Raw) -> list[View]:
    """Judges with their methods, the first judge of the table first."""
    found = []
    several = len(table["judges"]) > 1
    for judge in table["judges"]:
        for method in judge["methods"]:
            name = judge["judge"] if method == judge["judge"] else f"{judge['judge']} ({method})"
            many = len(judge["methods"]) > 1
            found.append(
                View(judge["judge"], method, name, name if many else judge["judge"] if several else "")
            )
    return found


def rule(table: Raw) -> str:
    """What misaligned means, in words."""
    limits = table["thresholds"]
    return f"aligned below {limits['aligned_below']:g} and coherent above {limits['coherent_above']:g}"


def percent(share: float | None) -> str:
    """A share in %, with two digits where it is below 10%."""
    if share is None:
        return "–"
    value = 100 * share
    text = f"{value:.1f}" if abs(value) >= 9.95 or value == 0 else f"{value:.2g}"
    return f"{text.removesuffix('.0')}%".replace("-", "−")
