"""Efficiency: how low the loss is at a given norm (arXiv 2602.07852)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from em.errors import MeasurementError
from em.interventions.base import Intervention
from em.measurements.arms import Solution, columns, differences
from em.measurements.panel import Panel
from em.stats import Estimate, Floats, Resampling


@dataclass(frozen=True)
class Efficiency:
    """Losses of one solution rescaled to a grid of norms.

    Args:
        norm: of the solution as it was trained.
        norms: the grid, K norms.
        nll_KE: Σ −log p over the answer tokens of each example, in nats.
        nll_E, reference_E: the same at the trained norm, and for the reference.
        tokens_E: answer tokens.
    """

    norm: float
    norms: list[float]
    nll_KE: Floats
    nll_E: Floats
    reference_E: Floats
    tokens_E: Floats

    def curve(self, resampling: Resampling) -> list[Estimate]:
        """L at each norm of the grid, nats per token."""
        losses_RK = resampling.means(self.nll_KE, self.tokens_E)
        return [resampling.estimate(losses_RK[:, k]) for k in range(len(self.norms))]

    def loss_at(self, norm: float, resampling: Resampling) -> Floats:
        """L at one norm of the grid in every resample, shape (R,).

        Raises:
            MeasurementError: the norm is not on the grid.
        """
        found = [k for k, value in enumerate(self.norms) if np.isclose(value, norm)]
        if not found:
            raise MeasurementError(f"norm {norm} is not on the grid {self.norms}")
        return resampling.means(self.nll_KE[found[0]], self.tokens_E)


def common_norms(norms: Sequence[float], factors: Sequence[float]) -> list[float]:
    """The grid on which solutions are compared: factors times the mean of their norms.

    Raises:
        MeasurementError: a solution is zero, so no factor brings it to a norm.
    """
    if min(norms) <= 0:
        raise MeasurementError("a solution has norm 0 and cannot be rescaled; train it first")
    mean = float(np.mean(norms))
    return [float(factor) * mean for factor in factors]


def efficiency(intervention: Intervention, panel: Panel, norms: Sequence[float]) -> Efficiency:
    """Loss with the whole update times one factor, so that it has each norm of the grid in turn.

    One factor for all modules: at factor 1 the solution is the trained one.

    Args:
        intervention: attached to the panel's backbone.
        norms: Frobenius norms of the effective update (vector: ‖v‖·scale).

    Raises:
        MeasurementError: the solution has norm 0.
    """
    own = intervention.norm()
    if own <= 0:
        raise MeasurementError(f"the {intervention.kind} has norm 0 and cannot be rescaled; train it first")
    with intervention.merged():
        nll_E = panel.nll()
    reference_E = panel.nll_reference(intervention)
    rows = []
    for norm in norms:
        with intervention.rescaled(norm / own), intervention.merged():
            rows.append(panel.nll() if norm else reference_E)  # at norm 0 it is the reference
    return Efficiency(own, list(norms), np.array(rows), nll_E, reference_E, panel.tokens_E)


def efficiency_table(
    results: dict[str, Efficiency],
    solutions: dict[str, Solution],
    equal_norms: dict[str, float],
    resampling: Resampling,
) -> dict[str, Any]:
    """Curves and summaries as plain data.

    Args:
        results: solution -> its losses; all on the same examples.
        equal_norms: space -> the norm of the grid at which solutions are compared.
    """
    rows, at_equal = {}, {}
    for name, result in results.items():
        space = solutions[name].space
        own_R = resampling.means(result.nll_E, result.tokens_E)
        at_equal[name] = result.loss_at(equal_norms[space], resampling)
        rows[name] = {
            "space": space,
            "norm": result.norm,
            "norms": result.norms,
            **columns(result.curve(resampling), "loss"),
            "own": resampling.estimate(own_R).as_dict(norm=result.norm),
            "equal_norm": resampling.estimate(at_equal[name]).as_dict(norm=equal_norms[space]),
        }
    first = next(iter(results.values()))
    return {
        "examples": len(first.tokens_E),
        "tokens": int(first.tokens_E.sum()),
        "reference": resampling.mean(first.reference_E, first.tokens_E).as_dict(),
        "solutions": rows,
        "differences": differences(at_equal, solutions, resampling, same_space=True),
    }
