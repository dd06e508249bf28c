"""Shares by hand, and no interval where one would be a lie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em.errors import MeasurementError
from em.measurements.shares import DomainShift, Shares, interval, ratio
from em.stats import Estimate, Floats, Resampling


def domain(name: str, shifts: dict[str, Floats], weights: Floats | None = None) -> DomainShift:
    count = len(next(iter(shifts.values())))
    weights = np.ones(count) if weights is None else weights
    return DomainShift(name, [f"{name} {n}" for n in range(count)], weights, shifts)


def rows(mean: float, count: int = 20, noise: float = 0.3, seed: int = 0) -> Floats:
    found = np.random.default_rng(seed).normal(0, noise, count)
    return np.asarray(mean + found - found.mean())


def two(own: Floats, other: Floats, kept: float = 0.5, leaked: float = 0.1) -> Shares:
    return Shares(
        [
            domain("soup", {"general": own, "narrow": kept * own}),
            domain("tent", {"general": other, "narrow": leaked * other}),
        ],
        ["soup"],
        "general",
        500,
    )


def test_shares_by_hand() -> None:
    found = Shares(
        [
            domain("soup", {"general": np.array([2.0, 4.0]), "narrow": np.array([1.0, 3.0])}),
            domain("tent", {"general": np.array([1.0, 1.0]), "narrow": np.array([0.0, 0.2])}),
            domain("boat", {"general": np.array([5.0, 1.0]), "narrow": np.array([0.4, 0.0])}),
        ],
        ["soup"],
        "general",
        50,
    )
    assert (found.own, found.others) == (["soup"], ["tent", "boat"])
    assert found.moved("narrow", found.others)[0] == pytest.approx((0.1 + 0.2) / 2)
    assert found.kept("narrow", found.own)[0] == pytest.approx(2.0 / 3.0)
    assert found.kept("narrow", found.others)[0] == pytest.approx(0.15 / 2.0), "not the mean of 0.1 and 0.067"
    assert found.gap("narrow")[0] == pytest.approx(2.0 / 3.0 - 0.075)
    assert found.narrowness("narrow")[0] == pytest.approx(0.15 / 2.0)
    assert found.narrowness("general")[0] == pytest.approx(2.0 / 3.0)


def test_rows_count_by_their_weight() -> None:
    tokens = np.array([1.0, 3.0])
    found = Shares(
        [
            domain("soup", {"general": np.array([1.0, 2.0])}, tokens),
            domain("tent", {"general": np.array([1.0, 1.0])}, tokens),
        ],
        ["soup"],
        "general",
        20,
    )
    assert found.moved("general", ["soup"])[0] == pytest.approx((1 * 1 + 3 * 2) / 4)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 1.5), st.floats(0.0, 1.0))
def test_a_solution_that_is_a_multiple_of_the_general_one_keeps_exactly_that(
    kept: float, leaked: float
) -> None:
    found = two(rows(2.0), rows(1.0, seed=1), kept, leaked)
    own, other = (
        found.estimate(found.kept("narrow", ["soup"])),
        found.estimate(found.kept("narrow", ["tent"])),
    )
    for estimate, planted in ((own, kept), (other, leaked)):
        assert estimate.value == pytest.approx(planted, abs=1e-9)
        assert estimate.low == pytest.approx(planted, abs=1e-9), "the same prompts for both: nothing varies"
        assert estimate.high == pytest.approx(planted, abs=1e-9)


def test_the_general_solution_keeps_all_of_itself() -> None:
    found = two(rows(2.0), rows(1.0, seed=1))
    for domains in (found.own, found.others):
        assert found.estimate(found.kept("general", domains)) == Estimate(1.0, 1.0, 1.0)
    assert found.estimate(found.gap("general")) == Estimate(0.0, 0.0, 0.0)


def test_a_ratio_to_nothing_has_no_value_and_to_almost_nothing_no_interval() -> None:
    sure = two(rows(2.0), rows(1.0))
    unsure, without = two(rows(2.0), rows(0.02)), two(rows(2.0), rows(-0.5))
    low = sure.estimate(sure.kept("narrow", ["tent"])).low
    assert low is not None
    found = unsure.estimate(unsure.kept("narrow", ["tent"]))
    assert found.value == pytest.approx(0.1) and (found.low, found.high) == (None, None)
    assert without.estimate(without.kept("narrow", ["tent"])) == Estimate(None, None, None)
    moved = without.estimate(without.moved("narrow", ["tent"]))
    assert moved.value == pytest.approx(-0.05) and moved.high is not None


def test_one_prompt_has_no_interval() -> None:
    found = two(np.array([2.0]), rows(1.0))
    assert found.draws(["soup", "tent"]).count == 1
    assert found.estimate(found.kept("narrow", ["soup"])) == Estimate(0.5, None, None)
    assert found.estimate(found.kept("narrow", ["tent"]), ["tent"]).low == pytest.approx(0.1)


def test_ratio_and_interval_say_nan_and_none() -> None:
    assert np.isnan(ratio(np.ones(3), np.array([0.0, -1.0, 2.0]))).tolist() == [True, True, False]
    draws = Resampling(["a", "b", "c"], 100, 0)
    values = np.concatenate([[1.0], np.linspace(0, 2, 100)])
    whole = interval(values, draws)
    assert whole.low is not None and whole.high is not None and whole.low < 1.0 < whole.high
    values[1:3] = np.nan
    assert interval(values, draws).low is not None, "2 of 100 are within the tail"
    values[3] = np.nan
    assert interval(values, draws) == Estimate(1.0, None, None)
    assert interval(np.full(101, np.nan), draws) == Estimate(None, None, None)


def test_both_kinds_of_domain_are_needed() -> None:
    one = domain("soup", {"general": np.ones(2)})
    with pytest.raises(MeasurementError, match="measured in soup, trained on soup: shares need"):
        Shares([one], ["soup"], "general")
    with pytest.raises(MeasurementError, match="measured in soup, trained on none"):
        Shares([one], [], "general")
