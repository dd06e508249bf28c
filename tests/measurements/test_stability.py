"""Loss under orthogonal noise: the geometry of what is scored, and exact curves made by hand."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch

from em.errors import MeasurementError
from em.hooks import generator_for
from em.interventions.base import Intervention
from em.interventions.update import Update
from em.measurements.panel import Panel
from em.measurements.stability import Stability, stability, stability_table
from em.stats import Floats, Resampling
from tests.measurements.samples import (
    SOLUTIONS,
    changed,
    examples,
    fitted,
    naive,
    panel,
    part_norms,
    solutions,
)

EXAMPLES = examples()
EPSILONS = [0.1, 0.5, 1.0]
Kind = Callable[..., Intervention]


class Watching:
    """In place of a panel with a gain: notes the update at each pass."""

    def __init__(self, intervention: Intervention):
        self.intervention = intervention
        self.tokens_E = np.ones(2)
        self.seen: list[Update] = []

    def nll(self) -> Floats:
        self.seen.append(self.intervention.update())
        return np.zeros(2)

    def nll_reference(self, intervention: Intervention) -> Floats:
        return np.ones(2)


def watched(solution: Intervention, epsilons: list[float], draws: int, seed: int = 0) -> list[list[Update]]:
    """The updates that `stability` scores, by draw and ε."""
    watching = Watching(solution)
    stability(solution, cast(Panel, watching), epsilons, draws, seed)
    seen = watching.seen[1:]
    return [seen[at : at + len(epsilons)] for at in range(0, len(seen), len(epsilons))]


def dense(update: Update) -> torch.Tensor:
    """The whole update as one vector."""
    parts = update.parts.values()
    return torch.cat(
        [(left if right is None else left @ right.to(left)).double().flatten() for left, right in parts]
    )


@pytest.mark.parametrize("kind", SOLUTIONS)
def test_the_cosine_is_the_root_of_one_minus_epsilon_squared_at_equal_norm(kind: Kind) -> None:
    """Noise on A and B apart would give 1 − ε² for a LoRA, so vectors and LoRAs could not be compared."""
    solution = kind()
    x, norms = solution.update(), part_norms(solution)
    for by_epsilon in watched(solution, EPSILONS, 2):
        for epsilon, noisy in zip(EPSILONS, by_epsilon, strict=True):
            assert x.cosine(noisy) == pytest.approx((1 - epsilon**2) ** 0.5, abs=2e-6)
            for name, part in noisy.parts.items():
                own = Update({name: x.parts[name]})
                assert own.cosine(Update({name: part})) == pytest.approx((1 - epsilon**2) ** 0.5, abs=2e-6)
                assert Update({name: part}).norm() == pytest.approx(norms[name], rel=1e-5)


@pytest.mark.parametrize("kind", SOLUTIONS)
def test_the_noise_of_a_draw_is_one_noise_at_every_epsilon(kind: Kind) -> None:
    solution = kind()
    x = dense(solution.update())
    directions = []
    for by_epsilon in watched(solution, EPSILONS, 2):
        noises = [
            (dense(noisy) - (1 - e**2) ** 0.5 * x) / e for e, noisy in zip(EPSILONS, by_epsilon, strict=True)
        ]
        for noise in noises:
            torch.testing.assert_close(noise, noises[-1], rtol=1e-4, atol=2e-5 * float(x.abs().max()))
        directions.append(noises[-1])
    assert abs(float(directions[0] @ directions[1]) / float(x @ x)) < 0.6, "each draw has its own"


@pytest.mark.parametrize("kind", SOLUTIONS)
def test_two_solutions_of_one_shape_share_their_noise(kind: Kind) -> None:
    """y is what is left of one keyed noise n after its component along x is taken out."""
    one, other = kind(seed=1), kind(seed=2)
    y, z = (dense(watched(each, [1.0], 3)[2][0]) for each in (one, other))
    n = noise(one)
    for solution, found in ((one, y), (other, z)):
        expected, at = [], 0
        for left, right in solution.update().parts.values():
            x = dense(Update({"": (left, right)}))
            part = n[at : at + len(x)]
            at += len(x)
            rest = part - float(part @ x) / float(x @ x) * x
            expected.append(rest * float(x.norm() / rest.norm()))
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)
    different = dense(watched(one, [1.0], 3, seed=1)[2][0])
    assert not torch.allclose(y, different, atol=1e-2)


def noise(solution: Intervention) -> torch.Tensor:
    """The noise of draw 2 of seed 0 as drawn, made anew from its key."""
    generator = generator_for(0, "stability", 2)
    parts = []
    for left, right in solution.update().parts.values():
        if right is None:
            parts.append(torch.randn(left.shape, generator=generator, dtype=torch.float64))
        else:
            a = torch.randn(right.shape, generator=generator)
            parts.append((torch.randn(left.shape, generator=generator) @ a).double())
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("kind", SOLUTIONS)
def test_losses_are_those_of_the_noisy_solution(kind: Kind) -> None:
    solution = fitted(kind, EXAMPLES)
    made, kept, passes = panel(solution.backbone, EXAMPLES, 1), solution.gathered(), []
    found = stability(solution, made, [1e-5, 0.5], 2, seed=4, progress=lambda: passes.append(1))
    assert found.nll_KSE.shape == (2, 2, len(EXAMPLES)) and len(passes) == 4
    assert np.array_equal(found.nll_E, made.nll())
    assert np.array_equal(found.reference_E, made.nll_reference(solution))
    with solution.perturbed(0.5, generator_for(4, "stability", 1)):
        assert found.nll_KSE[1, 1] == pytest.approx(naive(solution.backbone, EXAMPLES), rel=1e-4)
    draws = Resampling([str(number) for number in range(len(EXAMPLES))], 20)
    tiny, half = found.degradation(draws)[0]
    assert abs(tiny) < 0.01 < half, "as ε goes to 0, the solution itself"
    assert not changed(kept, solution)
    known = stability(solution, made, [0.5], 1, seed=4, known=(found.nll_E, found.reference_E))
    assert np.array_equal(known.nll_KSE[0, 0], found.nll_KSE[1, 0])


def test_nothing_to_lose_is_refused() -> None:
    solution = SOLUTIONS[0]()
    made = panel(solution.backbone, EXAMPLES)
    with solution.rescaled(0.0), pytest.raises(MeasurementError, match="there is no gain"):
        stability(solution, made, [0.5], 1)
    for epsilons, draws in (([0.0], 1), ([0.5, 1.1], 1), ([-0.5], 1), ([0.5], 0)):
        with pytest.raises(MeasurementError, match=r"give ε in \(0, 1\] and draws ≥ 1"):
            stability(solution, made, epsilons, draws)


def by_hand(degradation_K: list[float], own: float = 1.0, reference: float = 3.0) -> Stability:
    """A solution whose loss has risen by these percent, alike for all answers and draws."""
    tokens_E = np.array([1.0, 2.0, 5.0])
    losses_K = own + np.array(degradation_K) / 100 * (reference - own)
    nll_KSE = np.broadcast_to(losses_K[:, None, None] * tokens_E, (len(losses_K), 4, 3))
    epsilons = [(k + 1) / len(losses_K) for k in range(len(losses_K))]
    return Stability(epsilons, nll_KSE, own * tokens_E, reference * tokens_E, tokens_E)


DRAWS = Resampling(["a", "b", "c"], 30)


def test_zero_is_unharmed_and_a_hundred_the_reference() -> None:
    values_RK = by_hand([0.0, 50.0, 100.0, 130.0]).degradation(DRAWS)
    assert values_RK.shape == (31, 4)
    assert values_RK == pytest.approx(np.tile([0.0, 50.0, 100.0, 130.0], (31, 1)), abs=1e-9)
    curve = by_hand([0.0, 50.0, 100.0]).curve(DRAWS)
    assert [one.value for one in curve] == pytest.approx([0, 50, 100])
    assert [one.low for one in curve] == pytest.approx([one.high for one in curve])


@pytest.mark.parametrize(
    ("curve", "area", "half"),
    [
        ([25.0, 50.0, 75.0, 100.0], 50.0, 0.5),  # a straight line
        ([0.0, 0.0, 0.0, 0.0], 0.0, 1.0),  # never: the largest ε
        ([100.0, 100.0, 100.0, 100.0], 87.5, 0.125),
        ([0.0, 0.0, 100.0, 100.0], 37.5, 0.625),
        ([50.0, 40.0, 60.0, 100.0], 50.0, 0.25),  # the first crossing
        ([-10.0, 0.0, 10.0, 40.0], 5.0, 1.0),
    ],
)
def test_area_and_half_life(curve: list[float], area: float, half: float) -> None:
    made = by_hand(curve)
    assert made.area(DRAWS) == pytest.approx(np.full(31, area), abs=1e-9)
    assert made.half_life(DRAWS) == pytest.approx(np.full(31, half), abs=1e-9)


def test_area_does_not_depend_on_the_spacing_of_a_straight_line() -> None:
    tokens_E = np.ones(3)
    grid = [0.01, 0.05, 0.3, 0.5]
    nll_KSE = np.array([1 + 2 * e for e in grid])[:, None, None] * np.ones((4, 2, 3))
    made = Stability(grid, nll_KSE, tokens_E, 3 * tokens_E, tokens_E)
    assert made.area(DRAWS)[0] == pytest.approx(25.0)
    assert made.half_life(DRAWS)[0] == pytest.approx(0.5)


def test_no_gain_in_a_resample_is_no_number() -> None:
    """Answers b and c gain nothing, so resamples without a have no gain."""
    tokens_E = np.ones(3)
    reference_E = np.array([3.0, 1.0, 1.0])
    made = Stability([1.0], np.ones((1, 2, 3)), tokens_E, reference_E, tokens_E)
    values_R = made.degradation(DRAWS)[:, 0]
    without = DRAWS.weights_RC[:, 0] == 0
    assert without.any() and np.isnan(values_R[without]).all() and np.isfinite(values_R[~without]).all()
    assert np.isnan(made.half_life(DRAWS)[without]).all()
    assert made.curve(DRAWS)[0].value == 0.0


def test_intervals_cover_the_truth_with_both_sources_of_noise() -> None:
    rng = np.random.default_rng(0)
    truth, prompts, draws, repeats = 40.0, 30, 10, 200
    covered = 0
    for repeat in range(repeats):
        own_E, gain_E = rng.normal(1, 0.1, prompts), rng.normal(1, 0.3, prompts)
        share_SE = truth / 100 + rng.normal(0, 0.1, (draws, 1)) + rng.normal(0, 0.2, (draws, prompts))
        made = Stability([1.0], (own_E + share_SE * gain_E)[None], own_E, own_E + gain_E, np.ones(prompts))
        draw = Resampling([str(number) for number in range(prompts)], 300, repeat)
        found = made.curve(draw, repeat)[0]
        assert found.low is not None and found.high is not None
        covered += found.low <= truth <= found.high
    assert 0.88 <= covered / repeats <= 0.99


def test_the_table_compares_arms() -> None:
    results = {"narrow": by_hand([50.0, 100.0]), "general": by_hand([10.0, 40.0])}
    known = solutions(narrow="weights", general="stream", still="weights")
    table: dict[str, Any] = stability_table(results, known, DRAWS, {"still": "no gain"})
    row = table["solutions"]["narrow"]
    assert row["degradation"] == pytest.approx([50.0, 100.0]) and row["draws"] == 4
    assert row["area"]["value"] == pytest.approx(50.0) and row["half_life"]["value"] == pytest.approx(0.5)
    assert table["missing"] == {"still": "no gain"}
    [area], [half] = table["differences"]["area"], table["differences"]["half_life"]
    assert (area["a"], area["b"]) == ("narrow", "general"), "relative to each one's own norm, so comparable"
    assert area["value"] == pytest.approx(50.0 - 15.0) and half["value"] == pytest.approx(0.5 - 1.0)
