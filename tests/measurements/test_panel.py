"""A panel's losses against one unpadded row at a time with full logits, whatever is attached."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from em.datamodules.rows import collate
from em.errors import MeasurementError
from em.hooks import editing
from em.interventions.ablation import Ablation
from em.interventions.base import Intervention
from em.interventions.lora import Lora
from em.interventions.steering import Steering
from em.interventions.steering_vector import SteeringVector
from em.measurements.panel import Panel, mean_loss
from em.modules import losses
from tests.interventions.examples import Case, attached, cases, direction
from tests.measurements.samples import examples, naive, panel, rows, vector
from tests.tiny import randomise, tiny_backbone

EXAMPLES = examples()


@pytest.mark.parametrize("case", cases())
def test_losses_equal_the_naive_ones(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 3 * 400)
    intervention = attached(case, scale=0.1)
    backbone = intervention.backbone
    made = panel(backbone, EXAMPLES, intervention.lowest_layer())
    assert made.nll() == pytest.approx(naive(backbone, EXAMPLES), rel=1e-4)
    reference = made.nll_reference(intervention)
    with intervention.disabled():
        assert reference == pytest.approx(naive(backbone, EXAMPLES), rel=1e-4)
    assert np.abs(reference - made.nll()).max() > 0.01


def test_results_come_in_the_order_of_the_dataset_and_blank_rows_count_nowhere() -> None:
    backbone = tiny_backbone()
    blank = collate([], [], 0)
    listed = rows(EXAMPLES)
    assert [i for batch in listed for i in batch.index_B.tolist()] != sorted(range(len(EXAMPLES)))
    made = Panel(backbone, [listed[2], blank, listed[0]])
    kept = sorted(listed[2].index_B.tolist() + listed[0].index_B.tolist())
    assert made.index_E.tolist() == kept
    assert made.nll() == pytest.approx(naive(backbone, EXAMPLES)[kept], rel=1e-4)
    assert made.tokens_E.tolist() == [sum(EXAMPLES[index].answer) for index in kept]


def test_a_blank_share_gives_no_examples() -> None:
    made = Panel(tiny_backbone(), [collate([], [], 0)])
    assert len(made.nll()) == len(made.index_E) == len(made.tokens_E) == 0
    with pytest.raises(MeasurementError, match="no answer token"):
        mean_loss(made.nll(), made.tokens_E)


def test_the_mean_weighs_tokens_not_answers() -> None:
    assert mean_loss(np.array([4.0, 0.0]), np.array([1.0, 3.0])) == 1.0


@pytest.mark.parametrize("layer", [1, 2])
def test_what_lies_below_is_computed_once_and_changes_no_bit(
    layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    intervention = SteeringVector(layer=2, point="attention")
    backbone = tiny_backbone()
    intervention.attach(backbone)
    randomise(intervention)
    whole, shared = panel(backbone, EXAMPLES), panel(backbone, EXAMPLES, layer)
    assert np.array_equal(whole.nll(), shared.nll())
    assert np.array_equal(whole.nll_reference(intervention), shared.nll_reference(intervention))
    calls: list[int] = []
    mlp = backbone.layers[0].mlp
    monkeypatch.setattr(mlp, "forward", lambda x, inner=mlp.forward: calls.append(1) or inner(x))
    shared.nll()
    assert not calls
    whole.nll()
    assert len(calls) == len(whole.batches)


BELOW: list[Callable[[], Intervention]] = [
    lambda: Ablation.given(direction(), layers=0),
    lambda: Ablation.given(direction(), layers="all"),
    lambda: Steering.given(direction(), layers=0, point="mlp", coefficient=3.0),
    lambda: SteeringVector(layer=0, point="block"),
    lambda: Lora(r=2, layers=[0, 2]),
]


@pytest.mark.parametrize("below", BELOW)
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_what_is_attached_below_the_lowest_layer_still_acts_once(
    below: Callable[[], Intervention], first: bool
) -> None:
    """What was kept knows nothing of it, and hooks of skipped layers would fire on the kept states."""
    backbone = tiny_backbone()
    other = below()
    plain = panel(backbone, EXAMPLES).nll()
    made = None if first else panel(backbone, EXAMPLES, 2)
    other.attach(backbone)
    randomise(other)
    made = made or panel(backbone, EXAMPLES, 2)
    expected = panel(backbone, EXAMPLES).nll()
    assert np.abs(expected - plain).max() > 0.01
    assert np.array_equal(made.nll(), expected)
    assert np.array_equal(made.nll_reference(other), plain)
    other.detach()
    assert np.array_equal(made.nll(), plain), "nothing of it is kept"


def test_a_loss_that_is_not_finite_names_the_example() -> None:
    backbone = tiny_backbone()
    made = panel(backbone, EXAMPLES, size=1)
    seen = 0

    def edit(hidden_BTD: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return hidden_BTD * (float("nan") if seen == 3 else 1.0)

    bad = int(made.batches[2].rows.index_B[0])
    with (
        editing(backbone.layers[1], edit),
        pytest.raises(MeasurementError, match=f"loss of example {bad} is not finite"),
    ):
        made.nll()


def test_a_pass_leaves_nothing_behind() -> None:
    intervention = vector()
    backbone: Any = intervention.backbone
    panel(backbone, EXAMPLES, 1).nll_reference(intervention)
    assert backbone.steer_BT is None
    assert all(p.grad is None for p in intervention.trainable_parameters().values())
    assert not any("forward" in layer.__dict__ for layer in backbone.layers)
    assert torch.is_grad_enabled()
