"""Norm of the intervention and how far it has turned during the run."""

from typing import Any

import torch

from em.callbacks.base import MeasurementCallback, RunContext
from em.interventions.update import Update


class Norms(MeasurementCallback):
    """How large the solution is, and its direction relative to where the run first moved.

    Logged:
        norms/norm: Frobenius norm of the effective update (vector: ‖v‖·scale).
        norms/cosine_to_start: cosine of the effective update to the first one of the run that was not
            zero. Adapters start at zero, which has no direction; put an early step into the schedule
            (`every_n_steps: 1` is cheap) to compare with a very early one.
    """

    def __init__(self, **schedule: Any):
        super().__init__(**schedule)
        self._start: dict[str, tuple[torch.Tensor, torch.Tensor | None]] | None = None

    def measure(self, context: RunContext) -> dict[str, float]:
        update = context.intervention.update()
        norm = update.norm()
        if norm == 0:
            return {"norm": 0.0}
        if self._start is None:
            self._start = {
                name: (left.cpu().clone(), None if right is None else right.cpu().clone())
                for name, (left, right) in update.parts.items()
            }
        here = Update(
            {name: (a.cpu(), None if b is None else b.cpu()) for name, (a, b) in update.parts.items()}
        )
        return {"norm": norm, "cosine_to_start": here.cosine(Update(self._start))}

    def state_dict(self) -> dict[str, object]:
        return {"start": self._start}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        self._start = state_dict["start"]  # type: ignore[assignment]
