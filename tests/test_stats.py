"""Clustered intervals: exact where they can be, calibrated where they cannot."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em.stats import Estimate, Resampling, auroc, clustered_mean, jackknife, paired_auroc


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


# Resampling


def test_the_first_row_is_the_sample_and_others_draw_as_many_clusters() -> None:
    draws = Resampling(["a", "b", "a", "c"], 50)
    assert draws.count == 3 and draws.weights_RC.shape == (51, 3)
    assert draws.weights_RC[0].tolist() == [1, 1, 1] and (draws.weights_RC.sum(axis=1) == 3).all()
    assert draws.observations()[0].tolist() == [1, 1, 1, 1]
    assert (draws.observations()[:, 0] == draws.observations()[:, 2]).all(), "a cluster stays together"


def test_sums_by_cluster_and_means_by_hand() -> None:
    draws = Resampling(["a", "b", "a"], 20)
    sums = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    counts = np.array([1.0, 2.0, 1.0])
    assert draws.by_cluster(sums).tolist() == [[4.0, 2.0], [40.0, 20.0]]
    a, b = draws.weights_RC.T
    assert draws.totals(sums) == pytest.approx(np.stack([4 * a + 2 * b, 40 * a + 20 * b], axis=1))
    expected = (4 * a + 2 * b) / (2 * a + 2 * b)
    assert draws.means(sums, counts) == pytest.approx(np.stack([expected, 10 * expected], axis=1))
    assert draws.mean(sums[0], counts).value == pytest.approx(6 / 4)
    cube = np.stack([sums, 2 * sums, 3 * sums])
    assert draws.means(cube, counts).shape == (21, 3, 2)
    assert draws.means(cube, counts)[:, 2, 1] == pytest.approx(30 * expected)


def test_resamples_are_shared_by_what_is_compared_and_differ_by_purpose() -> None:
    names = [str(number) for number in range(9)]
    one, again, other, seeded = (
        Resampling(names, 30, seed, purpose).weights_RC
        for seed, purpose in ((0, ""), (0, ""), (0, "soup"), (1, ""))
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other) and not np.array_equal(one, seeded)


def test_what_does_not_exist_has_no_interval() -> None:
    draws = Resampling(["a", "b", "c"], 4)
    nan = np.nan
    assert draws.estimate(np.array([nan, 1, 1, 1, 1.0])) == Estimate(None, None, None)
    assert draws.estimate(np.array([2, 1, nan, nan, nan])) == Estimate(2.0, None, None)
    half = draws.estimate(np.array([2, 1, 3, nan, nan]))
    assert half == Estimate(2.0, pytest.approx(1.0, abs=1e-3), pytest.approx(3.0, abs=1e-3))
    assert Resampling(["a", "b"], 0).estimate(np.array([2.0])) == Estimate(2.0, None, None)
    assert Resampling(["a"], 5).mean(np.array([3.0]), np.array([2.0])) == Estimate(1.5, 1.5, 1.5)
    assert Estimate(1.0, None, None).as_dict(norm=2.0) == {
        "norm": 2.0,
        "value": 1.0,
        "low": None,
        "high": None,
    }


@pytest.mark.parametrize("clusters", [5, 12, 60])
def test_intervals_are_calibrated_even_for_few_clusters(clusters: int) -> None:
    """Plain percentiles cover 84% with 5 clusters; the widened levels make up for it."""
    rng = np.random.default_rng(0)
    names, covered, repeats = [str(number) for number in range(clusters)], 0, 400
    for repeat in range(repeats):
        found = Resampling(names, 300, repeat).mean(rng.normal(1.0, 2.0, clusters), np.ones(clusters))
        assert found.low is not None and found.high is not None
        covered += found.low <= 1.0 <= found.high
    assert 0.9 <= covered / repeats <= 0.98


# AUROC


def test_auroc_by_hand() -> None:
    assert auroc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert auroc(np.array([0.0, 1.0]), np.array([2.0])) == 0.0
    assert auroc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    assert auroc(np.array([1.0, 3.0]), np.array([1.0, 2.0])) == (0.5 + 0 + 1 + 1) / 4
    assert auroc(np.array([np.inf]), np.array([np.inf])) == 0.5
    assert np.isnan(auroc(np.array([1.0, np.nan]), np.array([0.0])))
    assert np.isnan(auroc(np.array([1.0]), np.array([0.0, np.nan])))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=8), st.integers(0, 99)
)
def test_a_resampled_auroc_is_that_of_the_repeated_pairs(pairs: list[tuple[int, int]], seed: int) -> None:
    positive, negative = np.array(pairs, dtype=float).T
    draws = Resampling([str(number) for number in range(len(pairs))], 3, seed)
    found = paired_auroc(positive, negative, draws)
    for row, weights in enumerate(draws.observations().astype(int)):
        assert found[row] == pytest.approx(auroc(np.repeat(positive, weights), np.repeat(negative, weights)))
    assert paired_auroc(negative, positive, draws) == pytest.approx(1 - found)
    assert paired_auroc(2 * positive + 1, 2 * negative + 1, draws) == pytest.approx(found), "ranks alone"


def test_auroc_intervals_cover() -> None:
    """Two normal scores 1 apart that share their prompt's effect: Φ(1 / √4)."""
    rng = np.random.default_rng(0)
    truth, covered, repeats = 0.6914625, 0, 200
    names = [str(number) for number in range(40)]
    for repeat in range(repeats):
        prompt = rng.normal(size=40)
        positive, negative = prompt + rng.normal(1, 1, 40), prompt + rng.normal(0, 1, 40)
        draws = Resampling(names, 200, repeat)
        found = draws.estimate(paired_auroc(positive, negative, draws))
        assert found.low is not None and found.high is not None
        covered += found.low <= truth <= found.high
    assert 0.9 <= covered / repeats <= 0.99


# Jackknife


def test_the_jackknife_of_a_mean_is_the_t_interval() -> None:
    values = np.array([1.0, 4.0, 2.0, 7.0, 3.5])
    without = (values.sum() - values) / (len(values) - 1)
    found = jackknife(float(values.mean()), without)
    half = 2.7764451 * values.std(ddof=1) / 5**0.5
    assert found.value == pytest.approx(3.5)
    assert (found.low, found.high) == pytest.approx((3.5 - half, 3.5 + half))
    assert jackknife(3.5, np.full(5, 3.5)) == Estimate(3.5, 3.5, 3.5)


def test_the_jackknife_of_what_does_not_exist() -> None:
    assert jackknife(np.nan, np.array([1.0, 2.0])) == Estimate(None, None, None)
    assert jackknife(1.0, np.array([1.0, np.nan])) == Estimate(1.0, None, None)
    for few in (np.array([]), np.array([1.0])):
        assert jackknife(1.0, few) == Estimate(1.0, None, None)
