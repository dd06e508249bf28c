"""The weight of a penalty at which most of what is wanted is kept for what is not: the knee of a sweep."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from em.errors import MeasurementError
from em.measurements.shares import interval
from em.stats import NOTHING, Estimate, Floats, Resampling

FEWEST = 3  # weights; fewer give no parabola
ROUNDING = 1e-9  # a gap of equal shares is not exactly 0


@dataclass(frozen=True)
class Knee:
    """Where the gap between two curves over a weight is largest.

    Args:
        weight: None where the gap is not surely above 0 anywhere.
        gap: the largest gap; its interval is for all weights together.
        at: index of the measured weight with the largest gap.
        edge: `smallest` or `largest` where that is the end of the sweep: the true knee may lie beyond.
        missing: why there is no weight; empty if there is one.
    """

    weight: Estimate
    gap: Estimate
    at: int
    edge: str = ""
    missing: str = ""


def knee(weights: Sequence[float], gap_RK: Floats, draws: Resampling, level: float = 0.95) -> Knee:
    """The weight w that maximises g(w) − o(w): what is kept in the training domain minus elsewhere.

    Between measured weights the gap is taken as the parabola in log w through the largest measured value and
    its two neighbours, so that the knee is not tied to the grid; at the end of the sweep it is that end. The
    interval comes from the knees of all resamples, so it is never wider than the sweep.

    The largest of K noisy gaps is above 0 by chance alone. So the gap's interval has level 1 − (1 − level)/K,
    and there is a knee only where all of it is above 0.

    Args:
        weights: K weights, ascending, all above 0.
        gap_RK: g − o in each resample, row 0 the sample itself.
        draws: of the resamples.

    Raises:
        MeasurementError: fewer than three weights, or not ascending from above 0.
    """
    if len(weights) < FEWEST or gap_RK.shape[1] != len(weights):
        raise MeasurementError(f"{len(weights)} weights above 0; a knee needs at least {FEWEST}")
    if weights[0] <= 0 or any(b <= a for a, b in zip(weights, weights[1:], strict=False)):
        raise MeasurementError(f"weights {list(weights)}: they must ascend from above 0")
    log_K = np.log(np.asarray(weights, dtype=float))
    if not np.isfinite(gap_RK[0]).all():
        return Knee(NOTHING, NOTHING, 0, missing="the general solution did not move in one kind of domain")
    at = int(np.argmax(gap_RK[0]))
    place = float(_peaks(log_K, gap_RK[:1])[0])
    gap = interval(_height(log_K, gap_RK, at, place), draws, 1 - (1 - level) / len(weights))
    edge = {0: "smallest", len(weights) - 1: "largest"}.get(at, "")
    if gap.low is None or gap.low <= ROUNDING:
        why = "the gap between what is kept in the training domain and elsewhere is not surely above 0"
        return Knee(NOTHING, gap, at, edge, f"{why} at any of {len(weights)} weights")
    found = interval(np.exp(_peaks(log_K, gap_RK)), draws, level)
    return Knee(found, gap, at, edge)


def _peaks(log_K: Floats, gap_RK: Floats) -> Floats:
    """log w of the largest gap in each resample; NaN where the gap is nowhere above 0 or does not exist."""
    usable_R = np.asarray(np.isfinite(gap_RK).all(axis=1))
    gap_RK = np.where(usable_R[:, None], gap_RK, 0.0)
    at_R = np.argmax(gap_RK, axis=1)
    middle_R = np.clip(at_R, 1, len(log_K) - 2)
    rows = np.arange(len(gap_RK))
    (x0, y0), (x1, y1), (x2, y2) = (
        (log_K[middle_R + step], gap_RK[rows, middle_R + step]) for step in (-1, 0, 1)
    )
    rise, fall = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (fall - rise) / (x2 - x0)
    inside = (at_R == middle_R) & (bend < 0)
    vertex = (x0 + x1) / 2 - rise / (2 * np.where(inside, bend, -1.0))
    peaks_R = np.where(inside, vertex, log_K[at_R])
    return np.asarray(np.where(usable_R & (gap_RK[rows, at_R] > 0), peaks_R, np.nan))


def _height(log_K: Floats, gap_RK: Floats, at: int, place: float) -> Floats:
    """The gap at a fixed place in every resample, by the parabola through three fixed weights."""
    if not np.isfinite(place) or at in (0, len(log_K) - 1):
        return np.asarray(gap_RK[:, at])
    points = [at - 1, at, at + 1]
    total = np.zeros(len(gap_RK))
    for one in points:
        others = [other for other in points if other != one]
        share = np.prod([(place - log_K[other]) / (log_K[one] - log_K[other]) for other in others])
        total += share * gap_RK[:, one]
    return total
