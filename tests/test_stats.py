"""Clustered intervals: exact where they can be, calibrated where they cannot."""

import numpy as np
import pytest

from em.stats import clustered_mean


def test_one_cluster_has_no_spread() -> None:
    low, high = clustered_mean(np.array([1.0, 5.0]), np.array([2, 1]), ["a", "a"])
    assert low == high == pytest.approx(2.0)


def test_equal_clusters_have_no_spread() -> None:
    sums, counts = np.array([2.0, 4.0, 6.0]), np.array([1, 2, 3])
    assert clustered_mean(sums, counts, ["a", "b", "c"]) == pytest.approx((2.0, 2.0))


def test_two_clusters_give_their_own_means_as_bounds() -> None:
    """Half of the draws mix the two; a quarter each is one of them alone."""
    low, high = clustered_mean(np.array([0.0, 3.0, 3.0]), np.array([1, 1, 1]), ["a", "b", "b"])
    assert (low, high) == (0.0, 3.0)
    narrow = clustered_mean(np.array([0.0, 3.0, 3.0]), np.array([1, 1, 1]), ["a", "b", "b"], level=0.2)
    assert narrow == (2.0, 2.0), "a ratio of sums: 6 over 3, not the mean of 0 and 3"


def test_observations_are_weighted_by_their_counts() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 50, size=300)
    sums = counts * np.where(counts > 25, 2.0, 0.0)
    low, high = clustered_mean(sums, counts, [str(i) for i in range(300)])
    assert low < sums.sum() / counts.sum() < high
    assert low > (sums / counts).mean()


def test_the_draws_are_keyed() -> None:
    rng = np.random.default_rng(0)
    sums, counts, names = rng.normal(size=30), np.ones(30, dtype=np.int64), [str(i) for i in range(30)]
    np.random.seed(1)
    first = clustered_mean(sums, counts, names, seed=3)
    np.random.seed(2)
    assert clustered_mean(sums, counts, names, seed=3) == first
    assert clustered_mean(sums, counts, names, seed=4) != first


def test_a_higher_level_is_wider() -> None:
    sums = np.random.default_rng(0).normal(size=40)
    bounds = [
        clustered_mean(sums, np.ones(40, dtype=np.int64), [str(i) for i in range(40)], level=level)
        for level in (0.5, 0.95)
    ]
    assert bounds[1][0] < bounds[0][0] < bounds[0][1] < bounds[1][1]


def test_nothing_observed_is_an_error() -> None:
    with pytest.raises(ValueError, match="no observations"):
        clustered_mean(np.array([]), np.array([], dtype=np.int64), [])


def test_coverage_holds_for_dependent_observations() -> None:
    """40 questions of 5 answers that share their question's effect; the true mean is 1."""
    rng = np.random.default_rng(1)
    clusters, size, repeats = 40, 5, 500
    covered = {"clusters": 0, "observations": 0}
    for repeat in range(repeats):
        effect = np.repeat(rng.normal(1.0, 1.0, size=clusters), size)
        sums = effect + rng.normal(0.0, 0.3, size=clusters * size)
        ones = np.ones(len(sums), dtype=np.int64)
        names = {
            "clusters": [str(i // size) for i in range(len(sums))],
            "observations": [str(i) for i in range(len(sums))],
        }
        for how, labels in names.items():
            low, high = clustered_mean(sums, ones, labels, resamples=400, seed=repeat)
            covered[how] += low <= 1.0 <= high
    assert 0.92 <= covered["clusters"] / repeats <= 0.98
    assert covered["observations"] / repeats < 0.75, "ignoring clusters must look too certain here"
