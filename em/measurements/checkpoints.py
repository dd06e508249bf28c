"""Training by checkpoint: where the path turns, and what the adapter of each step does when scaled."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from em.interventions.base import Intervention
from em.measurements.margins import PairPanel
from em.stats import NOTHING, Estimate, Floats

STRAIGHT = 0.01  # a rise of the rotation below this is rounding of the snapshots, not a turn
FEWEST = 4  # snapshots away from the peak from which its noise can be told


@dataclass(frozen=True)
class Turn:
    """The snapshot at which a path turns most.

    Args:
        step: of that snapshot; None: the path turns nowhere more than elsewhere.
        rise: rotation there minus the median of the curve, with an interval for the noise of the curve.
        snapshots: whose rotation is known.
        why: there is no step; empty where there is one.
    """

    step: int | None
    rise: Estimate
    snapshots: int
    why: str = ""


def sharpest_turn(steps: Sequence[int], cosines: Sequence[float], k: int = 1) -> Turn:
    """Where the rotation peaks within training, if it does so beyond its own noise (arXiv 2506.11613).

    A peak is higher than its neighbours: a rotation that is highest at the first snapshot, as after a
    warm-up, or at the last one, is how training starts or ends. The noise is that of the curve itself, away
    from the peak: the rotation of neighbours within 2k shares a step of training with the peak's, so they are
    left out. The interval is of Student's t, at a level for the largest of all snapshots (Bonferroni),
    because the peak is chosen as such. A path that drifts has a wide one.

    Args:
        steps, cosines: the rotation curve with distance k.
    """
    if len(cosines) < 3:
        return Turn(None, NOTHING, len(cosines), f"{len(cosines)} snapshots with a rotation are too few")
    curve = np.array(cosines)
    middle = np.arange(1, len(curve) - 1)
    higher = (curve[1:-1] >= curve[:-2]) & (curve[1:-1] >= curve[2:])
    among = middle[higher] if higher.any() else middle
    peak = int(among[np.argmax(curve[among])])
    rise = float(curve[peak] - np.median(curve))
    outside = curve[np.abs(np.arange(len(curve)) - peak) >= 2 * k]
    if len(outside) < FEWEST:
        why = f"{len(curve)} snapshots are too few to tell a turn from noise; save them more often"
        return Turn(None, Estimate(rise, None, None), len(curve), why)
    noise = float(np.sqrt(((outside - np.median(outside)) ** 2).sum() / (len(outside) - 1)))
    half = noise * float(scipy_stats.t.ppf(1 - 0.025 / len(curve), len(outside) - 1))
    found = Estimate(rise, rise - half, rise + half)
    if not higher.any():
        return Turn(
            None, found, len(curve), "the rotation only rises or falls, so it has no peak within training"
        )
    if rise - half <= STRAIGHT:
        return Turn(None, found, len(curve), "the path turns nowhere more than the noise of its rotation")
    return Turn(steps[peak], found, len(curve))


def evenly(steps: Sequence[int], count: int) -> list[int]:
    """At most `count` of the steps, evenly spaced, the first and the last among them.

    Args:
        count: at least 2.
    """
    places = np.linspace(0, len(steps) - 1, min(count, len(steps)))
    return [steps[round(at)] for at in places]


def beside(steps: Sequence[int], peak: int) -> tuple[int, int] | None:
    """Positions of the last step before a peak and of the first one after it; None where one is missing."""
    before = [at for at, step in enumerate(steps) if step < peak]
    after = [at for at, step in enumerate(steps) if step > peak]
    return (before[-1], after[0]) if before and after else None


def half_step(steps: Sequence[int], curve_RS: Floats) -> Floats:
    """The first step at which a curve reaches half of its last value, in each resample, (R,).

    NaN where the last value is not above 0: then there is nothing to reach.
    """
    last_R1 = curve_RS[:, -1:]
    reached_RS = curve_RS >= last_R1 / 2
    first_R = np.array(steps, dtype=float)[reached_RS.argmax(axis=1)]
    return np.asarray(np.where(last_R1[:, 0] > 0, first_R, np.nan))


def scaled_shifts(
    intervention: Intervention,
    panels: Mapping[str, PairPanel],
    references: Mapping[str, Floats],
    factors: Sequence[float | None],
) -> dict[str, list[list[float] | None]]:
    """Margin shift of the attached solution times each factor: domain -> factor -> prompt.

    Args:
        references: margins of the reference model, by domain.
        factors: None: there is no such factor, as for a solution of norm 0 that should be as long as another.
    """
    shifts: dict[str, list[list[float] | None]] = {domain: [] for domain in panels}
    known: dict[float, dict[str, list[float]]] = {}
    with intervention.merged():
        for factor in factors:
            if factor is not None and factor not in known:
                with _times(intervention, factor):
                    known[factor] = {
                        domain: (panel.losses().margin_P - references[domain]).tolist()
                        for domain, panel in panels.items()
                    }
            for domain in panels:
                shifts[domain].append(None if factor is None else known[factor][domain])
    return shifts


@contextmanager
def _times(intervention: Intervention, factor: float) -> Iterator[None]:
    if factor == 1.0:  # bit for bit, and a folded weight is used again
        yield
        return
    with intervention.rescaled(factor):
        yield


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of one value for each seed with a t-interval; without bounds for one seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, None, None)
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = error * float(scipy_stats.t.ppf(0.975, len(values) - 1))
    return Estimate(mean, mean - half, mean + half)
