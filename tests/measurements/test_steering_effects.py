"""Sweeps in one pass against single passes, and ablation of a planted direction."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from em.backbone import Backbone
from em.errors import AdapterError, MeasurementError
from em.hooks import Site, editing
from em.interventions.direction import Direction
from em.interventions.steering import Steering
from em.interventions.steering_vector import SteeringVector
from em.measurements.margins import PairPanel
from em.measurements.steering_effects import AblationEffect, ablation_effect, steering_sweep
from em.stats import Resampling
from tests.interventions.examples import direction
from tests.measurements.samples import fit, losses, nll, pairs
from tests.tiny import tiny_backbone

PAIRS = pairs()
DRAWS = Resampling([pair.prompt for pair in PAIRS], 100)
COEFFICIENTS = [-2.0, 0.0, 0.5, 8.0]


def hooks_left(backbone: Backbone) -> bool:
    return any(module._forward_hooks for module in backbone.modules())


def steering(backbone: Backbone, coefficient: float = 1.0, **options: Any) -> Steering:
    made = Steering.given(direction(), coefficient=coefficient, **options)
    made.attach(backbone)
    return made


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 1},
        {"layers": [1, 2], "source": 0, "relative": True},
        {"layers": 2, "point": "mlp", "unit": False, "positions": "answer"},
        {"layers": 0},
    ],
)
def test_one_pass_is_many_runs(options: dict[str, Any]) -> None:
    backbone = tiny_backbone()
    scale = 0.1 if options.get("relative") else 1.0
    swept = [scale * coefficient for coefficient in COEFFICIENTS]
    base = steering(backbone, **options)
    found = steering_sweep(backbone, PAIRS, base, swept)
    base.detach()
    assert found.coefficients == swept and not hooks_left(backbone)
    plain = PairPanel(backbone, PAIRS).losses()
    for coefficient, together in zip(swept, found.losses, strict=True):
        single = steering(backbone, coefficient, **options)
        alone = PairPanel(backbone, PAIRS, single.lowest_layer()).losses()
        single.detach()
        for name in ("careless_P", "careful_P"):
            assert getattr(together, name) == pytest.approx(getattr(alone, name), rel=1e-3), coefficient
        assert np.array_equal(together.careless_tokens_P, plain.careless_tokens_P)
        assert np.array_equal(together.careful_tokens_P, plain.careful_tokens_P)
    assert found.losses[1].margin_P == pytest.approx(plain.margin_P, rel=1e-3, abs=1e-4)
    assert np.abs(found.losses[3].margin_P - plain.margin_P).max() > 0.01


@pytest.mark.parametrize("count", [1, 3, 40])
def test_any_number_of_coefficients(count: int) -> None:
    backbone = tiny_backbone()
    plain = PairPanel(backbone, PAIRS).losses()
    swept = np.linspace(0, 4, count).tolist()
    found = steering_sweep(backbone, PAIRS, steering(backbone, layers=1), swept)
    assert len(found.losses) == count
    assert found.losses[0].margin_P == pytest.approx(plain.margin_P, rel=1e-3, abs=1e-4)


def test_steering_beside_something_attached_below() -> None:
    """What is attached below acts once, not again on what was kept for the sweep."""
    backbone = tiny_backbone()
    steering(backbone, 5.0, layers=1)
    plain = PairPanel(backbone, PAIRS).losses()
    swept = steering(backbone, layers=2)
    found = steering_sweep(backbone, PAIRS, swept, [0.0])
    assert found.losses[0].margin_P == pytest.approx(plain.margin_P, rel=1e-3, abs=1e-4)


def planted(backbone: Backbone) -> SteeringVector:
    """The only change: a vector at layer 1 that makes careless answers likelier."""
    made = SteeringVector(layer=1, point="block", scale=2.0)
    made.attach(backbone)
    fit(
        made,
        lambda: torch.stack([nll(backbone, p.careless) - nll(backbone, p.careful) for p in PAIRS]).sum(),
        steps=6,
        lr=0.1,
    )
    return made


def test_ablating_a_planted_direction_removes_the_shift_and_a_random_one_does_not() -> None:
    """After layer 1 the adapted model differs along the vector only, so nothing is left without it."""
    backbone = tiny_backbone()
    solution = planted(backbone)
    panel = PairPanel(backbone, PAIRS, 1)
    adapted = panel.losses()
    with solution.disabled():
        reference = panel.losses()
    assert (adapted.margin_P - reference.margin_P).mean() > 0.5
    vector = Direction({Site(1): solution.vector.detach()}, name="planted")
    effect = ablation_effect(backbone, solution.disabled, panel, vector, [1, 2], source=1, controls=8)
    removed_R, random_R = effect.removed(adapted, reference, DRAWS)
    assert removed_R == pytest.approx(np.ones(101), abs=1e-3)
    assert abs(random_R[0]) < 0.25
    assert len(effect.random) == len(effect.random_reference) == 8
    assert effect.ablated.margin_P == pytest.approx(effect.ablated_reference.margin_P, abs=1e-3)
    assert np.abs(effect.ablated_reference.margin_P - reference.margin_P).max() > 1e-3
    assert np.array_equal(panel.losses().margin_P, adapted.margin_P), "the ablation is gone"


def test_a_panel_above_the_ablated_layer_is_right_all_the_same() -> None:
    backbone = tiny_backbone()
    solution = planted(backbone)
    found = [
        ablation_effect(backbone, solution.disabled, PairPanel(backbone, PAIRS, lowest), direction(), "all")
        for lowest in (0, 1)
    ]
    for name in ("ablated", "ablated_reference"):
        one, other = (getattr(effect, name).margin_P for effect in found)
        assert np.array_equal(one, other)


def test_controls_are_keyed() -> None:
    backbone = tiny_backbone()
    panel = PairPanel(backbone, PAIRS)
    a, again, b = (
        ablation_effect(backbone, nullcontext, panel, direction(), 1, seed=seed) for seed in (0, 0, 1)
    )
    assert np.array_equal(a.random[0].margin_P, again.random[0].margin_P)
    assert not np.array_equal(a.random[0].margin_P, b.random[0].margin_P)
    assert np.array_equal(a.ablated.margin_P, b.ablated.margin_P)


def test_the_share_removed_by_hand() -> None:
    zero, one = losses(np.zeros(6)), losses(np.ones(6))
    quarter, most = losses(np.full(6, 0.25)), losses(np.full(6, 0.9))
    effect = AblationEffect(quarter, zero, [most, one], [zero, zero])
    removed_R, random_R = effect.removed(one, zero, DRAWS)
    assert removed_R == pytest.approx(np.full(101, 0.75))
    assert random_R == pytest.approx(np.full(101, 0.05))
    shifted = AblationEffect(losses(np.full(6, 3.0)), losses(np.full(6, 3.0)), [one], [zero])
    assert shifted.removed(one, zero, DRAWS)[0] == pytest.approx(np.ones(101)), (
        "each shift is against the reference treated alike"
    )
    still_R, _ = effect.removed(zero, one, DRAWS)
    assert np.isnan(still_R).all(), "there was no shift towards careless answers to remove"


def test_hooks_are_gone_after_an_exception() -> None:
    backbone = tiny_backbone()
    panel = PairPanel(backbone, PAIRS)
    expected = panel.losses()

    def broken() -> Any:
        raise KeyError

    with pytest.raises(KeyError):
        ablation_effect(backbone, broken, panel, direction(), "all")
    with (
        editing(backbone.layers[2], lambda hidden: hidden * float("nan")),
        pytest.raises(MeasurementError, match="not finite"),
    ):
        ablation_effect(backbone, nullcontext, panel, direction(), 0)
    assert not hooks_left(backbone)
    assert np.array_equal(panel.losses().margin_P, expected.margin_P)


def test_what_is_refused() -> None:
    backbone = tiny_backbone()
    panel = PairPanel(backbone, PAIRS)
    with pytest.raises(MeasurementError, match="set controls to 1 or more"):
        ablation_effect(backbone, nullcontext, panel, direction(), 1, controls=0)
    with pytest.raises(AdapterError, match="width 33"):
        ablation_effect(backbone, nullcontext, panel, direction(width=33), 1)
    assert not hooks_left(backbone)
