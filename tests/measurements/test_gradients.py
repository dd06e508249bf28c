"""Gradients against autograd and finite differences, and cosines against the whole gradient."""

import numpy as np
import pytest
import torch
from torch import Tensor

from em.backbone import Backbone
from em.datamodules.rows import collate
from em.errors import MeasurementError
from em.hooks import Point
from em.interventions.steering_vector import SteeringVector
from em.measurements.gradients import Pull, apart, cosine_estimate, random_directions, row_gradients
from tests.measurements.samples import examples, naive, nll, rows
from tests.tiny import randomise, tiny_backbone

EXAMPLES = examples()


def steered(
    point: Point = "mlp", positions: str = "all", scale: float = 1.0
) -> tuple[Backbone, SteeringVector]:
    backbone = tiny_backbone()
    vector = SteeringVector(layer=1, point=point, positions=positions, scale=scale)  # type: ignore[arg-type]
    vector.attach(backbone)
    randomise(vector, scale=0.3)
    return backbone, vector


@pytest.mark.parametrize(("point", "positions"), [("mlp", "all"), ("block", "answer"), ("attention", "all")])
def test_each_row_has_the_gradient_that_autograd_gives_it_alone(point: Point, positions: str) -> None:
    backbone, vector = steered(point, positions)
    index, gradients_ED = row_gradients(backbone, rows(EXAMPLES), vector.site, positions)
    assert sorted(index) == list(range(len(EXAMPLES))) and gradients_ED.dtype == torch.float64
    for at, found_D in zip(index, gradients_ED, strict=True):
        (expected_D,) = torch.autograd.grad(nll(backbone, EXAMPLES[at]), vector.vector)
        assert found_D.tolist() == pytest.approx(expected_D.tolist(), rel=1e-3, abs=1e-4)
    assert vector.vector.grad is None


def test_it_is_the_slope_of_the_loss_with_respect_to_what_is_added() -> None:
    backbone, vector = steered(scale=4.0)
    _, gradients_ED = row_gradients(backbone, rows(EXAMPLES), vector.site)
    heading = torch.randn(32, generator=torch.Generator().manual_seed(3))
    heading /= heading.norm()
    losses = []
    for step in (0.02, -0.02):
        with vector.swapped({"vector": vector.vector.detach() + step * heading / 4.0}):
            losses.append(naive(backbone, EXAMPLES).sum())
    slope = (losses[0] - losses[1]) / 0.04
    assert float(gradients_ED.sum(dim=0) @ heading.double()) == pytest.approx(slope, rel=5e-3)


def test_batches_do_not_matter_and_blank_rows_count_nowhere() -> None:
    backbone, vector = steered()
    expected = dict(zip(*row_gradients(backbone, rows(EXAMPLES, 1), vector.site), strict=True))
    batches = [*rows(EXAMPLES, 4), collate(EXAMPLES, [], 0)]
    index, gradients_ED = row_gradients(backbone, batches, vector.site)
    assert len(index) == len(EXAMPLES)
    for at, found_D in zip(index, gradients_ED, strict=True):
        torch.testing.assert_close(found_D, expected[at], rtol=1e-4, atol=1e-5)
    with pytest.raises(MeasurementError, match="no row to take a gradient of"):
        row_gradients(backbone, [], vector.site)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    backbone, vector = steered()
    with torch.no_grad():
        vector.vector.fill_(float("nan"))
    with pytest.raises(
        MeasurementError, match=r"the gradient of example \d is not finite; use backbone.dtype"
    ):
        row_gradients(backbone, rows(EXAMPLES), vector.site)


def gradients(count: int = 5, width: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def test_cosines_are_those_of_the_whole_gradient_with_and_without_each_prompt() -> None:
    gradients_ED, prompts = gradients(), ["a", "b", "a", "c", "d"]
    heading = torch.arange(8.0)
    value, without_C = Pull.of(gradients_ED, prompts, {"up": heading}).cosine("up")
    assert value == pytest.approx(cosine(-gradients_ED.sum(dim=0), heading.double()), rel=1e-12)
    for prompt, found in zip("abcd", without_C, strict=True):
        kept = torch.tensor([one != prompt for one in prompts])
        expected = cosine(-gradients_ED[kept].sum(dim=0), heading.double())
        assert found == pytest.approx(expected, rel=1e-9)


def test_a_gradient_of_zero_has_no_cosine_and_a_direction_of_zero_is_refused() -> None:
    one = gradients(1)
    pull = Pull.of(torch.cat([one, -one]), ["a", "b"], {"up": torch.ones(8)})
    assert np.isnan(pull.cosine("up")[0]) and np.isfinite(pull.cosine("up")[1]).all()
    estimate, seeds = cosine_estimate([pull], {"up": 1.0})
    assert (estimate.value, seeds) == (None, (None,))
    with pytest.raises(MeasurementError, match="narrow_only: this direction has no length"):
        Pull.of(one, ["a"], {"narrow_only": torch.zeros(8)})


def test_the_difference_is_paired_and_the_mean_is_over_solutions() -> None:
    prompts = list("abcde")
    headings = {"general": torch.ones(8), "narrow": -torch.arange(8.0)}
    pulls = [Pull.of(gradients(seed=seed), prompts, headings) for seed in (1, 2)]
    estimate, seeds = cosine_estimate(pulls, {"general": 1.0, "narrow": -1.0})
    alone = [pull.cosine("general")[0] - pull.cosine("narrow")[0] for pull in pulls]
    assert seeds == pytest.approx(alone) and estimate.value == pytest.approx(np.mean(alone))
    without = np.mean([pull.cosine("general")[1] - pull.cosine("narrow")[1] for pull in pulls], axis=0)
    error = np.sqrt(4 / 5 * ((without - without.mean()) ** 2).sum())
    assert estimate.high is not None
    assert estimate.high - float(np.mean(alone)) == pytest.approx(error * 2.7764451051977934)


def test_parts_and_controls() -> None:
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])
    assert apart(one, other).tolist() == [0.0, 4.0]
    made = random_directions(50, 400, 0)
    again = random_directions(50, 400, 0)
    assert all(torch.equal(made[name], again[name]) for name in made)
    assert not torch.equal(made["random_0"], random_directions(1, 400, 1)["random_0"])
    sizes = [abs(cosine(made["random_0"], made[f"random_{number}"])) for number in range(1, 50)]
    assert np.mean(sizes) == pytest.approx((2 / np.pi) ** 0.5 / 20, rel=0.3)
