"""Steering vector: where it acts, what it starts from, and what it refuses."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from em.errors import AdapterError, BackboneError
from em.hooks import Site, capturing
from em.interventions.steering_vector import SteeringVector
from tests.interventions.examples import output
from tests.tiny import randomise, tiny_backbone, token_ids


def test_norm_includes_the_scale() -> None:
    vector = SteeringVector(layer=1, scale=256.0)
    vector.attach(tiny_backbone())
    randomise(vector)
    assert vector.norm() == pytest.approx(256.0 * float(vector.vector.detach().norm()), rel=1e-6)


def test_only_answer_positions_are_steered() -> None:
    backbone, ids_BT = tiny_backbone(), token_ids()
    vector = SteeringVector(layer=1, point="block", positions="answer", scale=2.0)
    vector.attach(backbone)
    randomise(vector)
    mask_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    mask_BT[0, 3:5], mask_BT[2, 1] = True, True
    site = Site(1)
    with torch.no_grad(), backbone.steering_positions(mask_BT):
        with capturing({site: backbone.module_at(site)}) as on:
            backbone.trunk(ids_BT)
        with vector.disabled(), capturing({site: backbone.module_at(site)}) as off:
            backbone.trunk(ids_BT)
    expected = off[site].clone()
    expected[mask_BT] += 2.0 * vector.vector
    assert torch.equal(on[site], expected.detach())


def test_answer_positions_need_a_mask() -> None:
    backbone, ids_BT = tiny_backbone(), token_ids()
    vector = SteeringVector(layer=1, positions="answer")
    vector.attach(backbone)
    with pytest.raises(AdapterError, match="steering_positions"):
        backbone.trunk(ids_BT)
    with vector.disabled():
        backbone.trunk(ids_BT)


@pytest.mark.parametrize("as_folder", [False, True])
def test_init_from_a_file(tmp_path: Path, as_folder: bool) -> None:
    source = SteeringVector(layer=0, scale=5.0)
    source.attach(tiny_backbone())
    randomise(source)
    source.save(tmp_path)
    init = tmp_path if as_folder else tmp_path / "intervention.safetensors"
    vector = SteeringVector(layer=2, init=str(init))
    vector.attach(tiny_backbone())
    assert torch.equal(vector.vector, source.vector), "the raw vector, whatever the scale of its source"
    assert vector.vector.requires_grad and vector.vector.dtype == torch.float32


def test_init_files_that_do_not_fit(tmp_path: Path) -> None:
    files = {
        "wide": ({"vector": torch.ones(33)}, r"shape \(33,\).*width 32"),
        "matrix": ({"vector": torch.ones(1, 32)}, r"shape \(1, 32\)"),
        "nan": ({"vector": torch.full((32,), float("nan"))}, "not finite"),
        "name": ({"direction": torch.ones(32)}, "'vector', only direction"),
    }
    for name, (tensors, message) in files.items():
        save_file(tensors, tmp_path / name)
        backbone = tiny_backbone()
        with pytest.raises(AdapterError, match=message):
            SteeringVector(layer=1, init=str(tmp_path / name)).attach(backbone)
        assert torch.equal(output(backbone), output(tiny_backbone()))
    for missing in (tmp_path / "nothing", tmp_path):
        with pytest.raises(AdapterError, match="cannot be read"):
            SteeringVector(layer=1, init=str(missing)).attach(tiny_backbone())


@pytest.mark.parametrize("layer", [-1, 3])
def test_layer_out_of_range(layer: int) -> None:
    with pytest.raises(BackboneError, match="layers 0 to 2"):
        SteeringVector(layer=layer).attach(tiny_backbone())


def test_a_second_vector_at_the_same_site_is_refused() -> None:
    backbone = tiny_backbone()
    SteeringVector(layer=1).attach(backbone)
    with pytest.raises(AdapterError, match="1.mlp already"):
        SteeringVector(layer=1).attach(backbone)
    SteeringVector(layer=1, point="block").attach(backbone)


def test_two_vectors_add_up() -> None:
    backbone = tiny_backbone()
    one, two = SteeringVector(layer=1, point="block"), SteeringVector(layer=1, point="mlp")
    for number, vector in enumerate((one, two)):
        vector.attach(backbone)
        randomise(vector, seed=number)
    both = output(backbone)
    with one.disabled():
        assert not torch.equal(output(backbone), both)
    one.detach()
    two.detach()
    assert torch.equal(output(backbone), output(tiny_backbone()))
