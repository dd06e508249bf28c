"""Intervals for statistics of dependent observations: whole clusters are resampled, never observations."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from em.hooks import keyed_seed

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; all three are None where the number does not exist."""

    value: float | None
    low: float | None
    high: float | None

    def as_dict(self, **more: object) -> dict[str, object]:
        return {**more, "value": self.value, "low": self.low, "high": self.high}


NOTHING = Estimate(None, None, None)


class Resampling:
    """Bootstrap weights of clusters, the same for all that is compared, so that differences are paired.

    Row 0 is the sample itself (every cluster once); each further row draws as many clusters with
    replacement. A statistic is computed for all rows at once, and `estimate` reads value and interval
    off.

    Args:
        clusters: the cluster of each observation (its prompt, question or document).
        resamples: bootstrap draws.
        seed: key of the draws.

    Raises:
        ValueError: no observations.
    """

    def __init__(self, clusters: Sequence[str], resamples: int = 2000, seed: int = 0, purpose: str = ""):
        if len(clusters) == 0:
            raise ValueError("no observations")
        names = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
        self.member_N = np.array([names[name] for name in clusters])
        self.count = len(names)
        generator = np.random.default_rng(keyed_seed(seed, "bootstrap", *([purpose] if purpose else [])))
        draws = generator.multinomial(self.count, np.full(self.count, 1 / self.count), size=resamples)
        self.weights_RC: Floats = np.concatenate([np.ones((1, self.count)), draws.astype(float)])

    def by_cluster(self, values: Floats) -> Floats:
        """Sums over the members of each cluster; the last axis changes from N to C."""
        flat = values.reshape(-1, values.shape[-1])
        sums = [np.bincount(self.member_N, weights=row, minlength=self.count) for row in flat]
        return np.array(sums, dtype=float).reshape(*values.shape[:-1], self.count)

    def totals(self, values: Floats) -> Floats:
        """Weighted sums over observations: values of shape (…, N) give (R, …)."""
        return np.moveaxis(self.by_cluster(np.asarray(values, dtype=float)) @ self.weights_RC.T, -1, 0)

    def means(self, sums: Floats, counts_N: Floats) -> Floats:
        """Σ sums / Σ counts in each resample: sums of shape (…, N) give (R, …)."""
        totals, weights = self.totals(sums), self.totals(np.asarray(counts_N, dtype=float))
        return totals / weights.reshape(-1, *[1] * (totals.ndim - 1))

    def observations(self) -> Floats:
        """The weight of each observation in each resample, shape (R, N)."""
        return np.asarray(self.weights_RC[:, self.member_N], dtype=float)

    def estimate(self, values_R: Floats, level: float = 0.95) -> Estimate:
        """Value (row 0) and percentile interval (the other rows) of a statistic of every resample.

        The quantile levels are widened as for a t-interval with C − 1 degrees of freedom (Hesterberg 2015,
        "expanded percentile"), because plain percentiles are too narrow for few clusters. Resamples in which
        the statistic does not exist (NaN) are left out; with fewer than half left there is no interval.
        """
        value, draws = float(values_R[0]), values_R[1:]
        known = draws[np.isfinite(draws)]
        if not np.isfinite(value):
            return NOTHING
        if len(known) * 2 < max(1, len(draws)):
            return Estimate(value, None, None)
        tail = (1 - level) / 2
        if self.count > 1:
            stretch = np.sqrt(self.count / (self.count - 1)) * scipy_stats.t.ppf(tail, self.count - 1)
            tail = float(scipy_stats.norm.cdf(stretch))
        low, high = np.quantile(known, [tail, 1 - tail])
        return Estimate(value, float(low), float(high))

    def mean(self, sums_N: Floats, counts_N: Floats) -> Estimate:
        """Σ sums / Σ counts with its interval."""
        return self.estimate(self.means(sums_N, counts_N))


def clustered_mean(
    sums: Floats,
    counts: NDArray[np.int64],
    clusters: Sequence[str],
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of Σ sums / Σ counts, resampling whole clusters.

    Args:
        sums, counts: per observation, for example nats and tokens of one answer.
        clusters: the cluster of each observation; answers to one prompt are not independent.
        resamples: bootstrap draws.
        seed: key of the draws.
        level: coverage.

    Returns:
        (low, high). A single cluster has no spread: both equal the estimate, so read `clusters` too.

    Raises:
        ValueError: no observations.
    """
    resampling = Resampling(clusters, resamples, seed)
    result = resampling.estimate(resampling.means(sums, counts.astype(float)), level)
    assert result.low is not None and result.high is not None
    return result.low, result.high


def auroc(positive_N: Floats, negative_M: Floats) -> float:
    """Chance that a positive scores above a negative, ties counted half; NaN if any score is."""
    return float(_wins(positive_N, negative_M).mean())


def paired_auroc(positive_P: Floats, negative_P: Floats, resampling: Resampling) -> Floats:
    """AUROC in each resample of pairs (one positive and one negative score each), shape (R,)."""
    weights_RP = resampling.observations()
    wins_R = ((weights_RP @ _wins(positive_P, negative_P)) * weights_RP).sum(axis=1)
    return np.asarray(wins_R / weights_RP.sum(axis=1) ** 2)


def _wins(positive_N: Floats, negative_M: Floats) -> Floats:
    positive_N1, negative_1M = positive_N[:, None], negative_M[None, :]
    wins_NM = (positive_N1 > negative_1M) + 0.5 * (positive_N1 == negative_1M)
    # A comparison alone would count a score that is not a number as the lower one.
    return np.asarray(np.where(np.isnan(positive_N1) | np.isnan(negative_1M), np.nan, wins_NM))


def jackknife(value: float, without_K: Floats, level: float = 0.95) -> Estimate:
    """Interval of a smooth statistic from its values with one of K equal blocks left out.

    Unlike a bootstrap it does not add noise to a cosine of two estimated directions, which would push the
    whole interval below the estimate.
    """
    count = len(without_K)
    if not np.isfinite(value):
        return NOTHING
    if count < 2 or not np.isfinite(without_K).all():
        return Estimate(value, None, None)
    error = float(np.sqrt((count - 1) / count * ((without_K - without_K.mean()) ** 2).sum()))
    half = error * float(scipy_stats.t.ppf((1 + level) / 2, count - 1))
    return Estimate(value, value - half, value + half)
