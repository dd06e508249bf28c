"""A callback that breaks off at one step, once."""

from typing import Any, ClassVar

from em.callbacks.base import MeasurementCallback, RunContext
from em.errors import MeasurementError


class Stopping(MeasurementCallback):
    """Fails after a step as long as `on` is set. Logged: nothing."""

    on: ClassVar[bool] = False

    def __init__(self, *, step: int, **schedule: Any):
        super().__init__(every_n_steps=1, **schedule)
        self.step = step

    def measure(self, context: RunContext) -> None:
        if Stopping.on and context.step == self.step:
            raise MeasurementError("stopped by the test")
