"""Steering and ablation with planted vectors: exact numbers, every row, several at once, rows of a sweep."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from em.backbone import Backbone
from em.errors import AdapterError, BackboneError
from em.hooks import Site, capturing, generator_for
from em.interventions._fixed import FixedIntervention
from em.interventions.ablation import Ablation
from em.interventions.direction import Direction
from em.interventions.lora import Lora
from em.interventions.steering import Steering
from em.interventions.steering_vector import SteeringVector
from tests.interventions.examples import direction, direction_file, output
from tests.tiny import randomise, tiny_backbone, token_ids

SITES = [Site(0), Site(1), Site(2)]
POINTS = [Site(1, "block"), Site(1, "mlp"), Site(1, "attention")]
AXIS = Direction({site: 3.0 * torch.eye(32)[site.layer] for site in SITES}, name="axis")
slow = settings(max_examples=20, deadline=None)


@torch.no_grad()
def hidden(
    backbone: Backbone, sites: list[Site] | None = None, ids_BT: Tensor | None = None
) -> dict[Site, Tensor]:
    """What stands at the sites, (B, T, D)."""
    modules = {site: backbone.module_at(site) for site in sites or SITES}
    with capturing(modules) as captured:
        backbone.trunk(token_ids() if ids_BT is None else ids_BT)
    return dict(captured)


def steering(backbone: Backbone, vectors: Direction = AXIS, **options: Any) -> Steering:
    made = Steering.given(vectors, **options)
    made.attach(backbone)
    return made


def ablation(backbone: Backbone, vectors: Direction = AXIS, **options: Any) -> Ablation:
    made = Ablation.given(vectors, **options)
    made.attach(backbone)
    return made


# Steering


@pytest.mark.parametrize("site", POINTS, ids=str)
def test_every_row_is_shifted_by_exactly_c_v(site: Site) -> None:
    backbone, vectors = tiny_backbone(), direction()
    before = hidden(backbone, [Site(0), *POINTS])
    steering(backbone, vectors, layers=1, point=site.point, coefficient=2.5, unit=False)
    after = hidden(backbone, [Site(0), *POINTS])
    assert len(after[site]) == 4
    assert torch.equal(after[site], before[site] + 2.5 * vectors.at(site))
    assert torch.equal(after[Site(0)], before[Site(0)])
    if site.point == "block":
        assert torch.equal(after[Site(1, "mlp")], before[Site(1, "mlp")])


def test_unit_vectors_move_by_the_coefficient() -> None:
    backbone = tiny_backbone()
    before = hidden(backbone)
    steered = steering(backbone, layers=1, coefficient=-4.0)
    moved = hidden(backbone)[Site(1)] - before[Site(1)]
    assert torch.allclose(moved, -4.0 * torch.eye(32)[1].expand_as(moved), atol=1e-5)
    assert steered.norm() == 4.0
    steered.detach()
    assert steering(backbone, layers=1, coefficient=-4.0, unit=False).norm() == 12.0


def test_own_layers_use_their_own_vectors() -> None:
    backbone = tiny_backbone()
    steered = steering(backbone, coefficient=2.0)
    assert steered.sites == SITES
    parts = steered.update().parts
    for site in SITES:
        assert torch.equal(parts[str(site)][0], 2.0 * torch.eye(32)[site.layer])
    assert steered.norm() == pytest.approx(12**0.5)
    assert steered.lowest_layer() == 0


def test_source_uses_one_vector_everywhere() -> None:
    steered = steering(tiny_backbone(), layers=[2, 0, 2], source=1)
    assert steered.sites == [Site(0), Site(2)]
    assert all(torch.equal(left, torch.eye(32)[1]) for left, _ in steered.update().parts.values())
    with steered.perturbed(0.3, generator_for(0)):
        first, second = (left for left, _ in steered.update().parts.values())
        assert torch.equal(first, second) and not torch.equal(first, torch.eye(32)[1])


def test_relative_steering_is_in_units_of_the_stream() -> None:
    backbone = tiny_backbone()
    before = hidden(backbone)[Site(1)]
    steering(backbone, layers=1, coefficient=0.25, relative=True)
    expected = before + 0.25 * before.norm(dim=-1, keepdim=True) * torch.eye(32)[1]
    torch.testing.assert_close(hidden(backbone)[Site(1)], expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(AdapterError, match="relative: true .* unit cannot be false"):
        Steering.given(AXIS, relative=True, unit=False)


def test_steering_equals_a_steering_vector() -> None:
    backbone, learned = tiny_backbone(), SteeringVector(layer=1, point="mlp", scale=2.0)
    learned.attach(backbone)
    randomise(learned)
    expected, update = output(backbone), learned.update()
    vector = Direction({Site(1, "mlp"): learned.vector})
    learned.detach()
    given = steering(backbone, vector, point="mlp", coefficient=2.0, unit=False)
    assert torch.equal(output(backbone), expected)
    assert given.update().cosine(update) == pytest.approx(1) and given.norm() == update.norm()


@pytest.mark.parametrize("kind", [Steering, Ablation])
def test_answer_positions_only(kind: type[FixedIntervention]) -> None:
    backbone, ids_BT = tiny_backbone(), token_ids()
    before = hidden(backbone)[Site(1)]
    intervention = kind.given(direction(), layers=1, positions="answer")
    intervention.attach(backbone)
    mask_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    mask_BT[0, 3:5], mask_BT[2, 1] = True, True
    with backbone.steering_positions(mask_BT):
        after = hidden(backbone)[Site(1)]
    assert torch.equal(after[~mask_BT], before[~mask_BT])
    assert bool((after[mask_BT] != before[mask_BT]).any(dim=-1).all())
    with pytest.raises(AdapterError, match="steering_positions"):
        hidden(backbone)
    with intervention.disabled():
        hidden(backbone)


# Ablation


@slow
@given(seed=st.integers(0, 2**31), length=st.floats(0.01, 100))
def test_nothing_is_left_along_the_direction(seed: int, length: float) -> None:
    backbone = shared_backbone()
    vectors = direction(seed=seed)
    scaled = Direction({site: length * vector for site, vector in vectors.vectors.items()})
    before = hidden(backbone)
    ablated = ablation(backbone, scaled, layers=0)
    after = hidden(backbone)[Site(0)]
    ablated.detach()
    v = vectors.unit().at(Site(0))
    size = float(after.norm(dim=-1).max())
    assert float((after @ v).abs().max()) < 1e-6 * size
    # Orthogonal: what was taken out and what is left add up as squares do.
    taken = before[Site(0)] - after
    squares = taken.square().sum(-1) + after.square().sum(-1)
    torch.testing.assert_close(squares, before[Site(0)].square().sum(-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(taken, (before[Site(0)] @ v)[..., None] * v, rtol=1e-4, atol=1e-4)
    assert torch.equal(hidden(backbone)[Site(0)], before[Site(0)])


@functools.cache
def shared_backbone() -> Backbone:
    """One for all examples of a property."""
    return tiny_backbone()


def test_all_layers_are_cleared() -> None:
    backbone = tiny_backbone()
    ablated = ablation(backbone, AXIS, layers="all", source=1)
    assert ablated.sites == SITES and ablated.norm() == pytest.approx(3**0.5)
    for value in hidden(backbone).values():
        assert float(value[..., 1].abs().max()) == 0
        assert float(value[..., 0].abs().max()) > 0


def test_ablating_twice_is_ablating_once() -> None:
    backbone, vectors = tiny_backbone(), direction()
    ablation(backbone, vectors, layers=1)
    once = hidden(backbone)
    ablation(backbone, vectors, layers=1)
    twice = hidden(backbone)
    torch.testing.assert_close(twice[Site(1)], once[Site(1)], rtol=0, atol=1e-5)


def test_strength_takes_out_a_share_and_two_mirrors() -> None:
    backbone = tiny_backbone()
    before = hidden(backbone)[Site(1)]
    for strength, left in ((0.25, 0.75), (2.0, -1.0)):
        ablated = ablation(backbone, layers=1, strength=strength)
        after = hidden(backbone)[Site(1)]
        ablated.detach()
        torch.testing.assert_close(after[..., 1], left * before[..., 1])
        assert torch.equal(after[..., 2:], before[..., 2:])


def test_half_precision_is_computed_in_fp32_and_cast_back() -> None:
    backbone = Backbone(tiny_backbone().model.to(torch.bfloat16), tiny_backbone().tokenizer, "half")
    before, v = hidden(backbone)[Site(1)], direction().unit().at(Site(1))
    ablated = ablation(backbone, direction(), layers=1)
    after = hidden(backbone)[Site(1)]
    wide = before.float()
    expected = (wide - (wide * v).sum(-1, keepdim=True) * v).to(torch.bfloat16)
    assert after.dtype == torch.bfloat16 and torch.equal(after, expected)
    ablated.detach()
    steering(backbone, direction(), layers=1, coefficient=3.0)
    assert torch.equal(hidden(backbone)[Site(1)], before + (3.0 * v).to(torch.bfloat16))


# Rows of a sweep


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Steering, {"layers": [0, 2], "source": 1}),
        (Steering, {"unit": False}),
        (Steering, {"relative": True, "layers": 1}),
        (Ablation, {"layers": "all"}),
        (Ablation, {"layers": 1, "positions": "answer"}),
    ],
)
@pytest.mark.parametrize("given", ["strength", "vectors", "both"])
def test_one_pass_of_rows_is_many_single_passes(
    kind: type[FixedIntervention], options: dict[str, Any], given: str
) -> None:
    backbone, ids_1T = tiny_backbone(), token_ids(rows=1)
    swept = [0.0, 0.5, 1.0, -2.0, 8.0]
    count, ids_KT = len(swept), ids_1T.expand(5, -1)
    strength_K = torch.tensor(swept) if given != "vectors" else None
    others = [direction(seed=100 + row) for row in range(count)]
    mask_KT = torch.arange(ids_KT.shape[1]).remainder(2).bool().expand(count, -1)
    base = kind.given(direction(), **options)
    base.attach(backbone)
    sites = base.sites[:2]  # the others keep their own vector
    vectors = (
        {site: torch.stack([one.at(site) for one in others]) for site in sites}
        if given != "strength"
        else None
    )
    with backbone.steering_positions(mask_KT), base.rows(strength_K, vectors), base.rescaled(0.5):
        together = hidden(backbone, ids_BT=ids_KT)
    acting = base.sites
    base.detach()
    name = "coefficient" if kind is Steering else "strength"
    for row, value in enumerate(swept):
        own = {site: direction().at(Site(options.get("source", site.layer))) for site in acting}
        own |= {} if vectors is None else {site: others[row].at(site) for site in sites}
        strength = 0.5 * (value if strength_K is not None else 1.0)
        layers = {key: item for key, item in options.items() if key not in ("layers", "source")}
        single = kind.given(Direction(own), **layers, **{name: strength})
        single.attach(backbone)
        with backbone.steering_positions(mask_KT[:1]):
            alone = hidden(backbone, ids_BT=ids_1T)
        single.detach()
        for site in SITES:
            torch.testing.assert_close(together[site][row], alone[site][0], rtol=1e-5, atol=2e-5)


def test_rows_that_do_not_fit() -> None:
    backbone = tiny_backbone()
    steered = steering(backbone, layers=[0, 1])
    expected = hidden(backbone)
    wrong: list[tuple[Any, Any, str]] = [
        (torch.ones(2), {Site(0): torch.ones(3, 32)}, "one entry for each row"),
        (torch.ones(2, 1), None, "one entry for each row"),
        (torch.tensor(1.0), None, "one entry for each row"),
        (None, {Site(2): torch.ones(4, 32)}, r"2.block; expected \(B, 32\) at 0.block, 1.block"),
        (None, {Site(0): torch.ones(4, 31)}, r"shape \(4, 31\) at 0.block; expected \(B, 32\)"),
        (None, {Site(0): torch.zeros(4, 32)}, "length 0"),
        (None, {Site(0): torch.full((4, 32), float("inf"))}, "not finite"),
    ]
    for strength_B, vectors, message in wrong:
        with pytest.raises(AdapterError, match=message), steered.rows(strength_B, vectors):
            pass
    with (
        pytest.raises(AdapterError, match="3 rows were given, but the batch has 4"),
        steered.rows(torch.ones(3)),
    ):
        hidden(backbone)
    with steered.rows(torch.zeros(4)), steered.rows():
        assert torch.equal(hidden(backbone)[Site(1)], expected[Site(1)]), "nothing given is the plain pass"
    assert torch.equal(hidden(backbone)[Site(1)], expected[Site(1)])


# Several at once, and nothing left behind


def test_edits_act_in_the_order_of_attaching() -> None:
    backbone = tiny_backbone()
    before = hidden(backbone)[Site(1)]
    added, cleared = steering(backbone, layers=1, coefficient=5.0), ablation(backbone, layers=1)
    assert float(hidden(backbone)[Site(1)][..., 1].abs().max()) == 0
    added.detach()
    added.attach(backbone)
    torch.testing.assert_close(hidden(backbone)[Site(1)][..., 1], torch.full((4, 9), 5.0))
    cleared.detach()
    torch.testing.assert_close(hidden(backbone)[Site(1)][..., 1], before[..., 1] + 5.0)
    with pytest.raises(AdapterError, match="attached already"):
        added.attach(backbone)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3), (3, 1, 4, 0, 2)])
def test_many_kinds_detach_in_any_order(order: tuple[int, ...]) -> None:
    backbone = tiny_backbone()
    reference = output(backbone)
    several = [
        Steering.given(direction(), layers=1, coefficient=3.0),
        Lora(r=2, alpha=8.0),
        Ablation.given(direction(), layers="all"),
        SteeringVector(layer=1, point="block"),
        Steering.given(direction(seed=1), layers=1, relative=True),
    ]
    for number, intervention in enumerate(several):
        intervention.attach(backbone, seed=number)
        randomise(intervention, seed=number)
    last = output(backbone)
    for number in order:
        with several[number].disabled():
            without = output(backbone)
        assert not torch.equal(without, last)
        several[number].detach()
        assert torch.equal(output(backbone), without)
        last = without
    assert torch.equal(last, reference)
    assert not any(module._forward_hooks for module in backbone.modules())


def test_the_fixed_direction_is_no_part_of_the_module_tree() -> None:
    backbone = tiny_backbone()
    names = [name for name, _ in backbone.named_modules()]
    before = set(backbone.state_dict())
    steering(backbone)
    output(backbone)
    assert [name for name, _ in backbone.named_modules()] == names
    assert set(backbone.state_dict()) == before


@pytest.mark.parametrize("kind", [Steering, Ablation])
def test_vectors_follow_the_model_to_another_device(kind: type[FixedIntervention]) -> None:
    backbone = tiny_backbone()
    intervention = kind.given(direction(), point="mlp")
    intervention.attach(backbone)
    expected, mlp, vectors = output(backbone), backbone.layers[1].mlp, {Site(1, "mlp"): torch.ones(4, 32)}
    backbone.to("meta")
    with intervention.rows(torch.ones(4), vectors):
        assert mlp(torch.ones(4, 3, 32, device="meta")).device.type == "meta"
    intervention.detach()
    other = tiny_backbone()
    intervention.attach(other)
    assert torch.equal(output(other), expected)


def test_a_pass_in_inference_mode_does_not_spoil_training() -> None:
    backbone, vector = tiny_backbone(), SteeringVector(layer=0)
    vector.attach(backbone)
    with torch.inference_mode():
        ablated = ablation(backbone, direction(), layers=1)
        backbone.trunk(token_ids())
        with ablated.perturbed(0.2, generator_for(0)):
            backbone.trunk(token_ids())
    output(backbone).sum().backward()
    assert vector.vector.grad is not None and bool(vector.vector.grad.any())


def test_hooks_are_gone_when_attaching_fails_and_after_errors_in_a_pass() -> None:
    backbone = tiny_backbone()
    made = Steering.given(AXIS, layers=[0, 1, 5], source=1)
    with pytest.raises(BackboneError, match="layer 5: tiny-llama has layers 0 to 2"):
        made.attach(backbone)
    assert not any(module._forward_hooks for module in backbone.modules())
    steered = steering(backbone)
    with pytest.raises(KeyError), steered.disabled(), steered.rows(torch.ones(4)):
        raise KeyError
    assert not torch.equal(output(backbone), output(tiny_backbone()))
    steered.detach()
    assert not any(module._forward_hooks for module in backbone.modules())
    assert torch.equal(output(backbone), output(tiny_backbone()))


# What is refused


def test_layers_that_the_direction_lacks() -> None:
    backbone, one = tiny_backbone(), AXIS.only([Site(1)])
    refused: list[tuple[dict[str, Any], str]] = [
        ({"layers": "all"}, r"axis has no vector at 0\.block, 2\.block, only at 1\.block; .*set source"),
        ({"layers": 2}, r"no vector at 2\.block"),
        ({"layers": []}, "chooses none"),
        ({"point": "mlp"}, r"layers: own with point: mlp chooses none; axis has 1\.block"),
        ({"layers": "all", "source": 2}, r"no vector at 2\.block; it has 1\.block"),
    ]
    for options, message in refused:
        with pytest.raises(AdapterError, match=message):
            Steering.given(one, **options).attach(backbone)
    assert not any(module._forward_hooks for module in backbone.modules())


def test_a_direction_of_another_backbone() -> None:
    wide = direction(width=33)
    with pytest.raises(AdapterError, match="width 33, but tiny-llama has width 32"):
        Steering.given(wide).attach(tiny_backbone())
    other = {**tiny_backbone().describe(), "model": "elsewhere", "fingerprint": "0"}
    foreign = Direction(direction().vectors, {"backbone": other})
    with pytest.raises(AdapterError, match="taken from elsewhere .*fingerprint 0"):
        Ablation.given(foreign).attach(tiny_backbone())


def test_before_attaching() -> None:
    for use in ("update", "lowest_layer", "norm"):
        with pytest.raises(AdapterError, match="not attached to a backbone"):
            getattr(Steering.given(AXIS), use)()


def test_a_saved_folder_is_a_direction_too(tmp_path: Path) -> None:
    steered = steering(tiny_backbone(), direction(), layers=1, coefficient=2.0)
    steered.save(tmp_path)
    again = Steering(direction=str(tmp_path), layers=1, coefficient=2.0)
    again.attach(tiny_backbone())
    assert torch.equal(output(again.backbone), output(steered.backbone))
    assert again.direction.name == "example"
    other = Steering(direction=direction_file())
    other.attach(tiny_backbone())
    other.save(tmp_path / "other")
    with pytest.raises(AdapterError, match="has other sites"):
        steering(tiny_backbone(), AXIS.only([Site(1)])).load(tmp_path / "other")
