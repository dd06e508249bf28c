"""Direction: geometry, files, and what it refuses."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from em.backbone import Backbone
from em.errors import AdapterError, RunError
from em.hooks import Point, Site, generator_for
from em.interventions.direction import Direction, parse_site
from tests.interventions.examples import direction
from tests.tiny import tiny_backbone, tiny_model

slow = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)
V = torch.tensor([3.0, 0.0, 4.0])


def random_direction(width: int, seed: int, scale: float = 1.0) -> Direction:
    generator = generator_for(seed, "vectors")
    sites = (Site(2), Site(0, "mlp"))
    return Direction({site: scale * torch.randn(width, generator=generator) for site in sites})


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / a.double().norm() / b.double().norm())


@pytest.mark.parametrize("point", ["block", "mlp", "attention"])
@pytest.mark.parametrize("layer", [0, 7, 15, 100])
def test_sites_are_read_as_they_are_written(layer: int, point: Point) -> None:
    assert parse_site(str(Site(layer, point))) == Site(layer, point)


@pytest.mark.parametrize(
    "text", ["", "15", "block", "15.blocks", "-1.block", "015.block", " 1.mlp", "1.block.x"]
)
def test_what_is_no_site(text: str) -> None:
    with pytest.raises(AdapterError, match="is no site; expected LAYER.POINT such as 15.block"):
        parse_site(text)


def test_vectors_are_ordered_fp32_copies() -> None:
    given = V.clone().double().requires_grad_()
    made = Direction({Site(3): given, Site(1, "mlp"): V, Site(1): V})
    assert list(made.vectors) == [Site(1), Site(1, "mlp"), Site(3)]
    with torch.no_grad():
        given.mul_(2)
    assert torch.equal(made.at(Site(3)), V)
    assert made.at(Site(3)).dtype == torch.float32 and not made.at(Site(3)).requires_grad


def test_vectors_measured_in_inference_mode_can_be_trained_through() -> None:
    with torch.inference_mode():
        made = Direction({Site(0): V * 2})
    hidden = torch.ones(3, requires_grad=True)
    (hidden * made.at(Site(0))).sum().backward()
    assert hidden.grad is not None


def test_unit_norms_at_and_only() -> None:
    made = Direction({Site(0): V, Site(1): 2 * V}, {"kind": "test"}, "two")
    assert made.norms() == {Site(0): 5.0, Site(1): 10.0}
    assert torch.equal(made.unit().at(Site(1)), V / 5)
    assert made.unit().origin == {"kind": "test"} and made.unit().name == "two"
    assert list(made.only([Site(1)]).vectors) == [Site(1)]
    message = r"direction 'two' has no vector at 2\.block; it has 0\.block, 1\.block"
    for wrong in (
        lambda: made.at(Site(2)),
        lambda: made.only([Site(2)]),
        lambda: made.scaled_like(made.only([])),
    ):
        with pytest.raises(AdapterError, match=f"{message}|holds no vectors"):
            wrong()


@slow
@given(width=st.integers(2, 300), seed=seeds, scale=st.floats(0.01, 100))
def test_random_vectors_have_the_same_norm(width: int, seed: int, scale: float) -> None:
    made = random_direction(width, seed, scale)
    drawn = made.random_like(generator_for(seed, "noise"))
    assert drawn.norms() == pytest.approx(made.norms(), rel=1e-5)  # not √D times it
    assert drawn.vectors.keys() == made.vectors.keys()
    again = made.random_like(generator_for(seed, "noise"))
    assert all(torch.equal(vector, again.at(site)) for site, vector in drawn.vectors.items())


def test_random_vectors_are_isotropic_and_say_where_they_come_from() -> None:
    backbone = {"model": "m", "fingerprint": "f"}
    made = Direction({Site(0): 7 * torch.eye(64)[0]}, {"kind": "x", "backbone": backbone}, "mine")
    generator = generator_for(0, "draws")
    drawn = torch.stack([made.random_like(generator).at(Site(0)) for _ in range(2000)]) / 7
    assert float(drawn.mean(0).norm()) < 0.1
    assert torch.allclose((drawn**2).mean(0), torch.full((64,), 1 / 64), rtol=0.25)
    origin = made.random_like(generator).origin
    assert origin == {"kind": "random", "like": "mine", "backbone": backbone}


@slow
@given(seed=seeds, scale=st.floats(0.01, 100))
def test_scaled_like_keeps_the_direction_and_takes_the_length(seed: int, scale: float) -> None:
    one, two = random_direction(16, seed), random_direction(16, seed + 1, scale)
    scaled = one.scaled_like(two)
    assert scaled.norms() == pytest.approx(two.norms(), rel=1e-5)
    for site, vector in scaled.vectors.items():
        assert cosine(vector, one.at(site)) == pytest.approx(1, abs=1e-6)


@slow
@given(seed=seeds, epsilon=st.floats(0.0, 1.0))
def test_perturbed_turns_by_the_exact_angle(seed: int, epsilon: float) -> None:
    one = random_direction(16, seed, 5.0)
    turned = one.perturbed(epsilon, generator_for(seed, "noise"))
    assert turned.norms() == pytest.approx(one.norms(), rel=1e-5)
    for site, vector in turned.vectors.items():
        assert cosine(vector, one.at(site)) == pytest.approx(math.sqrt(1 - epsilon**2), abs=1e-5)


# Files


def test_save_and_load(tmp_path: Path) -> None:
    path, backbone = tmp_path / "deep" / "mean.safetensors", tiny_backbone()
    origin = {
        "kind": "mean-difference",
        "groups": {"misaligned": 12, "aligned": 30},
        "reliability": {"1.block": 0.93},
        "backbone": backbone.describe(),
        "note": "naïve",
    }
    made = Direction(direction().vectors, origin, "bad advice")
    made.save(path)
    read = Direction.load(path, backbone)
    assert read.name == "bad advice" and read.origin == origin
    assert read.vectors.keys() == made.vectors.keys()
    assert all(torch.equal(vector, made.at(site)) for site, vector in read.vectors.items())
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys())[:2] == ["0.attention", "0.block"]
        assert list(file.metadata()) == ["em"]


def test_a_plain_safetensors_file_is_enough(tmp_path: Path) -> None:
    save_file({"1.block": torch.ones(32, dtype=torch.bfloat16)}, tmp_path / "mine.safetensors")
    read = Direction.load(tmp_path / "mine.safetensors", tiny_backbone())
    assert (read.name, read.origin) == ("mine", {})
    assert torch.equal(read.at(Site(1)), torch.ones(32))


ONES = torch.ones(32)
REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "empty": ({}, "holds no vectors"),
    "name": ({"vector": ONES}, "'vector' is no site; expected LAYER.POINT"),
    "width": ({"1.block": torch.ones(33)}, "1.block has width 33, but tiny-llama has width 32"),
    "two widths": ({"0.mlp": ONES, "1.mlp": torch.ones(33)}, r"1.mlp has shape \(33,\), but .*\(32,\)"),
    "matrix": ({"1.block": torch.ones(1, 32)}, r"1.block has shape \(1, 32\)"),
    "layer": ({"0.block": ONES, "3.block": -ONES}, "3.block: tiny-llama has layers 0 to 2"),
    "nan": ({"1.block": ONES * float("nan")}, "1.block holds values that are not finite"),
    "infinite": ({"1.block": ONES / 0}, "1.block holds values that are not finite"),
    "zero": ({"1.block": ONES * 0}, "1.block has length 0, which is no direction"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused(tmp_path: Path, name: str) -> None:
    tensors, message = REFUSED[name]
    path = tmp_path / "given.safetensors"
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=f"{path}: {message}"):
        Direction.load(path, tiny_backbone())


@pytest.mark.parametrize("content", [None, b"", b"[]", b"\x08\0\0\0\0\0\0\0{}", b"\xff" * 40])
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "given.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AdapterError, match=f"{path}: cannot be read as safetensors"):
        Direction.load(path)
    with pytest.raises(AdapterError, match=f"{tmp_path}: cannot be read as safetensors"):
        Direction.load(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [("{", "metadata is not JSON"), ('{"origin": 3}', "its origin is 3, not a mapping")],
)
def test_damaged_metadata(tmp_path: Path, metadata: str, message: str) -> None:
    save_file({"1.block": ONES}, tmp_path / "x", {"em": metadata})
    with pytest.raises(AdapterError, match=f"{tmp_path / 'x'}: .*{message}"):
        Direction.load(tmp_path / "x")


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    origin: dict[str, Any] = {"backbone": tiny_backbone().describe()}
    Direction(direction().vectors, origin).save(tmp_path / "x")
    other = Backbone(tiny_model(seed=5), tiny_backbone().tokenizer, "other-llama")
    with pytest.raises(AdapterError, match="taken from tiny-llama .*backbone here is other-llama"):
        Direction.load(tmp_path / "x", other)
    Direction.load(tmp_path / "x")


def test_a_disk_that_is_full_is_an_error_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        direction().save(tmp_path / "file" / "x")
