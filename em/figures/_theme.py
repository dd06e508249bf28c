"""Colours, markers and sizes of all figures, for light and dark surfaces."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from em.figures.model import Role

SLOTS = 8
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif'
# Light and dark value of each. Ink and muted reach 4.5 : 1 on the surface, series and heat 3 : 1; any two
# series stay apart in simulated protanopia and deuteranopia. tests/figures/test_draw.py computes all of it.
COLOURS = {
    "ink": ("#1b1f24", "#e6e8eb"),
    "muted": ("#5b636d", "#a3abb5"),
    "grid": ("#dfe3e7", "#31373e"),
    "surface": ("#ffffff", "#15181c"),
    "positive": ("#0b6bd0", "#3585cf"),
    "negative": ("#c4700a", "#d06a2c"),
    "series-1": ("#0b6bd0", "#4f90f0"),
    "series-2": ("#c4700a", "#e58a3a"),
    "series-3": ("#7a1f6d", "#c77fc2"),
    "series-4": ("#159a74", "#3fd9b0"),
    "series-5": ("#6f97b5", "#a9d6f7"),
    "series-6": ("#9c3418", "#c9604c"),
    "series-7": ("#2a2c8f", "#6454d0"),
    "series-8": ("#a08a50", "#f4dc7d"),
}
Theme = dict[str, str]
LIGHT: Theme = {name: light for name, (light, _) in COLOURS.items()}
# Stand-ins that no drawing would use, replaced by CSS variables in the SVG.
STAND_INS: Theme = {name: f"#01f{at:02x}e" for at, name in enumerate(COLOURS)}
MARKERS = "osD^vPX*"
DASHES: dict[Role, list[tuple[float, ...]]] = {
    "control": [(4, 2), (6, 2, 1, 2), (2, 1.5), (8, 3)],
    "reference": [(1, 1.6)],
}
STRONGEST = 0.6

RC: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.parse_math": False,  # a "$" in a run's name is a dollar sign
    "text.usetex": False,
    "axes.unicode_minus": True,
    "svg.fonttype": "none",
    "path.simplify": True,
}


def css() -> str:
    """The colours and the font as CSS variables, following the reader's colour scheme; light in print."""
    light, dark = (" ".join(f"--{name}: {pair[at]};" for name, pair in COLOURS.items()) for at in (0, 1))
    return (
        f":root {{ color-scheme: light dark; --font: {FONT}; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        "@media print { :root { color-scheme: light; } }\n"
    )


@dataclass(frozen=True)
class Look:
    """How one group of series is drawn: colour, dashes and marker; a control's marker is hollow."""

    colour: str
    dashes: tuple[float, ...] | None
    marker: str
    width: float
    hollow: str | None

    def line(self) -> dict[str, Any]:
        """Keywords of a Line2D."""
        style: Any = (0, self.dashes) if self.dashes else "-"
        return {"color": self.colour, "linestyle": style, "linewidth": self.width, **self.dot(3.6)}

    def dot(self, size: float) -> dict[str, Any]:
        """Keywords of its markers."""
        return {
            "marker": self.marker,
            "markersize": size,
            "markerfacecolor": self.hollow or self.colour,
            "markeredgecolor": self.colour,
            "markeredgewidth": 1.0 if self.hollow else 0.4,
        }


def look(theme: Theme, slot: int, role: Role, rank: int, seeds: int) -> Look:
    """The look of a group.

    Args:
        slot: its place in the palette; beyond the eighth the colours repeat with another dash.
        rank: its place among the groups of its role in this figure.
        seeds: how many series share it; several are drawn thinner.
    """
    width = 1.1 if seeds > 1 else 1.7
    if role != "solution":
        dashes = DASHES[role][rank % len(DASHES[role])]
        return Look(theme["muted"], dashes, MARKERS[slot % SLOTS], 1.2, theme["surface"])
    again = (7, 1.6, 1.6, 1.6) if slot // SLOTS % 2 else None
    return Look(theme[f"series-{slot % SLOTS + 1}"], again, MARKERS[slot % SLOTS], width, None)


@dataclass(frozen=True)
class Group:
    """Series that share a look and one label."""

    label: str
    look: Look
    members: list[int]


def groups(
    theme: Theme, palette: dict[str, int], series: Sequence[tuple[str, str | None, Role]]
) -> list[Group]:
    """The groups of a figure in order of appearance.

    Args:
        series: name, group and role of each.
        palette: slot of each group; one that is missing gets the next free slot.
    """
    members: dict[tuple[str, Role], list[int]] = {}
    for at, (name, group, role) in enumerate(series):
        members.setdefault((group or name, role), []).append(at)
    slots = dict(palette)
    ranks: dict[Role, int] = {}
    found = []
    for (group, role), indices in members.items():
        # A control of its own name must not push the solutions to other colours than in the other figures.
        taken = slots if role == "solution" else dict(slots)
        slot = taken.setdefault(group, max(taken.values(), default=-1) + 1)
        several = len(indices) > 1
        label = group if several else series[indices[0]][0]
        if several and role != "solution":
            label = f"{group} ({role})"
        rank = ranks.get(role, 0)
        ranks[role] = rank + 1
        found.append(Group(label, look(theme, slot, role, rank, len(indices)), indices))
    return found
