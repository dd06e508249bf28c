"""A callback that makes one process of several die, hang or fail at a step, and lists their ids."""

import os
import signal
from pathlib import Path
from typing import Any

from em.callbacks.base import MeasurementCallback, RunContext
from em.errors import TrainingError

RANK, STEP, HOW = "EM_TEST_RANK", "EM_TEST_STEP", "EM_TEST_HOW"


class Culprit(MeasurementCallback):
    """Process EM_TEST_RANK does what EM_TEST_HOW says after step EM_TEST_STEP. Logged: nothing.

    Args:
        folder: where each process leaves its id, and the culprit a mark of the moment.
    """

    def __init__(self, *, folder: str, **schedule: Any):
        super().__init__(**schedule)
        self.folder = Path(folder)

    def measure(self, context: RunContext) -> None:
        (self.folder / f"{context.rank}-{os.getpid()}.pid").touch()
        if (context.rank, context.step) != tuple(int(os.environ.get(key, "-1")) for key in (RANK, STEP)):
            return
        how = os.environ[HOW]
        (self.folder / "culprit").write_text(str(os.getpid()))
        if how == "TrainingError":
            raise TrainingError("the soup is cold; heat it")
        if how == "bug":
            raise ZeroDivisionError("not foreseen")
        os.kill(os.getpid(), getattr(signal, how))
