"""Turns that are there and turns that are not, and behaviour of scaled solutions."""

import numpy as np
import pytest
import torch

from em.interventions.lora import Lora
from em.measurements.checkpoints import beside, evenly, half_step, over_seeds, scaled_shifts, sharpest_turn
from em.measurements.margins import PairPanel
from em.measurements.trajectory import Trajectory, rotation
from tests.measurements.samples import pairs
from tests.tiny import randomise, tiny_backbone


def path(points: torch.Tensor) -> Trajectory:
    return Trajectory("run", [10 * number for number in range(len(points))], points)


def corner(before: int, after: int, noise: float = 0.0, seed: int = 0) -> Trajectory:
    """Straight on for some steps, then at a right angle."""
    generator = torch.Generator().manual_seed(seed)
    moves = torch.zeros(before + after, 60)
    moves[:before, 0] = 1.0
    moves[before:, 1] = 1.0
    moves += noise * torch.randn(moves.shape, generator=generator) / 60**0.5
    return path(torch.cat([torch.zeros(1, 60), moves.cumsum(dim=0)]))


def test_a_straight_path_has_no_turn() -> None:
    heading = torch.randn(50, generator=torch.Generator().manual_seed(0))
    turn = sharpest_turn(*rotation(path(torch.arange(12.0)[:, None] * heading)))
    assert turn.step is None and turn.snapshots == 10
    assert turn.rise.value == pytest.approx(0.0, abs=1e-5)
    assert turn.why == "the path turns nowhere more than the noise of its rotation"


def test_a_turn_is_found_at_its_step() -> None:
    turn = sharpest_turn(*rotation(corner(6, 5)))
    assert turn.step == 60 and turn.why == ""
    assert (turn.rise.value, turn.rise.low, turn.rise.high) == (pytest.approx(1.0),) * 3


@pytest.mark.parametrize("k", [1, 2])
def test_a_turn_is_found_among_noise(k: int) -> None:
    found = [sharpest_turn(*rotation(corner(8, 12, 0.3, seed), k), k) for seed in range(20)]
    assert sum(turn.step == 80 for turn in found) >= 19
    for turn in found:
        assert turn.rise.value is not None and turn.rise.low is not None
        assert 0.4 < turn.rise.low < turn.rise.value - 0.01, "the noise of the curve is in the interval"


def test_a_random_walk_has_a_turn_at_the_rate_of_its_interval() -> None:
    found = []
    for seed in range(200):
        steps = torch.randn(20, 40, generator=torch.Generator().manual_seed(seed))
        found.append(sharpest_turn(*rotation(path(steps.cumsum(dim=0)))))
    assert sum(turn.step is not None for turn in found) <= 12


def test_a_rotation_that_drifts_is_no_turn() -> None:
    curve = np.linspace(-1.0, 0.0, 20).tolist()
    for drifting in (curve, curve[::-1]):
        turn = sharpest_turn(range(0, 200, 10), drifting)
        assert turn.step is None and turn.rise.low is not None and turn.rise.low < 0
        assert "no peak within training" in turn.why
    bumpy = sharpest_turn(range(0, 200, 10), [*curve[:12], curve[11] - 0.01, *curve[13:]])
    assert bumpy.step is None and bumpy.rise.low is not None and bumpy.rise.low < 0


def test_how_training_starts_or_ends_is_no_turn() -> None:
    steps, straight = range(0, 100, 10), [-0.9, -0.91] * 5
    assert sharpest_turn(steps, [0.5, *straight[1:]]).step is None
    assert sharpest_turn(steps, [*straight[:-1], 0.5]).step is None
    assert sharpest_turn(steps, [*straight[:5], 0.5, *straight[6:]]).step == 50


def test_few_snapshots_say_that_they_are_few() -> None:
    turn = sharpest_turn([10, 20, 30], [-1.0, 0.0, -1.0])
    assert turn.step is None and "3 snapshots are too few" in turn.why
    assert (turn.rise.value, turn.rise.low) == (1.0, None)
    for count in range(3):
        none = sharpest_turn(list(range(count)), [0.0] * count)
        assert (none.step, none.rise.value, none.snapshots) == (None, None, count)
        assert none.why == f"{count} snapshots with a rotation are too few"


def test_snapshots_are_chosen_evenly_with_both_ends() -> None:
    steps = list(range(0, 110, 10))
    assert evenly(steps, 3) == [0, 50, 100]
    assert evenly(steps, 100) == steps and evenly([0, 5], 6) == [0, 5]


def test_neighbours_of_a_peak() -> None:
    assert beside([0, 10, 20, 30], 20) == (1, 3)
    assert beside([0, 10, 30], 20) == (1, 2)
    assert beside([20, 30], 20) is None and beside([0, 20], 20) is None


def test_the_step_with_half_of_the_last_shift() -> None:
    curves_RS = np.array([[0.0, 0.2, 0.6, 1.0], [0.0, 0.9, 0.9, 1.0], [0.0, 1.0, 1.0, -1.0]])
    assert half_step([0, 10, 20, 30], curves_RS)[:2].tolist() == [20.0, 10.0]
    assert np.isnan(half_step([0, 10, 20, 30], curves_RS)[2])


def test_seeds_have_a_t_interval_and_one_has_none() -> None:
    made = over_seeds([1.0, 2.0, 3.0])
    half = 4.302652729749464 / 3**0.5
    assert (made.value, made.low, made.high) == (2.0, pytest.approx(2 - half), pytest.approx(2 + half))
    assert (over_seeds([4.0]).value, over_seeds([4.0]).low) == (4.0, None)


def test_shifts_are_those_of_the_scaled_solution() -> None:
    backbone = tiny_backbone()
    panels = {"soup": PairPanel(backbone, pairs(4), 1), "tent": PairPanel(backbone, pairs(3, 1, "tent"), 1)}
    lora = Lora(r=1, alpha=2, modules=["down_proj"], layers=[1])
    lora.attach(backbone)
    randomise(lora)
    with lora.disabled():
        references = {domain: panel.losses().margin_P for domain, panel in panels.items()}
    found = scaled_shifts(lora, panels, references, [1.0, 2.0, None])
    before = lora.gathered()
    doubled = {name: value * (2 if name.endswith("B") else 1) for name, value in before.items()}
    for at, values in enumerate((before, doubled)):
        lora.put(values)
        for domain, panel in panels.items():
            expected = panel.losses().margin_P - references[domain]
            assert found[domain][at] == pytest.approx(expected, rel=1e-3, abs=1e-4)
            assert np.abs(expected).max() > 0.01
    assert found["soup"][2] is None and found["tent"][2] is None
