"""Coefficients of agreement between raters: weighted κ, Krippendorff's α, correlations."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import stats as scipy_stats

from em.measurements._behaviour_groups import spread_known
from em.stats import Estimate, Floats, Resampling

Weights = Literal["quadratic", "linear", "nominal"]
Level = Literal["nominal", "ordinal", "interval"]
SMALLEST = 1e-12  # disagreement by chance below this is rounding: all ratings are equal


def weighted_kappa(
    a: Sequence[float], b: Sequence[float], weights: Weights = "quadratic", bins: int = 10
) -> float | None:
    """Cohen's κ of two raters on scores from 0 to 100 (Cohen 1968).

    Args:
        weights: how a disagreement grows with the distance of two bins; `nominal`: all are alike.
        bins: of equal width, the last one with 100 in it.

    Returns:
        None: no scores, or both raters use one and the same bin, so that no chance disagreement exists.

    Raises:
        ValueError: lists of different lengths, a score that is not from 0 to 100, fewer than two bins.
    """
    if not len(a):
        _binned(np.array(a, dtype=float), bins)
        return None
    counts_N = _pairs(_binned(np.asarray(a, float), bins), _binned(np.asarray(b, float), bins), bins)
    return _number(float(_kappa(counts_N.sum(axis=1), bins, weights)))


def kappa_estimate(
    a_N: Floats, b_N: Floats, resampling: Resampling, weights: Weights = "quadratic", bins: int = 10
) -> Estimate:
    """`weighted_kappa` with its interval over clusters."""
    counts = _pairs(_binned(a_N, bins), _binned(b_N, bins), bins)
    return spread_known(resampling, resampling.estimate(_kappa(resampling.totals(counts), bins, weights)))


def _binned(scores_N: Floats, bins: int) -> np.ndarray:
    if bins < 2:
        raise ValueError(f"expected two bins or more, got {bins}")
    if not ((scores_N >= 0) & (scores_N <= 100)).all():
        raise ValueError("a score is not from 0 to 100")
    return np.minimum((scores_N * bins / 100).astype(int), bins - 1)


def _pairs(a_N: np.ndarray, b_N: np.ndarray, bins: int) -> Floats:
    """1 at the pair of bins of each observation, shape (bins², N)."""
    if len(a_N) != len(b_N):
        raise ValueError(f"{len(a_N)} scores of one rater but {len(b_N)} of the other")
    found = np.zeros((bins * bins, len(a_N)))
    found[a_N * bins + b_N, np.arange(len(a_N))] = 1.0
    return found


def _kappa(counts: Floats, bins: int, weights: Weights) -> Floats:
    """κ of confusion counts of shape (…, bins²); NaN where chance gives no disagreement."""
    table = counts.reshape(*counts.shape[:-1], bins, bins)
    distance = np.abs(np.arange(bins)[:, None] - np.arange(bins)[None, :]).astype(float)
    cost = {"quadratic": distance**2, "linear": distance, "nominal": (distance > 0).astype(float)}[weights]
    rows, columns = table.sum(axis=-1), table.sum(axis=-2)
    total = rows.sum(axis=-1)
    chance = np.einsum("...i,ij,...j->...", rows, cost, columns)
    observed = (table * cost).sum(axis=(-2, -1)) * total
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(chance > SMALLEST, 1 - observed / chance, np.nan))


def krippendorff_alpha(
    ratings: Sequence[Sequence[float | str | None]], level: Level = "interval"
) -> float | None:
    """Krippendorff's α (2011): 1 − observed / expected disagreement, with ratings missing at will.

    Args:
        ratings: raters × units; None: this rater did not rate this unit. Units with fewer than two ratings
            count nowhere. `nominal` takes any values, the others numbers.

    Returns:
        None: no unit has two ratings, or all ratings are equal.

    Raises:
        ValueError: raters with different numbers of units, or a number that is not finite.
    """
    units = alpha_units(ratings, level)
    return _number(float(_alpha(units.sum(axis=1)))) if units.shape[1] else None


def alpha_estimate(
    ratings: Sequence[Sequence[float | str | None]], clusters: Sequence[str], resampling: Resampling
) -> Estimate:
    """α at interval level with its interval over clusters; every unit needs two ratings."""
    units = alpha_units(ratings, "interval")
    if units.shape[1] != len(clusters):
        raise ValueError("a unit has fewer than two ratings")
    return spread_known(resampling, resampling.estimate(_alpha(resampling.totals(units))))


def alpha_units(ratings: Sequence[Sequence[float | str | None]], level: Level) -> Floats:
    """What each unit with two ratings adds to α: ratings, disagreement, Σ x², Σ x; shape (3 + F, units).

    All three levels are squared distances: of the numbers themselves (interval), of their mean ranks among
    all ratings (ordinal), and of indicators of the values (nominal).
    """
    if len({len(row) for row in ratings}) > 1:
        raise ValueError("every rater needs a rating or None for each unit")
    listed = [[value for value in unit if value is not None] for unit in zip(*ratings, strict=True)]
    units = [unit for unit in listed if len(unit) > 1]
    if not units:
        return np.zeros((4, 0))
    sizes_U = np.array([len(unit) for unit in units], dtype=float)
    features_NF = _features([value for unit in units for value in unit], level)
    starts = np.cumsum([0, *sizes_U[:-1]]).astype(int)
    sums_UF = np.add.reduceat(features_NF, starts, axis=0)
    squares_U = np.add.reduceat(np.square(features_NF).sum(axis=1), starts)
    apart_U = 2 * (sizes_U * squares_U - np.square(sums_UF).sum(axis=1)) / (sizes_U - 1)
    return np.stack([sizes_U, apart_U, squares_U, *sums_UF.T])


def _features(values: list[float | str], level: Level) -> Floats:
    if level == "nominal":
        kinds = {value: index for index, value in enumerate(dict.fromkeys(values))}
        return np.eye(len(kinds))[[kinds[value] for value in values]]
    numbers = np.array(values, dtype=float)
    if not np.isfinite(numbers).all():
        raise ValueError("a rating is not a finite number")
    if level == "ordinal":
        numbers = np.asarray(scipy_stats.rankdata(numbers), dtype=float)
    # Moved to around 0, so that the differences of squares below stay exact.
    return (numbers - numbers[0] - (numbers - numbers[0]).mean())[:, None]


def _alpha(totals: Floats) -> Floats:
    """α of totals over units, shape (…, 3 + F)."""
    count, apart, squares = totals[..., 0], totals[..., 1], totals[..., 2]
    expected = 2 * (count * squares - np.square(totals[..., 3:]).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(expected > SMALLEST, 1 - (count - 1) * apart / expected, np.nan))


def pearson(a_N: Floats, b_N: Floats) -> float | None:
    """Correlation; None with fewer than two pairs or where one rater always says the same."""
    if len(a_N) < 2 or (a_N == a_N[0]).all() or (b_N == b_N[0]).all():
        return None
    a_N, b_N = a_N - a_N.mean(), b_N - b_N.mean()
    return float(np.clip((a_N @ b_N) / np.sqrt((a_N @ a_N) * (b_N @ b_N)), -1, 1))


def spearman(a_N: Floats, b_N: Floats) -> float | None:
    """Correlation of ranks, ties with their mean rank."""
    return pearson(scipy_stats.rankdata(a_N), scipy_stats.rankdata(b_N))


def mean_estimate(values_N: Floats, resampling: Resampling) -> Estimate:
    """Mean with its interval over clusters."""
    return spread_known(resampling, resampling.mean(values_N, np.ones(len(values_N))))


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
