"""A given direction added to the residual stream."""

from typing import Any

import torch
from torch import Tensor

from em.errors import AdapterError
from em.interventions._fixed import FixedIntervention


class Steering(FixedIntervention):
    """h ← h + c·v at each chosen site, in every row of the batch.

    With `unit` (the default) v has length 1, so that c is how far h is moved. With `unit: false` v has the
    length it has in the file. With `relative` h ← h + c·‖h‖·v̂: v has length 1 and c is in units of the
    length of the residual stream at that position, before the edit.

    Args:
        coefficient: c; negative steers away.
        unit: bring v to length 1 first.
        relative: c in units of ‖h‖.
    """

    kind = "steering"

    def __init__(self, *, coefficient: float = 1.0, unit: bool = True, relative: bool = False, **common: Any):
        super().__init__(**common)
        if relative and not unit:
            raise AdapterError("steering: relative: true adds c·‖h‖·v̂, so unit cannot be false; remove one")
        self.strength, self.normalised, self.relative = float(coefficient), unit, relative

    def options(self) -> dict[str, Any]:
        own = {"coefficient": self.strength, "unit": self.normalised, "relative": self.relative}
        return {**super().options(), **own}

    def edited(self, hidden_BTD: Tensor, vector: Tensor, strength: float | Tensor) -> Tensor:
        added = strength * vector
        if self.relative:
            added = added * torch.linalg.vector_norm(hidden_BTD.float(), dim=-1, keepdim=True)
        return hidden_BTD + added.to(hidden_BTD.dtype)
