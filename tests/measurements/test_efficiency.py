"""Losses on a common grid of norms: exact at factors 0 and 1, and one factor for all modules."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch

from em.errors import MeasurementError
from em.interventions.base import Intervention
from em.measurements.efficiency import Efficiency, common_norms, efficiency, efficiency_table
from em.measurements.panel import Panel
from em.stats import Floats, Resampling
from tests.measurements.samples import (
    SOLUTIONS,
    changed,
    examples,
    lora,
    naive,
    panel,
    part_norms,
    solutions,
    vector,
)
from tests.tiny import tiny_backbone

EXAMPLES = examples()
Kind = Callable[..., Intervention]


class Watching:
    """In place of a panel: notes the norms of all parts at each pass."""

    def __init__(self, intervention: Intervention):
        self.intervention = intervention
        self.tokens_E = np.ones(2)
        self.seen: list[dict[str, float]] = []

    def nll(self) -> Floats:
        self.seen.append(part_norms(self.intervention))
        return np.zeros(2)

    def nll_reference(self, intervention: Intervention) -> Floats:
        return np.ones(2)


@pytest.mark.parametrize("kind", SOLUTIONS)
def test_factor_one_is_the_original_and_factor_zero_the_reference(kind: Kind) -> None:
    solution = kind()
    made = panel(solution.backbone, EXAMPLES, 1)
    kept, norm = solution.gathered(), solution.norm()
    grid = common_norms([norm], [0.0, 0.5, 1.0, 2.0])
    found = efficiency(solution, made, grid)
    assert np.array_equal(found.nll_KE[2], found.nll_E)
    with solution.rescaled(0.0):
        assert np.array_equal(made.nll(), found.reference_E)
    assert np.array_equal(found.nll_KE[0], found.reference_E)
    with solution.merged():
        assert np.array_equal(found.nll_E, made.nll())
    np.testing.assert_allclose(found.nll_E, made.nll(), rtol=1e-6)  # folded into the weights or beside them
    assert np.abs(found.nll_KE[1] - found.nll_E).max() > 1e-3
    assert not changed(kept, solution) and solution.norm() == norm


@pytest.mark.parametrize("kind", SOLUTIONS)
def test_losses_in_between_are_those_of_the_scaled_update(kind: Kind) -> None:
    solution = kind()
    found = efficiency(solution, panel(solution.backbone, EXAMPLES, 1), [2.0 * solution.norm()])
    with torch.no_grad():
        for name, parameter in solution.trainable_parameters().items():
            if not name.endswith("lora_A"):
                parameter.mul_(2.0)
    assert found.nll_KE[0] == pytest.approx(naive(solution.backbone, EXAMPLES), rel=1e-4)


@pytest.mark.parametrize("kind", SOLUTIONS)
def test_all_parts_get_one_factor_and_the_whole_the_norm_of_the_grid(kind: Kind) -> None:
    """Published code brought every module to the mean norm, which changes the solution at factor 1."""
    solution = kind()
    watching, own = Watching(solution), part_norms(solution)
    grid = [0.3, 1.0, 4.5]
    efficiency(solution, cast(Panel, watching), grid)
    trained, *rescaled = watching.seen
    for norm, parts in zip(grid, rescaled, strict=True):
        assert np.linalg.norm(list(parts.values())) == pytest.approx(norm, rel=1e-6)
        ratios = [parts[name] / own[name] for name in own]
        assert ratios == pytest.approx([norm / solution.norm()] * len(own), rel=1e-6)
    assert trained == own
    if kind is lora:
        assert max(own.values()) > 10 * min(own.values())


@pytest.mark.parametrize(("rslora", "scale"), [(True, 4.0), (False, 2.0)])
def test_the_norm_of_a_lora_is_that_of_its_effective_update(rslora: bool, scale: float) -> None:
    solution = lora(rslora=rslora)
    values = solution.gathered()
    names = {name.removesuffix(".lora_A") for name in values if name.endswith("lora_A")}
    dense = [scale * values[f"{name}.lora_B"] @ values[f"{name}.lora_A"] for name in sorted(names)]
    expected = torch.cat([one.flatten() for one in dense]).norm()
    found = efficiency(solution, cast(Panel, Watching(solution)), [1.0])
    assert found.norm == pytest.approx(float(expected), rel=1e-5)


def test_the_grid_is_common() -> None:
    assert common_norms([1.0, 3.0], [0.0, 0.5, 2.0]) == [0.0, 1.0, 4.0]
    own = 0.1 + 0.2
    assert common_norms([own], [1.0]) == [own], "a solution alone is measured as it is"
    backbone = tiny_backbone()
    one = vector(backbone)
    norms = [one.norm(), 3 * one.norm()]
    grid = common_norms(norms, [0.5, 1.5])
    watching = Watching(one)
    efficiency(one, cast(Panel, watching), grid)
    with one.rescaled(3.0):
        efficiency(one, cast(Panel, watching), grid)
    first, second = watching.seen[1:3], watching.seen[4:6]
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=1e-6)


def test_a_solution_without_norm_is_refused() -> None:
    solution = vector(scale=0.0)
    with pytest.raises(MeasurementError, match="steering_vector has norm 0"):
        efficiency(solution, panel(solution.backbone, EXAMPLES), [1.0])
    with pytest.raises(MeasurementError, match="norm 0"):
        common_norms([1.0, 0.0], [1.0])


def made(losses_K: list[float], own: float, reference: float, examples: int = 4) -> Efficiency:
    """The same losses per token for every answer, of 1, 2, … tokens."""
    tokens_E = np.arange(1.0, examples + 1)
    return Efficiency(
        2.0,
        [0.0, 1.0, 2.0],
        np.array(losses_K)[:, None] * tokens_E,
        own * tokens_E,
        reference * tokens_E,
        tokens_E,
    )


def test_curves_and_differences_by_hand() -> None:
    results = {
        "general_1": made([4.0, 2.0, 1.0], 1.0, 4.0),
        "general_2": made([4.0, 1.0, 1.0], 1.0, 4.0),
        "narrow_1": made([4.0, 3.0, 2.0], 2.0, 4.0),
        "vector_1": made([4.0, 3.5, 3.0], 3.0, 4.0),
    }
    known = solutions(general_1="weights", general_2="weights", narrow_1="weights", vector_1="stream")
    draws = Resampling(["a", "b", "c", "d"], 50)
    table: dict[str, Any] = efficiency_table(results, known, {"weights": 1.0, "stream": 2.0}, draws)
    assert table["examples"] == 4 and table["tokens"] == 10
    assert table["reference"]["value"] == pytest.approx(4.0)
    row = table["solutions"]["narrow_1"]
    assert row["loss"] == pytest.approx([4.0, 3.0, 2.0]) == row["low"] == row["high"]
    assert row["own"] == pytest.approx({"value": 2.0, "low": 2.0, "high": 2.0, "norm": 2.0})
    assert row["equal_norm"]["value"] == pytest.approx(3.0) and row["equal_norm"]["norm"] == 1.0
    assert table["solutions"]["vector_1"]["equal_norm"]["value"] == pytest.approx(3.0)
    [difference] = table["differences"]
    assert (difference["a"], difference["b"], difference["seeds"]) == ("general", "narrow", 1)
    assert difference["value"] == pytest.approx(-1.5) and difference["by_seed"] == pytest.approx([-1.0])


def test_a_norm_off_the_grid_is_refused() -> None:
    with pytest.raises(MeasurementError, match=r"norm 1.5 is not on the grid \[0.0, 1.0, 2.0\]"):
        made([4.0, 2.0, 1.0], 1.0, 4.0).loss_at(1.5, Resampling(["a", "b", "c", "d"], 5))
