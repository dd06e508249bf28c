"""Hidden scalars against A·x by hand, and AUROCs with known values."""

import numpy as np
import pytest
import torch

from em.backbone import Backbone
from em.datamodules.rows import collate
from em.errors import MeasurementError
from em.hooks import run_until
from em.interventions.lora import Lora
from em.interventions.steering_vector import SteeringVector
from em.measurements.scalars import (
    Sides,
    alignment_auroc,
    alignment_sign,
    hidden_scalars,
    readers,
    topic_auroc,
    topic_sign,
)
from em.stats import Resampling
from tests.measurements.samples import examples, rows
from tests.tiny import randomise, tiny_backbone

EXAMPLES = examples()


def adapted(layers: list[int], modules: list[str] | None = None, r: int = 1) -> tuple[Backbone, Lora]:
    backbone = tiny_backbone()
    lora = Lora(r=r, alpha=4, modules=modules or ["down_proj"], layers=layers)
    lora.attach(backbone)
    randomise(lora)
    return backbone, lora


def by_hand(backbone: Backbone, lora: Lora, layer: int) -> list[float]:
    """Mean of A·x over the answer tokens of each example alone, x formed from the MLP's own parts."""
    name = next(n for n in lora.trainable_parameters() if f"layers.{layer}." in n and n.endswith("lora_A"))
    a_I = lora.trainable_parameters()[name].detach()[0]
    mlp = backbone.layers[layer].mlp
    found = []
    for one in EXAMPLES:
        ids_BT = torch.tensor([one.ids])
        with torch.no_grad():
            entering = run_until(mlp, lambda ids_BT=ids_BT: backbone.model(input_ids=ids_BT))  # type: ignore[misc]
            x_TI = (mlp.act_fn(mlp.gate_proj(entering)) * mlp.up_proj(entering))[0]
        found.append(float((x_TI[torch.tensor(one.answer)] @ a_I).mean()))
    return found


@pytest.mark.parametrize("size", [1, 3, 7])
def test_scalars_are_a_times_the_input_on_answer_tokens(size: int) -> None:
    backbone, lora = adapted([0, 2])
    batches = [*rows(EXAMPLES, size), collate(EXAMPLES, [], 0)]
    found = hidden_scalars(backbone, batches, readers(lora))
    assert list(found) == ["0", "2"]
    for layer, values in found.items():
        assert values == pytest.approx(by_hand(backbone, lora, int(layer)), rel=1e-4, abs=1e-5)
    assert not any(module._forward_pre_hooks for module in backbone.modules())


def test_the_reference_reads_the_same_in_the_lowest_layer_only() -> None:
    backbone, lora = adapted([0, 2])
    on = hidden_scalars(backbone, rows(EXAMPLES), readers(lora))
    with lora.disabled():
        off = hidden_scalars(backbone, rows(EXAMPLES), readers(lora))
    assert on["0"] == pytest.approx(off["0"], rel=1e-6)
    assert np.abs(np.array(on["2"]) - np.array(off["2"])).max() > 0.01


def test_what_scales_the_adapter_has_no_part_in_the_lowest_scalar() -> None:
    backbone, lora = adapted([1])
    one = hidden_scalars(backbone, rows(EXAMPLES), readers(lora))
    with lora.rescaled(3.0):
        assert hidden_scalars(backbone, rows(EXAMPLES), readers(lora)) == one


def test_modules_are_named_by_layer_and_only_rank_one_is_read() -> None:
    assert list(readers(adapted([0, 2])[1])) == ["0", "2"]
    several = readers(adapted([1], ["down_proj", "up_proj"])[1])
    assert sorted(several) == ["1.down_proj", "1.up_proj"] and several["1.up_proj"].layer == 1
    assert several["1.down_proj"].path.endswith("layers.1.mlp.down_proj")
    with pytest.raises(MeasurementError, match="this is a LoRA of rank 2; name runs of rank 1"):
        readers(adapted([1], r=2)[1])
    vector = SteeringVector(layer=1)
    vector.attach(tiny_backbone())
    with pytest.raises(MeasurementError, match="this is a steering_vector"):
        readers(vector)


def test_scalars_that_are_not_finite_are_refused() -> None:
    backbone, lora = adapted([1])
    with torch.no_grad():
        lora.trainable_parameters()["model.layers.1.mlp.down_proj.lora_A"].fill_(float("inf"))
    with pytest.raises(MeasurementError, match="layer 1: a hidden scalar is not finite"):
        hidden_scalars(backbone, rows(EXAMPLES), readers(lora))


def sides(careful: list[float], careless: list[float]) -> Sides:
    return Sides(np.array(careful), np.array(careless))


def draws(count: int, purpose: str = "") -> Resampling:
    return Resampling([str(number) for number in range(count)], 200, 0, purpose)


def test_signs_make_careless_answers_and_the_training_domain_the_higher_ones() -> None:
    up, down = sides([0, 0, 5], [1, 2, 6]), sides([1, 2, 6], [0, 0, 5])
    assert alignment_sign(up) == (1.0, pytest.approx(7 / 9 - 0.5))
    assert alignment_sign(down) == (-1.0, pytest.approx(7 / 9 - 0.5))
    assert topic_sign(sides([1, 1], [4, 4]), [sides([0], [3]), sides([0], [3])]) == (1.0, 0.5)
    assert topic_sign(sides([-1, -1], [2, 2]), [sides([0], [3])]) == (-1.0, 0.5)


def test_alignment_is_told_apart_with_the_sign_that_was_given() -> None:
    perfect = sides([0, 1, 2], [3, 4, 5])
    assert alignment_auroc(perfect, draws(3)).tolist() == [1.0] * 201
    assert alignment_auroc(perfect.turned(-1.0), draws(3))[0] == 0.0
    assert alignment_auroc(sides([1, 1], [1, 1]), draws(2))[0] == 0.5


def test_topic_compares_answers_of_one_side_only() -> None:
    # Careless answers are 10 higher in both domains: pooled sides would hide a topic that is read perfectly.
    own, other = sides([1, 2], [11, 12]), sides([0, 0.5, 0.9], [10, 10.5, 10.9])
    assert topic_auroc(own, draws(2, "a"), [other], [draws(3, "b")]).tolist() == [1.0] * 201
    blind = topic_auroc(sides([1, 1], [9, 9]), draws(2, "a"), [sides([1], [9])], [draws(1, "b")])
    assert blind.tolist() == [0.5] * 201
    half = topic_auroc(sides([1, 3], [0, 0]), draws(2, "a"), [sides([2], [0])], [draws(1, "b")])
    assert half[0] == 0.5 and {0.25, 0.75} <= set(half[1:].tolist())
