"""The processes that share an evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Gather = Callable[[Any], list[Any]]


def alone(value: Any) -> list[Any]:
    """Gathers from the only process."""
    return [value]


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work.

    Args:
        gather: the value of every process, in rank order, on every process.
    """

    rank: int = 0
    world_size: int = 1
    gather: Gather = alone
