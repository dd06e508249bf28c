"""The backbone's split forward passes give the model's own numbers, for every family."""

import copy
import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config

from em.backbone import Backbone
from em.config.schema import BackboneConfig
from em.errors import BackboneError
from em.hooks import Site
from em.interventions.steering_vector import SteeringVector
from em.loading import load_backbone
from tests.tiny import FAMILIES, randomise, save_tiny, tiny_backbone, tiny_model, tiny_tokenizer, token_ids

shared = functools.cache(tiny_backbone)  # for tests that leave it as it is


@pytest.mark.parametrize("family", FAMILIES)
def test_trunk_and_logits_are_the_models_own(family: str) -> None:
    backbone, ids_BT = shared(family), token_ids()
    with torch.no_grad():
        own = backbone.model(input_ids=ids_BT, use_cache=False).logits
        ours = backbone.logits(backbone.trunk(ids_BT))
    assert own.std() > 0.1, "a constant output would compare equal to anything"
    torch.testing.assert_close(ours, own.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_upper_part_gives_the_same_bits_at_every_layer(family: str) -> None:
    backbone, ids_BT = shared(family), token_ids()
    with torch.no_grad():
        whole = backbone.trunk(ids_BT)
        assert backbone.run_lower(ids_BT, 0) is None
        for layer in range(1, backbone.num_layers):
            lower = backbone.run_lower(ids_BT, layer)
            assert lower is not None and lower[0] == layer and not lower[1].requires_grad
            assert torch.equal(backbone.trunk(ids_BT, lower), whole)
    assert not any("forward" in layer.__dict__ for layer in backbone.layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_upper_part_gives_the_same_gradient(family: str) -> None:
    def gradient(split: bool) -> Tensor:
        backbone = shared(family)
        vector = SteeringVector(layer=2, point="block")
        vector.attach(backbone)
        randomise(vector)
        lower = backbone.run_lower(token_ids(), 2) if split else None
        backbone.logits(backbone.trunk(token_ids(), lower)).logsumexp(-1).sum().backward()
        grad = vector.vector.grad
        vector.detach()
        assert grad is not None and bool(grad.any())
        return grad

    assert torch.equal(gradient(True), gradient(False))


def test_lower_layers_are_not_run_again() -> None:
    backbone, ids_BT = tiny_backbone(), token_ids()
    lower = backbone.run_lower(ids_BT, 2)
    ran: list[int] = []
    for number, layer in enumerate(backbone.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    backbone.trunk(ids_BT, lower)
    assert ran == [2]
    ran.clear()
    backbone.run_lower(ids_BT, 2)
    assert ran == [0, 1]


def test_an_exception_leaves_nothing_patched() -> None:
    backbone, ids_BT = tiny_backbone(), token_ids()
    whole, lower = backbone.trunk(ids_BT), backbone.run_lower(ids_BT, 1)

    def fail(*_: object) -> None:
        raise KeyError("inside")

    handle = backbone.layers[2].register_forward_hook(fail)
    with pytest.raises(KeyError):
        backbone.trunk(ids_BT, lower)
    handle.remove()
    handle = backbone.layers[0].register_forward_hook(fail)
    with pytest.raises(KeyError):
        backbone.run_lower(ids_BT, 1)
    handle.remove()
    assert not any("forward" in layer.__dict__ or layer._forward_pre_hooks for layer in backbone.layers)
    assert torch.equal(backbone.trunk(ids_BT), whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padding_does_not_reach_real_positions(family: str) -> None:
    backbone, ids_BT = shared(family), token_ids(rows=3, width=7)
    for pad in (0, 11):
        padded_BT = torch.nn.functional.pad(ids_BT, (0, 5), value=pad)
        with torch.no_grad():
            hidden, padded = backbone.trunk(ids_BT), backbone.trunk(padded_BT)
        torch.testing.assert_close(padded[:, :7], hidden, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", ["all", "answer"])
@pytest.mark.parametrize("point", ["block", "mlp", "attention"])
def test_gradient_checkpointing_gives_the_same_gradient(tmp_path: Path, positions: str, point: str) -> None:
    folder = save_tiny(tmp_path)
    ids_BT = token_ids()
    grads, passes = [], []
    for checkpointing in (False, True):
        backbone = load_backbone(
            BackboneConfig(str(folder), gradient_checkpointing=checkpointing, device="cpu")
        )
        vector = SteeringVector(layer=1, point=point, positions=positions)  # type: ignore[arg-type]
        vector.attach(backbone)
        randomise(vector)
        calls: list[int] = []
        backbone.layers[2].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        for layer in backbone.layers:
            layer.training = True  # as SFTModule does
        with backbone.steering_positions(ids_BT > 200):
            backbone.logits(backbone.trunk(ids_BT)).logsumexp(-1).sum().backward()
        assert vector.vector.grad is not None
        grads.append(vector.vector.grad)
        passes.append(len(calls))
    assert passes == [1, 2], "the backward pass must have computed the layer again"
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-6, atol=1e-6)


def test_fingerprint_follows_the_weights_not_the_precision() -> None:
    model = tiny_model()
    own = Backbone(model, tiny_tokenizer("chatml"), "a").fingerprint
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert Backbone(half, tiny_tokenizer("chatml"), "b").fingerprint == own
    assert Backbone(half.float(), tiny_tokenizer("chatml"), "c").fingerprint == own
    assert tiny_backbone(seed=1).fingerprint != own
    assert tiny_backbone(layers=2).fingerprint != own
    nudged = copy.deepcopy(model)
    nudged.model.layers[2].mlp.down_proj.weight.data.mul_(1.05)
    assert Backbone(nudged, tiny_tokenizer("chatml"), "d").fingerprint != own


@pytest.mark.parametrize("family, option", [("granite", "logits_scaling"), ("cohere", "logit_scale")])
def test_a_post_processed_head_is_refused(family: str, option: str) -> None:
    with pytest.raises(BackboneError, match="output head"):
        tiny_backbone(family, **{option: 8.0})
    assert tiny_backbone(family, **{option: 1.0}).num_layers == 3


def test_a_model_without_layers_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=1))
    with pytest.raises(BackboneError, match="GPT2LMHeadModel"):
        Backbone(model, tiny_tokenizer("chatml"), "gpt2")


def test_a_head_with_bias_is_supported() -> None:
    model = tiny_model()
    model.lm_head = nn.Linear(32, 400)
    backbone = Backbone(model, tiny_tokenizer("chatml"), "biased")
    ids_BT = token_ids()
    torch.testing.assert_close(backbone.logits(backbone.trunk(ids_BT)), model(input_ids=ids_BT).logits)


def test_module_at_names_what_is_wrong() -> None:
    backbone = tiny_backbone()
    assert backbone.module_at(Site(1)) is backbone.layers[1]
    assert backbone.module_at(Site(1, "mlp")) is backbone.layers[1].mlp
    assert backbone.module_at(Site(1, "attention")) is backbone.layers[1].self_attn
    for layer in (-1, 3):
        with pytest.raises(BackboneError, match="layers 0 to 2"):
            backbone.module_at(Site(layer))
    del backbone.layers[0].mlp
    with pytest.raises(BackboneError, match="no part 'mlp'"):
        backbone.module_at(Site(0, "mlp"))


def test_steering_positions_come_back_after_an_exception() -> None:
    backbone = shared("llama")
    outer, inner = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool)
    with backbone.steering_positions(outer):
        with pytest.raises(KeyError), backbone.steering_positions(inner):
            assert backbone.steer_BT is inner
            raise KeyError
        assert backbone.steer_BT is outer
    assert backbone.steer_BT is None


def test_everything_is_frozen_and_in_eval_mode() -> None:
    backbone = tiny_backbone()
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(module.training for module in backbone.model.modules())
