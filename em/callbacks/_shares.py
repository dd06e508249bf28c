"""Measurements divided over processes and put together again, so that their number does not matter."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from em.callbacks._choices import ELSEWHERE
from em.callbacks.base import RunContext
from em.datamodules.pairs import Pair
from em.datamodules.rows import Rows, batched, collate
from em.datamodules.sources import Example
from em.errors import EmError, MeasurementError
from em.hooks import Site
from em.measurements.activations import BAGS, Moments, collect, merged
from em.measurements.arms import VECTOR, WEIGHTS, Solution
from em.measurements.directions import MeanDifference
from em.measurements.margins import PAIR_ROWS, PairLosses
from em.measurements.panel import Panel
from em.stats import Floats

LOSS_ROWS = 8  # answers of one forward pass
SIDES = ("careless", "careful")
T = TypeVar("T")


def together(context: RunContext, measure: Callable[[], T]) -> list[T]:
    """What `measure` returns in each process, in rank order.

    Raises:
        MeasurementError: it failed in one process; all of them raise, or the others would wait for ever.
    """
    value, problem = None, None
    try:
        value = measure()
    except EmError as error:
        if context.world_size == 1:
            raise
        problem = str(error)
    parts = context.gather((value, problem))
    failed = next((message for _, message in parts if message is not None), None)
    if failed is not None:
        raise MeasurementError(failed)
    return [part for part, _ in parts]


def indices(context: RunContext, count: int) -> range:
    """The positions that this process measures."""
    return range(context.rank, count, context.world_size)


def share(context: RunContext, examples: Sequence[Example], size: int) -> list[Rows]:
    """This process's batches of some answers.

    Every process gets equally many, because a pass under FSDP2 needs all of them; the last may be a blank
    row (`index_B` −1) that counts nowhere.
    """
    batches = batched(examples, size, context.data.pad, indices(context, len(examples)))
    count = math.ceil(math.ceil(len(examples) / context.world_size) / size)
    blank = collate(examples, [], context.data.pad)
    return [*batches, *[blank] * (count - len(batches))]


class SharedPanel(Panel):
    """A panel whose passes are divided over the processes; its results are those of all answers.

    Args:
        examples: all of them, the same in every process.
    """

    def __init__(self, context: RunContext, examples: Sequence[Example], size: int = LOSS_ROWS):
        self._context = context
        self._own = Panel(
            context.backbone, share(context, examples, size), context.intervention.lowest_layer()
        )
        self.backbone, self.batches = context.backbone, self._own.batches
        parts = context.gather((self._own.index_E, self._own.tokens_E))
        index_E = np.concatenate([index for index, _ in parts])
        self._order = np.argsort(index_E, kind="stable")
        self.index_E = index_E[self._order]
        self.tokens_E = np.concatenate([tokens for _, tokens in parts])[self._order]

    def nll(self) -> Floats:
        parts = together(self._context, self._own.nll)
        return np.asarray(np.concatenate(parts)[self._order])


class SharedPairs:
    """Pairs of one domain that are scored several times, by all processes together."""

    def __init__(self, context: RunContext, pairs: Sequence[Pair]):
        self.prompts = [pair.prompt for pair in pairs]
        self._panels = {
            side: SharedPanel(context, [getattr(pair, side) for pair in pairs], PAIR_ROWS) for side in SIDES
        }

    def losses(self) -> PairLosses:
        """Losses under the model as it is now, in the order of the pairs."""
        careless, careful = (self._panels[side] for side in SIDES)
        return PairLosses(careless.nll(), careful.nll(), careless.tokens_E, careful.tokens_E)


def shared_moments(
    context: RunContext,
    pairs: Sequence[Pair],
    sites: Sequence[Site],
    covariance: bool = False,
    weighting: str = "token",
    sides: Sequence[str] = SIDES,
    samples: int = 0,
) -> dict[str, Moments]:
    """Activations of the answers of pairs under the model as it is now; side -> moments."""
    groups = {side: share(context, [getattr(pair, side) for pair in pairs], PAIR_ROWS) for side in sides}
    bags = min(BAGS, len(pairs))  # with an empty bag a random half could be empty
    parts = together(
        context,
        lambda: collect(context.backbone, groups, sites, covariance, weighting, bags, samples, context.seed),
    )
    return merged(parts)


def reference_difference(context: RunContext, pairs: Sequence[Pair], sites: Sequence[Site]) -> MeanDifference:
    """Careless minus careful answers under the reference."""
    with context.intervention.disabled():
        found = shared_moments(context, pairs, sites)
    return MeanDifference("careless − careful", found["careless"], found["careful"])


def solution(context: RunContext, norm: float) -> dict[str, Solution]:
    """What is trained, as the tables of measurements name it."""
    kind, name = context.intervention.kind, context.solution
    space = VECTOR if kind == "steering_vector" else WEIGHTS
    return {name: Solution(name, name, kind, space, norm, context.seed)}


def enough_pairs(context: RunContext, pairs: Sequence[Pair]) -> None:
    """Refuse fewer pairs than processes.

    Raises:
        MeasurementError: a process would have no answer.
    """
    if len(pairs) < context.world_size:
        raise MeasurementError(
            f"{len(pairs)} pairs cannot be divided over {context.world_size} processes; raise `pairs`, or "
            f"{ELSEWHERE}"
        )
