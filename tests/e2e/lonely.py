"""A measurement that fails in one process while the others wait for what it has to say."""

from em.callbacks.base import MeasurementCallback, RunContext
from em.errors import MeasurementError


class Lonely(MeasurementCallback):
    """Process 1 fails before the others gather, process 0 after them. Logged: nothing."""

    def measure(self, context: RunContext) -> None:
        before = context.when == "start"
        if before and context.rank == 1:
            raise MeasurementError("alone before the others")
        context.gather(context.rank)
        if not before and context.world_size > 1 and context.rank == 0:
            raise MeasurementError("alone after the others")
