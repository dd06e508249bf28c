"""Differences of arms by hand: means over seeds, pairs of equal seeds, and which norms can be compared."""

import numpy as np
import pytest

from em.measurements.arms import columns, differences
from em.stats import Estimate, Floats, Resampling
from tests.measurements.samples import solutions

DRAWS = Resampling(["a", "b", "c", "d"], 200)


def constant(value: float) -> Floats:
    return np.full(201, value)


def test_arms_are_means_over_their_seeds_and_pairs_share_a_seed() -> None:
    values = {name: constant(v) for name, v in {"g_1": 1.0, "g_2": 3.0, "n_2": 10.0, "n_3": 20.0}.items()}
    [row] = differences(values, solutions(g_1="w", g_2="w", n_2="w", n_3="w"), DRAWS)
    assert row == {"a": "g", "b": "n", "seeds": 1, "by_seed": [-7.0], "value": -13.0, "low": -13, "high": -13}


def test_every_two_arms_in_the_order_given() -> None:
    names = ("b_0", "a_0", "c_0", "b_1", "a_1")
    values = {name: constant(float(number)) for number, name in enumerate(names)}
    rows = differences(values, solutions(**dict.fromkeys(names, "w")), DRAWS)
    assert [(row["a"], row["b"], row["seeds"]) for row in rows] == [
        ("b", "a", 2),
        ("b", "c", 1),
        ("a", "c", 1),
    ]
    assert rows[0]["by_seed"] == [0.0 - 1.0, 3.0 - 4.0] and rows[0]["value"] == pytest.approx(-1.0)


def test_arms_without_a_common_seed_have_no_pairs() -> None:
    [row] = differences({"a_1": constant(1), "b_2": constant(2)}, solutions(a_1="w", b_2="w"), DRAWS)
    assert row["seeds"] == 0 and row["by_seed"] == [] and row["value"] == -1.0


def test_norms_of_other_spaces_are_not_compared() -> None:
    values = {name: constant(1.0) for name in ("a", "b", "v")}
    known = solutions(a="weights", b="weights", v="stream")
    assert [(r["a"], r["b"]) for r in differences(values, known, DRAWS, same_space=True)] == [("a", "b")]
    assert len(differences(values, known, DRAWS)) == 3


def test_differences_are_paired_over_resamples() -> None:
    """Prompts vary much, but both solutions alike, so the difference is known well."""
    rng = np.random.default_rng(0)
    draws = Resampling([str(number) for number in range(40)], 400)
    hard_N = rng.normal(0, 10, 40)
    a_R, b_R = (draws.means(hard_N + shift + rng.normal(0, 0.1, 40), np.ones(40)) for shift in (0.5, 0.0))
    [row] = differences({"a": a_R, "b": b_R}, solutions(a="w", b="w"), draws)
    assert 0.3 < row["low"] < 0.5 < row["high"] < 0.7
    alone = draws.estimate(a_R)
    assert alone.low is not None and alone.high is not None and alone.high - alone.low > 3


def test_what_does_not_exist_has_no_difference() -> None:
    values = {"a": constant(float("nan")), "b": constant(1.0)}
    [row] = differences(values, solutions(a="w", b="w"), DRAWS)
    assert row["value"] is None and row["by_seed"] == [None] and row["seeds"] == 1


def test_one_arm_alone_has_no_difference() -> None:
    values = {"a_1": constant(1.0), "a_2": constant(1.0)}
    assert differences(values, solutions(a_1="w", a_2="w"), DRAWS) == []


def test_curves_as_columns() -> None:
    found = columns([Estimate(1.0, 0.5, 2.0), Estimate(None, None, None)], "loss")
    assert found == {"loss": [1.0, None], "low": [0.5, None], "high": [2.0, None]}
