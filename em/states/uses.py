"""Which examples a run will use, how often, and the keys of their states: known before training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from em.datamodules.sources import Example
from em.datamodules.streams import Windows
from em.states.keys import kept_positions, key_of

Stream = tuple[Windows, Sequence[Example]]
Depth = Literal["reference", "lower"]


@dataclass(frozen=True)
class Uses:
    """What the optimizer steps of a run read.

    Args:
        sft, kl: the examples of each stream, every one once, in the order of the data.
        passes: rows of all steps together, an example counted each time it comes.
    """

    sft: list[Example]
    kl: list[Example]
    passes: int


def uses_of(sft: Stream, kl: Stream | None, steps: int, kl_counts: Callable[[int], bool]) -> Uses:
    """The examples of steps 0 to `steps` − 1; their order is a pure function of the step.

    Args:
        kl_counts: whether a step has a KL term.
    """
    sft_indices = _indices(sft[0], range(steps))
    kl_indices = [] if kl is None else _indices(kl[0], [step for step in range(steps) if kl_counts(step)])
    return Uses(
        [sft[1][index] for index in sorted(set(sft_indices))],
        [] if kl is None else [kl[1][index] for index in sorted(set(kl_indices))],
        len(sft_indices) + len(kl_indices),
    )


def _indices(windows: Windows, steps: Sequence[int]) -> list[int]:
    return [index for step in steps for index in windows.indices(step)]


@dataclass(frozen=True)
class Item:
    """An example and the keys of the states that are needed of it.

    Args:
        kept: the positions of its `reference` states.
    """

    example: Example
    kept: list[bool]
    keys: dict[Depth, str]

    def tokens(self, depth: Depth) -> int:
        """Positions that are stored at a depth."""
        return sum(self.kept) if depth == "reference" else len(self.example.ids)

    def only(self, depths: Sequence[Depth]) -> "Item":
        return Item(self.example, self.kept, {d: key for d, key in self.keys.items() if d in depths})


def items_of(uses: Uses, depths: Sequence[Depth], everywhere: bool) -> list[Item]:
    """What has to be stored, each once: `lower` of every example, `reference` of KL examples.

    Args:
        everywhere: KL counts at all real positions.
    """
    found: dict[tuple[str | None, ...], Item] = {}
    for example, counts in [*((one, True) for one in uses.kl), *((one, False) for one in uses.sft)]:
        kept = kept_positions(example, everywhere)
        keys: dict[Depth, str] = {}
        if "lower" in depths:
            keys["lower"] = key_of(example.ids)
        if "reference" in depths and counts and any(kept):
            keys["reference"] = key_of(example.ids, kept)
        if keys:
            found.setdefault((keys.get("lower"), keys.get("reference")), Item(example, kept, keys))
    return list(found.values())


def tokens_of(items: Sequence[Item], depth: Depth) -> dict[str, int]:
    """Key -> stored positions of every state that is needed at a depth."""
    return {item.keys[depth]: item.tokens(depth) for item in items if depth in item.keys}
