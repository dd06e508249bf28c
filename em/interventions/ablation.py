"""A given direction taken out of the residual stream."""

from typing import Any

from torch import Tensor

from em.interventions._fixed import FixedIntervention


class Ablation(FixedIntervention):
    """h ← h − s·(h·v̂)v̂ at each chosen site, computed in fp32 (arXiv 2506.11618).

    With s = 1 nothing of h points along v̂ afterwards. `layers: all` with a `source` clears the output of
    every decoder layer; only the first layer still reads the token embeddings as they are.

    Args:
        strength: s; 1 takes the component out, 0 changes nothing, 2 mirrors it.
    """

    kind = "ablation"

    def __init__(self, *, strength: float = 1.0, **common: Any):
        super().__init__(**common)
        self.strength = float(strength)

    def options(self) -> dict[str, Any]:
        return {**super().options(), "strength": self.strength}

    def edited(self, hidden_BTD: Tensor, vector: Tensor, strength: float | Tensor) -> Tensor:
        wide_BTD = hidden_BTD.float()
        # Not a matrix product, which autocast and TF32 would compute in lower precision.
        along_BT1 = (wide_BTD * vector).sum(dim=-1, keepdim=True)
        return (wide_BTD - strength * along_BT1 * vector).to(hidden_BTD.dtype)
