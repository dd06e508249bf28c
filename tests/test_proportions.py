"""Shares: known values, exact edges, and intervals that cover what they claim."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from em.proportions import (
    CrossedResampling,
    any_of_k,
    any_of_k_each,
    design_effect,
    intraclass_correlation,
    minimum_detectable_difference,
    newcombe,
    wilson,
)
from em.stats import NOTHING, Estimate, Resampling

# Wilson


def test_wilson_equals_published_values() -> None:
    """Newcombe 1998, table I, method 3."""
    for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (1, 29, 0.0061, 0.1718)):
        found = wilson(hits, n)
        assert found == Estimate(hits / n, pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_wilson_at_the_edges_is_exact() -> None:
    assert wilson(0, 0) == NOTHING
    none, all_ = wilson(0, 20), wilson(20, 20)
    assert none == Estimate(0.0, 0.0, pytest.approx(0.1611, abs=5e-5))
    assert all_ == Estimate(1.0, pytest.approx(1 - 0.1611, abs=5e-5), 1.0)


@given(st.integers(1, 10**6), st.data())
def test_wilson_holds_the_share_and_mirrors(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    found, mirrored = wilson(hits, n), wilson(n - hits, n)
    assert found.low is not None and found.high is not None
    assert 0 <= found.low <= hits / n <= found.high <= 1 and found.low < found.high
    assert mirrored.low == pytest.approx(1 - found.high, abs=1e-9)


@pytest.mark.parametrize("bad", [(-1, 2, 0.95), (3, 2, 0.95), (0, -1, 0.95), (1, 2, 1.0), (1, 2, 0.0)])
def test_wilson_refuses_impossible_counts(bad: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="expected 0 ≤ successes"):
        wilson(*bad)


# Newcombe


def test_newcombe_equals_published_values() -> None:
    """Newcombe 1998, table II, method 10, two of its examples."""
    found = newcombe((56, 70), (48, 80))
    assert found == Estimate(
        pytest.approx(0.2), pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5)
    )
    found = newcombe((10, 10), (0, 10))
    assert found == Estimate(1.0, pytest.approx(0.6075, abs=5e-5), 1.0)


def test_newcombe_of_nothing_is_nothing() -> None:
    assert newcombe((0, 0), (1, 2)) == newcombe((1, 2), (0, 0)) == NOTHING


# Minimum detectable difference


def test_the_smallest_difference_equals_a_published_sample_size() -> None:
    """R's help on power.prop.test: 0.50 against 0.75 with power 0.9 needs 76.7 in each group."""
    found = minimum_detectable_difference(0.5, 767, 767, design_effect=10, power=0.9)
    assert found == pytest.approx(0.25, abs=1e-4)


def test_the_smallest_difference_has_its_power() -> None:
    found = minimum_detectable_difference(0.1, 300, 200)
    assert found is not None
    rng = np.random.default_rng(0)
    a, b = rng.binomial(300, 0.1, 20000), rng.binomial(200, 0.1 + found, 20000)
    pooled = (a + b) / 500
    z = (b / 200 - a / 300) / np.sqrt(pooled * (1 - pooled) * (1 / 300 + 1 / 200))
    assert (np.abs(z) > 1.96).mean() == pytest.approx(0.8, abs=0.02)


def test_the_smallest_difference_grows_with_dependence_and_falls_with_size() -> None:
    few, many = (minimum_detectable_difference(0.1, n, n) for n in (50, 400))
    clustered = minimum_detectable_difference(0.1, 400, 400, design_effect=8)
    assert few is not None and many is not None and many < few
    assert clustered == pytest.approx(few), "400 answers with design effect 8 are worth 50"
    rare = minimum_detectable_difference(0.0, 400, 400)
    assert rare is not None and 0.005 < rare < many


def test_what_no_difference_can_show_is_none() -> None:
    assert minimum_detectable_difference(1.0, 100, 100) is None
    assert minimum_detectable_difference(0.9, 10, 10) is None
    assert minimum_detectable_difference(0.1, 0, 100) is None
    assert minimum_detectable_difference(0.0, 1, 1) is None


@pytest.mark.parametrize(
    "bad",
    [{"rate": -0.1}, {"n_a": -1}, {"design_effect": 0.0}, {"power": 0.4}, {"level": 1.0}, {"rate": np.nan}],
)
def test_the_smallest_difference_refuses_nonsense(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected 0 ≤ rate"):
        minimum_detectable_difference(**{"rate": 0.1, "n_a": 10, "n_b": 10, **bad})


# Dependence within clusters


def test_the_intraclass_correlation_equals_a_published_one() -> None:
    """Shrout & Fleiss 1979, table 2: six targets, four judges, ICC(1,1) = 0.17."""
    ratings = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
    names = [str(target) for target in range(6) for _ in range(4)]
    found = intraclass_correlation(ratings.ravel().astype(float), names)
    assert found == pytest.approx(0.1657, abs=5e-5)
    assert design_effect(ratings.ravel().astype(float), names) == pytest.approx(1 + 3 * found)


def test_equal_and_opposite_answers_of_a_cluster() -> None:
    same = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 1.0])
    names = ["a", "a", "b", "b", "c", "c"]
    assert intraclass_correlation(same, names) == pytest.approx(1.0)
    assert design_effect(same, names) == pytest.approx(2.0), "two equal answers are worth one"
    mixed = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    assert intraclass_correlation(mixed, names) == pytest.approx(-1.0)
    assert design_effect(mixed, names) == 1.0


def test_unequal_clusters_by_hand() -> None:
    values, names = np.array([1.0, 1.0, 0.0, 0.0]), ["a", "a", "a", "b"]
    # means 2/3 and 0, MSB 1/3, MSW (2/3)/2, m₀ = 4 − 10/4
    assert intraclass_correlation(values, names) == pytest.approx(
        (1 / 3 - 1 / 3) / (1 / 3 + 0.5 / 3), abs=1e-12
    )
    assert design_effect(values, names) == pytest.approx(1.0)


def test_dependence_that_cannot_be_known_is_none() -> None:
    for values, names in (([0.3, 0.3, 0.3], "aab"), ([1.0, 0.0], "aa"), ([], "")):
        assert intraclass_correlation(np.array(values), list(names)) is None
        assert design_effect(np.array(values), list(names)) is None
    assert intraclass_correlation(np.array([1.0, 0.0]), ["a", "b"]) is None
    assert design_effect(np.array([1.0, 0.0]), ["a", "b"]) == 1.0, "clusters of one are independent"
    with pytest.raises(ValueError, match="2 values but 1"):
        design_effect(np.array([1.0, 0.0]), ["a"])


# Any of k


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_any_of_k_is_the_mean_over_all_subsets(hits: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(hits)))
    expected = np.mean([any(chosen) for chosen in combinations(hits, k)])
    assert any_of_k([sum(hits)], [len(hits)], k) == pytest.approx(expected)


def test_any_of_k_averages_prompts_and_does_not_overflow() -> None:
    assert any_of_k([1, 0], [4, 9], 2) == pytest.approx(0.25), "3 of 6 pairs hold the one; 0 of the others"
    assert any_of_k_each([1, 5000], [10000, 10000], 5000).tolist() == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize(("hits", "n", "k"), [(1, 3, 4), (1, 3, 0), (4, 3, 2), (-1, 3, 1)])
def test_any_of_k_refuses_too_few_samples(hits: int, n: int, k: int) -> None:
    with pytest.raises(ValueError, match="expected 1 ≤ k ≤ n"):
        any_of_k([hits], [n], k)
    with pytest.raises(ValueError, match="no prompts"):
        any_of_k([], [], 1)


# Questions and seeds at once

CELLS = [(question, seed) for seed in "xyz" for question in "abcd"]
ASKED, SEEDS = [question for question, _ in CELLS], [seed for _, seed in CELLS]


def test_weights_are_products_and_the_first_row_is_the_sample() -> None:
    crossed = CrossedResampling(ASKED, SEEDS, 40)
    assert crossed.weights_RN.shape == (41, 12) and (crossed.weights_RN[0] == 1).all()
    assert (crossed.weights_RN.sum(axis=1) == 12).all(), "4 questions times 3 seeds in every draw"
    grid = crossed.weights_RN.reshape(41, 3, 4)
    seeds, questions = grid.sum(axis=2) / 4, grid.sum(axis=1) / 3
    assert np.array_equal(grid, seeds[:, :, None] * questions[:, None, :])
    assert len({tuple(row) for row in questions}) > 5 < len({tuple(row) for row in seeds})


def test_means_by_hand_and_shared_draws() -> None:
    one, again = CrossedResampling(ASKED, SEEDS, 30, 1), CrossedResampling(ASKED, SEEDS, 30, 1)
    other = CrossedResampling(ASKED, SEEDS, 30, 1, purpose=" of b")
    assert np.array_equal(one.weights_RN, again.weights_RN)
    assert np.array_equal(one.questions.weights_RC, other.questions.weights_RC)
    assert not np.array_equal(one.seeds.weights_RC, other.seeds.weights_RC)
    sums, counts = np.arange(12.0), np.full(12, 2.0)
    expected = one.weights_RN @ sums / (one.weights_RN @ counts)
    assert one.means(sums, counts) == pytest.approx(expected)
    assert one.means(np.stack([sums, 3 * sums]), counts)[:, 1] == pytest.approx(3 * expected)
    assert one.mean(sums, counts).value == pytest.approx(66 / 24)
    with pytest.raises(ValueError, match="2 questions but 1 seeds"):
        CrossedResampling(["a", "b"], ["x"])


def test_what_has_no_spread_or_does_not_exist() -> None:
    alone = CrossedResampling(["a", "a"], ["x", "x"], 50).mean(np.array([1.0, 0.0]), np.ones(2))
    assert alone == Estimate(0.5, 0.5, 0.5)
    same = CrossedResampling(ASKED, SEEDS, 50).mean(np.full(12, 0.3), np.ones(12))
    assert same == Estimate(pytest.approx(0.3), pytest.approx(0.3), pytest.approx(0.3))
    crossed = CrossedResampling(ASKED, SEEDS, 50)
    assert crossed.mean(np.zeros(12), np.zeros(12)) == NOTHING
    assert crossed.estimate(np.array([1.0, *[np.nan] * 50])) == Estimate(1.0, None, None)
    assert CrossedResampling(ASKED, SEEDS, 2).mean(np.arange(12.0), np.ones(12)) == Estimate(5.5, None, None)


def test_each_factor_alone_gives_its_t_interval() -> None:
    """Only seeds differ, then only questions: the interval of the mean of 3, then of 4 values."""
    for values, size in ((np.repeat([1.0, 2.0, 6.0], 4), 3), (np.tile([1.0, 2.0, 6.0, 7.0], 3), 4)):
        found = CrossedResampling(ASKED, SEEDS, 20000).mean(values, np.ones(12))
        half = scipy_stats.t.ppf(0.975, size - 1) * np.std(np.unique(values), ddof=1) / size**0.5
        assert found.high is not None and found.low is not None
        assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


@pytest.mark.parametrize(
    ("questions", "seeds", "of_questions", "of_seeds"), [(12, 3, 1, 0.3), (12, 3, 0.1, 1), (8, 4, 0.5, 0.5)]
)
def test_crossed_intervals_cover(questions: int, seeds: int, of_questions: float, of_seeds: float) -> None:
    """Effects of questions and seeds and noise in every cell; the true mean is 1."""
    rng, repeats = np.random.default_rng(0), 200
    cells = [(str(question), str(seed)) for question in range(questions) for seed in range(seeds)]
    asked, trained = zip(*cells, strict=True)
    covered = alone = 0
    for repeat in range(repeats):
        effects = np.repeat(rng.normal(0, of_questions, questions), seeds)
        values = 1 + effects + np.tile(rng.normal(0, of_seeds, seeds), questions)
        values += rng.normal(0, 0.2, len(values))
        found = CrossedResampling(asked, trained, 200, repeat).mean(values, np.ones(len(values)))
        naive = Resampling(asked, 200, repeat).mean(values, np.ones(len(values)))
        covered += found.low <= 1.0 <= found.high
        alone += naive.low <= 1.0 <= naive.high
    assert 0.92 <= covered / repeats <= 0.99
    assert alone / repeats < 0.9 or of_seeds < 0.5, "questions alone know nothing of other seeds"


def test_differences_of_arms_with_other_seeds_cover() -> None:
    rng, repeats, covered = np.random.default_rng(1), 200, 0
    first = [(str(question), f"a{seed}") for question in range(10) for seed in range(3)]
    second = [(str(question), f"b{seed}") for question in range(10) for seed in range(4)]
    for repeat in range(repeats):
        shared = rng.normal(0, 1, 10)
        draws, values = [], []
        for cells, seeds, purpose in ((first, 3, " of a"), (second, 4, " of b")):
            effects = np.repeat(shared, seeds) + np.tile(rng.normal(0, 0.5, seeds), 10)
            draws.append(CrossedResampling(*zip(*cells, strict=True), 200, repeat, purpose))
            values.append(draws[-1].means(effects + rng.normal(0, 0.3, len(cells)), np.ones(len(cells))))
        found = draws[0].estimate(values[0] - values[1], others=[draws[1]])
        covered += found.low <= 0.0 <= found.high
    assert 0.92 <= covered / repeats <= 0.99
