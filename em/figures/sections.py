"""From the tables of measurements to figures. Callbacks and reports draw the same ones."""

from collections.abc import Callable

from em.figures import behaviour, inductive_bias, representations, training
from em.figures._common import Arms, Raw
from em.figures.model import Figure

DRAWN: dict[str, Callable[[Raw, Arms], list[Figure]]] = {
    "efficiency": inductive_bias.efficiency,
    "stability": inductive_bias.stability,
    "significance": inductive_bias.significance,
    "margins": inductive_bias.margins,
    "directions": representations.directions,
    "steering": representations.steering,
    "ablation": representations.ablation,
    "trajectory": training.trajectory,
    "monitor": training.monitor,
    "behaviour": behaviour.behaviour,
}


def figures(section: str, table: Raw, arms: Arms) -> list[Figure]:
    """The figures of one table; none for a table that is not drawn.

    Args:
        section: name of the table.
        table: as a measurement wrote it.
        arms: solution -> arm.
    """
    return DRAWN[section](table, arms) if section in DRAWN else []
