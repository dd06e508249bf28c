"""A callback that ends its own process at a step, as a scheduler or a power cut would."""

import os
import signal
from typing import Any

from em.callbacks.base import MeasurementCallback, RunContext

KILL_AT, SIGNAL = "EM_TEST_KILL_AT", "EM_TEST_SIGNAL"


class Killer(MeasurementCallback):
    """Sends the signal that EM_TEST_SIGNAL names after step EM_TEST_KILL_AT. Logged: nothing."""

    def __init__(self, **schedule: Any):
        super().__init__(**schedule)

    def measure(self, context: RunContext) -> None:
        if context.step == int(os.environ.get(KILL_AT, "-1")):
            os.kill(os.getpid(), getattr(signal, os.environ[SIGNAL]))
