"""Intervals for means of dependent observations."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from em.hooks import keyed_seed


def clustered_mean(
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
    clusters: Sequence[str],
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of Σ sums / Σ counts, resampling whole clusters.

    Args:
        sums, counts: per observation, for example nats and tokens of one answer.
        clusters: the cluster of each observation (its prompt or question); clusters, not observations,
            are drawn, because answers to one prompt are not independent.
        resamples: bootstrap draws.
        seed: key of the draws.
        level: coverage.

    Returns:
        (low, high). A single cluster has no spread: both equal the estimate, so read `clusters` too.

    Raises:
        ValueError: no observations.
    """
    if len(sums) == 0:
        raise ValueError("no observations")
    names = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    member = np.array([names[name] for name in clusters])
    total = np.bincount(member, weights=sums, minlength=len(names))
    weight = np.bincount(member, weights=counts.astype(float), minlength=len(names))
    generator = np.random.default_rng(keyed_seed(seed, "bootstrap"))
    draws = generator.integers(len(names), size=(resamples, len(names)))
    means = total[draws].sum(axis=1) / weight[draws].sum(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
