from typing import Any

import pytest
import torch
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from em.backbone import Backbone
from em.config import build
from em.config.schema import Config
from em.modules.losses import ReferenceStates, cross_entropy_term, divergence_term, head_sum
from em.planning.arithmetic import Flops, Passes, layer_forward, micro_flops, step_flops
from em.planning.rows import Micro, Work
from em.planning.shapes import Shape, from_config
from em.planning.trained import trained_of
from tests.planning.test_kept import KINDS
from tests.tiny import tiny_model, tiny_tokenizer, token_ids

MICRO = Micro((20, 20), (20,), sft_positions=7, kl_positions=5)


def _attention(query: Any, key: Any, value: Any, *_args: Any, out_shape: Any = None, **_kwargs: Any) -> int:
    return flop_counter.sdpa_flop_count(query, key, value)


def _attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *_args: Any, out_shape: Any = None, **_kwargs: Any
) -> int:
    return flop_counter.sdpa_backward_flop_count(grad, query, key, value)


def _in_place(_out: Any, left: Any, right: Any, *_args: Any, out_shape: Any = None, **_kwargs: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


# torch counts the kernels of GPUs; those of the CPU do the same work. It leaves out products added in place.
CPU_KERNELS = {
    torch.ops.aten.addmm_: _in_place,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def counting() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=CPU_KERNELS)


def wide_backbone() -> Backbone:
    """As many heads for keys as for queries: torch's counter refuses shared ones."""
    config = tiny_model("llama").config
    config.num_key_value_heads = config.num_attention_heads
    return Backbone(AutoModelForCausalLM.from_config(config), tiny_tokenizer("chatml"), "wide")


def test_a_forward_pass_takes_what_torch_counts() -> None:
    backbone = wide_backbone()
    shape = from_config(backbone.model.config.to_dict(), "llama")
    with counting() as counted, torch.no_grad():
        backbone.trunk(token_ids(3, 20))
    assert counted.get_total_flops() == 3 * layer_forward(shape, 60, 3 * 400)
    assert layer_forward(shape, 60, 1200) == 2 * 60 * (4 * 32 * 32 + 3 * 32 * 64) + 4 * 1200 * 32


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_takes_what_torch_counts(kind: str) -> None:
    component = KINDS[kind]
    backbone = wide_backbone()
    intervention = build(component, "interventions")
    intervention.attach(backbone, 0)
    shape = from_config(backbone.model.config.to_dict(), "llama")
    trained = trained_of(Config(intervention=component), shape)
    ids_BT, targets_N = token_ids(3, 20), torch.arange(7)
    with counting() as counted:
        lower = backbone.run_lower(ids_BT, trained.lowest)
        with torch.no_grad(), intervention.disabled():
            shared = None if lower is None else (lower[0], lower[1][2:])
            states = ReferenceStates.of(backbone, backbone.trunk(ids_BT[2:], shared)[0, :5])
        hidden_BTD = backbone.trunk(ids_BT, lower)
        sft = head_sum(backbone, hidden_BTD[0, :7], cross_entropy_term(targets_N))
        kl = head_sum(backbone, hidden_BTD[2, :5], divergence_term(states, "forward", 1.0))
        (sft + kl).backward()
    expected = micro_flops(shape, trained, MICRO, Passes(packed=False))
    assert counted.get_total_flops() == expected.total


SHAPE = Shape("llama", 4, 32, 64, 2, 1, 16, 400, tied=True)


def flops(component: dict[str, Any], **passes: Any) -> Flops:
    trained = trained_of(Config(intervention=component), SHAPE)
    return micro_flops(SHAPE, trained, MICRO, Passes(**{"packed": False, **passes}))


def test_what_is_shared_or_stored_is_not_counted() -> None:
    vector = {"kind": "steering_vector", "layer": 2}
    one, kl = layer_forward(SHAPE, 60, 1200), layer_forward(SHAPE, 20, 400)
    shared = flops(vector)
    assert (shared.lower, shared.forward, shared.reference) == (2 * one, 2 * one, 2 * kl)
    assert flops(vector, stored_lower=True).lower == 0
    assert flops(vector, stored_reference=True).reference == 0
    apart = flops(vector, shared=False)
    assert (apart.lower, apart.forward, apart.reference) == (0, 4 * one, 4 * kl)
    assert flops(vector, own_reference=True).reference == 4 * kl
    assert flops(vector, checkpointing=True).again == 2 * one


def test_an_optimizer_step_is_the_mean_micro_batch_times_their_number() -> None:
    trained = trained_of(Config(intervention={"kind": "lora"}), SHAPE)
    passes = Passes(packed=True)
    other = Micro((10,), (), 4, 0)
    work = Work((MICRO, other), MICRO, accumulate=3, steps=1, epochs=1, source="")
    both = [micro_flops(SHAPE, trained, micro, passes).total for micro in (MICRO, other)]
    assert step_flops(SHAPE, trained, work, passes).total == pytest.approx(3 * sum(both) / 2)
    assert work.tokens == 3 * (60 + 10) / 2


def test_packing_leaves_padding_out() -> None:
    uneven = Micro((10, 30), (20,), 1, 1)
    assert (uneven.tokens(True), uneven.tokens(False)) == (60, 90)
    assert (uneven.pairs(True), uneven.pairs(False)) == (100 + 900 + 400, 3 * 900)
    assert (uneven.tokens(True, kl_only=True), uneven.tokens(False, kl_only=True)) == (20, 30)
