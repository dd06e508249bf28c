"""Stability: how fast the loss rises under orthogonal noise of the solution's own norm (arXiv 2602.07852)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from em.errors import MeasurementError
from em.hooks import generator_for, keyed_seed
from em.interventions.base import Intervention
from em.measurements.arms import Solution, columns, differences
from em.measurements.panel import Panel, mean_loss
from em.stats import Estimate, Floats, Resampling

EPSILONS = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


@dataclass(frozen=True)
class Stability:
    """Losses of one perturbed solution; draw d is the same noise at every ε and for every solution.

    Args:
        epsilons: the grid, K values in (0, 1].
        nll_KSE: Σ −log p of each example, for each ε and each of S draws, in nats.
        nll_E, reference_E: of the solution itself and of the reference.
        tokens_E: answer tokens.
    """

    epsilons: list[float]
    nll_KSE: Floats
    nll_E: Floats
    reference_E: Floats
    tokens_E: Floats

    def degradation(self, resampling: Resampling, seed: int = 0) -> Floats:
        """100·(L(x′) − L(x)) / (L(ref) − L(x)) in each resample of prompts and draws, shape (R, K).

        0: unharmed; 100: back at the reference. Where a resample has no gain to lose it is NaN.
        """
        draws_RS = _draw_weights(self.nll_KSE.shape[1], len(resampling.weights_RC), seed)
        losses_RKS = resampling.means(self.nll_KSE, self.tokens_E)
        loss_RK = (losses_RKS * draws_RS[:, None, :]).sum(axis=2) / draws_RS.sum(axis=1)[:, None]
        own_R = resampling.means(self.nll_E, self.tokens_E)
        gain_R = resampling.means(self.reference_E, self.tokens_E) - own_R
        gain_R = np.where(gain_R > 0, gain_R, np.nan)
        return np.asarray(100 * (loss_RK - own_R[:, None]) / gain_R[:, None])

    def curve(self, resampling: Resampling, seed: int = 0) -> list[Estimate]:
        """Degradation in percent at each ε."""
        values_RK = self.degradation(resampling, seed)
        return [resampling.estimate(values_RK[:, k]) for k in range(len(self.epsilons))]

    def area(self, resampling: Resampling, seed: int = 0) -> Floats:
        """Mean degradation over ε from 0 to the largest (trapezoids), percent, in each resample."""
        values_RK = self.degradation(resampling, seed)
        start_R1 = np.zeros((len(values_RK), 1))
        grid = np.array([0.0, *self.epsilons])
        return np.asarray(np.trapezoid(np.concatenate([start_R1, values_RK], 1), grid) / grid[-1])

    def half_life(self, resampling: Resampling, seed: int = 0) -> Floats:
        """ε at which half of the gain is lost, by linear interpolation; the largest ε where it never is."""
        values_RK = self.degradation(resampling, seed)
        return np.array([_crossing([0.0, *self.epsilons], [0.0, *row], 50.0) for row in values_RK])


def stability(
    intervention: Intervention,
    panel: Panel,
    epsilons: Sequence[float],
    draws: int,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
    known: tuple[Floats, Floats] | None = None,
) -> Stability:
    """Loss of x′ = √(1−ε²)·x + ε·y with y ⟂ x, ‖y‖ = ‖x‖ in update space.

    The noise of draw d depends on (seed, d) only: it is nested over ε and shared by all solutions of one
    shape, so differences between them are paired.

    Args:
        intervention: attached to the panel's backbone; for a LoRA x is the effective update ΔW.
        progress: called after each pass.
        known: losses of the solution and of the reference on the panel, when they are measured already.

    Raises:
        MeasurementError: ε is outside (0, 1], or the solution has no gain over the reference to lose.
    """
    if any(not 0 < epsilon <= 1 for epsilon in epsilons) or draws < 1:
        raise MeasurementError(f"epsilons {list(epsilons)}, draws {draws}: give ε in (0, 1] and draws ≥ 1")
    own_E, reference_E = known or (panel.nll(), panel.nll_reference(intervention))
    loss, reference = mean_loss(own_E, panel.tokens_E), mean_loss(reference_E, panel.tokens_E)
    if loss >= reference:
        raise MeasurementError(
            f"the solution's loss {loss:.4f} is not below the reference's {reference:.4f}, so there is no "
            "gain that noise could take away; train longer or measure on the training domain"
        )
    nll = np.empty((len(epsilons), draws, len(own_E)))
    for draw in range(draws):
        for k, epsilon in enumerate(epsilons):
            noise = generator_for(seed, "stability", draw)
            with intervention.perturbed(epsilon, noise), intervention.merged():
                nll[k, draw] = panel.nll()
            progress()
    return Stability(list(epsilons), nll, own_E, reference_E, panel.tokens_E)


def _draw_weights(draws: int, resamples: int, seed: int) -> Floats:
    """How often each draw counts in each resample; row 0 counts each once."""
    generator = np.random.default_rng(keyed_seed(seed, "noise-draws"))
    weights = generator.multinomial(draws, np.full(draws, 1 / draws), size=resamples - 1)
    return np.concatenate([np.ones((1, draws)), weights])


def _crossing(grid: Sequence[float], values: Sequence[float], level: float) -> float:
    if not np.isfinite(values).all():
        return float("nan")
    for left, right, a, b in zip(grid, grid[1:], values, values[1:], strict=False):
        if a < level <= b:
            return left + (right - left) * (level - a) / (b - a)
    return grid[-1]


def stability_table(
    results: dict[str, Stability],
    solutions: dict[str, Solution],
    resampling: Resampling,
    missing: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Curves and summaries as plain data.

    Args:
        results: solution -> its losses; all on the same examples.
        missing: solution -> why it has no curve.
    """
    areas = {name: result.area(resampling) for name, result in results.items()}
    halves = {name: result.half_life(resampling) for name, result in results.items()}
    rows = {
        name: {
            "epsilons": result.epsilons,
            "draws": result.nll_KSE.shape[1],
            **columns(result.curve(resampling), "degradation"),
            "area": resampling.estimate(areas[name]).as_dict(),
            "half_life": resampling.estimate(halves[name]).as_dict(),
        }
        for name, result in results.items()
    }
    return {
        "solutions": rows,
        "missing": missing or {},
        "differences": {
            "area": differences(areas, solutions, resampling),
            "half_life": differences(halves, solutions, resampling),
        },
    }
