"""Hooks edit every row, leave nothing behind, and capture what is really there."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from em import hooks
from em.hooks import Site, add_edit, capturing, editing, generator_for, keyed_seed, reading_inputs
from em.interventions.steering_vector import SteeringVector
from tests.tiny import randomise, tiny_backbone, token_ids


class Layer(nn.Module):
    """Returns its input as a tensor or, like some decoder layers, as the first item of a tuple."""

    def __init__(self, as_tuple: bool):
        super().__init__()
        self.as_tuple = as_tuple

    def forward(self, hidden_BTD: Tensor) -> Any:
        return (hidden_BTD, "cache", None) if self.as_tuple else hidden_BTD


@pytest.mark.parametrize("as_tuple", [False, True])
def test_every_row_is_edited(as_tuple: bool) -> None:
    layer, hidden_BTD = Layer(as_tuple), torch.randn(5, 4, 3)
    kept, vector = hidden_BTD.clone(), torch.tensor([1.0, 2.0, 3.0])
    with editing(layer, lambda hidden: hidden + vector):
        output = layer(hidden_BTD)
    assert isinstance(output, tuple) == as_tuple
    assert torch.equal(hooks.first(output), kept + vector)
    assert torch.equal(hidden_BTD, kept), "the input must not be edited in place"
    if as_tuple:
        assert output[1:] == ("cache", None)


def test_hooks_are_gone_after_an_exception() -> None:
    layer = Layer(False)
    with pytest.raises(KeyError), editing(layer, torch.neg), capturing({Site(0): layer}):
        assert len(layer._forward_hooks) == 2
        raise KeyError
    assert not layer._forward_hooks

    def fail(_: Tensor) -> Tensor:
        raise ValueError("in the edit")

    with pytest.raises(ValueError), editing(layer, fail):
        layer(torch.ones(1))
    assert not layer._forward_hooks
    assert torch.equal(layer(torch.ones(1)), torch.ones(1))


@pytest.mark.parametrize("as_tuple", [False, True])
def test_captures_are_clones(as_tuple: bool) -> None:
    layer, hidden_BTD = Layer(as_tuple), torch.ones(2, 3, 4)
    with capturing({Site(0): layer}) as captured:
        output = hooks.first(layer(hidden_BTD))
        output.mul_(7)
    assert torch.equal(captured[Site(0)], torch.ones(2, 3, 4))


def test_captures_are_keyed_by_their_own_site() -> None:
    backbone, ids_BT = tiny_backbone(), token_ids()
    sites = [Site(layer, point) for layer in (0, 2) for point in ("block", "mlp", "attention")]  # type: ignore[arg-type]
    with capturing({site: backbone.module_at(site) for site in sites}) as captured:
        backbone.trunk(ids_BT)
    assert set(captured) == set(sites)
    reached = backbone.run_lower(ids_BT, 1)
    assert reached is not None and torch.equal(captured[Site(0)], reached[1])
    assert len({float(value.sum()) for value in captured.values()}) == len(sites)


@pytest.mark.parametrize("point", ["block", "mlp", "attention"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_capture_sees_exactly_the_vector(family: str, point: Any) -> None:
    backbone, ids_BT = tiny_backbone(family), token_ids()
    vector = SteeringVector(layer=1, point=point, scale=3.0)
    vector.attach(backbone)
    randomise(vector)
    captured = {}
    site = Site(1, point)
    with torch.no_grad(), capturing({site: backbone.module_at(site)}) as after:
        backbone.trunk(ids_BT)
        captured["on"] = after[site]
        with vector.disabled():
            backbone.trunk(ids_BT)
        captured["off"] = after[site]
    assert torch.equal(captured["on"], captured["off"] + 3.0 * vector.vector)


def test_run_until_stops_there_and_reports_a_layer_that_is_not_reached() -> None:
    backbone, ids_BT = tiny_backbone(), token_ids()
    ran = []
    handle = add_edit(backbone.layers[2], lambda hidden: ran.append(1) or hidden)
    hooks.run_until(backbone.layers[2], lambda: backbone.decoder(input_ids=ids_BT, use_cache=False))
    assert not ran
    handle.remove()
    with pytest.raises(RuntimeError, match="never reached"):
        hooks.run_until(backbone.layers[2], lambda: None)
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in backbone.layers)


def test_keyed_randomness_depends_on_the_whole_key() -> None:
    def draw(*key: int | str) -> float:
        return float(torch.rand(1, generator=generator_for(*key)))

    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    assert draw(1, "order", 2) == draw(1, "order", 2)
    different = [
        (1, "order", 2),
        (1, "order", 3),
        (2, "order", 2),
        (1, "mix", 2),
        (1, "order"),
        (12, "order"),
    ]
    assert len({keyed_seed(*key) for key in different}) == len(different)
    assert all(0 <= keyed_seed(*key) < 2**63 for key in different)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_inputs_are_read_and_hooks_are_gone_after_an_exception() -> None:
    layers = {name: nn.Linear(3, 2) for name in ("a", "b")}
    x = torch.arange(6.0).reshape(2, 3)
    with reading_inputs(layers, lambda name, value: value.sum(dim=-1) * (2 if name == "b" else 1)) as found:
        layers["b"](x)
        assert list(found) == ["b"] and found["b"].tolist() == [6.0, 24.0]
        layers["a"](x + 1)
    assert found["a"].tolist() == [6.0, 15.0]
    with pytest.raises(KeyError), reading_inputs(layers, lambda name, value: value):
        raise KeyError
    assert not any(layer._forward_pre_hooks for layer in layers.values())
