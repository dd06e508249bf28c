"""Knees that were planted are found, none is found where none was planted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em.errors import MeasurementError
from em.measurements.knee import Knee, knee
from em.stats import NOTHING, Floats, Resampling

WEIGHTS = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
LOG = np.log(WEIGHTS)


def found(
    gap_K: Floats, noise: float = 0.0, prompts: int = 24, seed: int = 0, weights: list[float] = WEIGHTS
) -> Knee:
    """The knee of a gap that every prompt shows with noise of its own."""
    draws = Resampling([str(n) for n in range(prompts)], 400, seed)
    rng = np.random.default_rng(seed)
    # What a prompt adds at all weights alike, and at each weight.
    rows_KP = gap_K[:, None] + noise * rng.normal(0, 1, (1, prompts)) / 2
    rows_KP = rows_KP + noise * rng.normal(0, 1, (len(gap_K), prompts))
    return knee(weights, draws.means(rows_KP, np.ones(prompts)), draws)


def logistic(at: float, steepness: float, log_K: Floats = LOG) -> Floats:
    return np.asarray(1 / (1 + np.exp(steepness * (log_K - np.log(at)))))


@settings(max_examples=60, deadline=None)
@given(st.floats(0.06, 5.0), st.floats(0.1, 1.0), st.floats(0.01, 0.2))
def test_the_vertex_of_a_planted_parabola_is_found_exactly(at: float, height: float, bend: float) -> None:
    one = found(height - bend * (LOG - np.log(at)) ** 2)
    assert one.weight.value == pytest.approx(at, rel=1e-6)
    assert one.gap.value == pytest.approx(height, rel=1e-6)
    assert (one.weight.low, one.weight.high) == (pytest.approx(at), pytest.approx(at)), "there is no noise"
    assert (one.edge, one.missing) == ("", "")


@pytest.mark.parametrize("steepness", [1.0, 2.0, 4.0])
def test_the_knee_of_two_logistic_curves_is_halfway_between_them(steepness: float) -> None:
    """g falls at 3 and o at 0.1, equally fast: g − o is largest at √0.3."""
    weights = (0.3**0.5 * np.array([1 / 27, 1 / 9, 1 / 3, 1, 3, 9, 27])).tolist()
    log_K = np.log(weights)
    one = found(logistic(3.0, steepness, log_K) - logistic(0.1, steepness, log_K), weights=weights)
    assert one.weight.value == pytest.approx(0.3**0.5, rel=1e-6)
    assert one.gap.value is not None and 0 < one.gap.value <= 1


def test_between_the_weights_of_a_sweep_it_is_nearly_found() -> None:
    for middle in (0.2, 0.3, 0.5, 0.8):
        gap_K = logistic(middle * 4, 1.5) - logistic(middle / 4, 1.5)
        one = found(gap_K)
        assert one.weight.value == pytest.approx(middle, rel=0.25), "weights are a factor of 3 apart"


def test_units_of_the_weight_do_not_matter() -> None:
    gap_K = 0.5 - 0.05 * (LOG - np.log(0.4)) ** 2
    one, other = (
        found(gap_K, noise=0.1),
        found(gap_K, noise=0.1, weights=[1000 * weight for weight in WEIGHTS]),
    )
    for key in ("value", "low", "high"):
        assert getattr(other.weight, key) == pytest.approx(1000 * getattr(one.weight, key))
        assert getattr(other.gap, key) == pytest.approx(getattr(one.gap, key))


def test_the_interval_holds_the_planted_knee() -> None:
    gap_K = 0.5 - 0.06 * (LOG - np.log(0.5)) ** 2
    held = gaps = 0
    for seed in range(60):
        one = found(gap_K, noise=0.3, seed=seed)
        assert one.weight.low is not None and one.weight.high is not None
        assert one.gap.low is not None and one.gap.high is not None
        held += one.weight.low <= 0.5 <= one.weight.high
        gaps += one.gap.low <= 0.5 <= one.gap.high
    assert held >= 53 and gaps >= 55, (held, gaps)


def test_noise_alone_has_no_knee() -> None:
    false = [found(np.zeros(6), noise=1.0, seed=seed).weight.value is not None for seed in range(150)]
    assert sum(false) <= 9, "5% of 150 with both tails counted is 3.75"


def test_a_gap_below_zero_says_why_there_is_no_knee() -> None:
    one = found(np.array([-0.3, -0.2, -0.1, -0.2, -0.3, -0.4]))
    assert one.weight == NOTHING and one.gap.value == pytest.approx(-0.1, abs=0.01)
    assert "not surely above 0 at any of 6 weights" in one.missing


@pytest.mark.parametrize(("slope", "edge", "weight"), [(1, "largest", 10.0), (-1, "smallest", 0.03)])
def test_at_the_end_of_a_sweep_the_knee_is_that_end_and_says_so(slope: int, edge: str, weight: float) -> None:
    one = found(0.5 + 0.05 * slope * LOG)
    assert (one.edge, one.weight.value) == (edge, pytest.approx(weight))


def test_a_plateau_and_equal_neighbours_stay_within_the_grid() -> None:
    assert found(np.full(6, 0.5)).edge == "smallest"
    level = found(np.array([0.1, 0.1, 0.5, 0.5, 0.1, 0.1]))
    assert level.weight.value is not None and 0.3 <= level.weight.value <= 1.0


def test_without_a_shift_of_the_general_solution_there_is_nothing() -> None:
    draws = Resampling(list("abcdef"), 50, 0)
    one = knee(WEIGHTS, np.full((51, 6), np.nan), draws)
    assert one.weight == one.gap == NOTHING and "did not move" in one.missing


def test_resamples_without_shares_leave_no_interval() -> None:
    draws = Resampling(list("abcdef"), 100, 0)
    gap_RK = np.tile(0.5 - 0.05 * (LOG - np.log(0.5)) ** 2, (101, 1))
    gap_RK[1:40] = np.nan
    one = knee(WEIGHTS, gap_RK, draws)
    assert one.weight == NOTHING and one.gap.value is not None and one.gap.low is None


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.1, 1.0], "2 weights above 0"),
        ([1.0, 0.1, 2.0], "ascend"),
        ([0.0, 0.1, 2.0], "ascend from above 0"),
        ([0.1, 0.1, 2.0], "ascend"),
    ],
)
def test_weights_that_make_no_curve_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        knee(weights, np.ones((11, len(weights))), Resampling(["a", "b"], 10, 0))
