"""LoRA: its scaling, its files in other tools, and the paper's setups."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from em.errors import AdapterError
from em.interventions.lora import ALL_MODULES, Lora
from tests.interventions.examples import output
from tests.tiny import FAMILIES, randomise, tiny_backbone, tiny_model, token_ids


def attached(depth: int = 3, family: str = "llama", seed: int = 0, **options: Any) -> Lora:
    lora = Lora(**options)
    lora.attach(tiny_backbone(family, depth), seed)
    return lora


def products(lora: Lora) -> dict[str, Tensor]:
    """B A of each module, formed explicitly in fp64."""
    values = {name: p.detach().double() for name, p in lora.trainable_parameters().items()}
    stems = sorted({name.rsplit(".", 1)[0] for name in values})
    return {stem: values[f"{stem}.lora_B"] @ values[f"{stem}.lora_A"] for stem in stems}


@pytest.mark.parametrize(
    "rslora, scaling", [(True, 6.0 / math.sqrt(4)), (False, 6.0 / 4)], ids=["rslora", "plain"]
)
def test_norm_is_that_of_the_effective_update(rslora: bool, scaling: float) -> None:
    lora = attached(r=4, alpha=6.0, rslora=rslora)
    randomise(lora)
    explicit = torch.cat([scaling * product.flatten() for product in products(lora).values()])
    assert lora.norm() == pytest.approx(float(explicit.norm()), rel=1e-6)


@pytest.mark.parametrize("rslora, scaling", [(True, 3.0), (False, 1.5)])
def test_the_model_applies_the_same_update(rslora: bool, scaling: float) -> None:
    lora = attached(r=4, alpha=6.0, rslora=rslora)
    randomise(lora, scale=0.1)
    merged = tiny_backbone()
    weights = dict(merged.model.named_parameters())
    with torch.no_grad():
        for stem, product in products(lora).items():
            weights[f"{stem}.weight"] += (scaling * product).float()
    torch.testing.assert_close(output(lora.backbone), output(merged), rtol=1e-4, atol=1e-4)


def test_perturbation_in_update_space_not_in_the_factors() -> None:
    """Perturbing A and B apart would give a cosine of 1 − ε² (mistake 6)."""
    lora = attached(r=4, alpha=6.0)
    randomise(lora)
    before = products(lora)
    with lora.perturbed(0.6, torch.Generator().manual_seed(11)):
        after = products(lora)
    for stem, x in before.items():
        cosine = float((x * after[stem]).sum() / x.norm() / after[stem].norm())
        assert cosine == pytest.approx(0.8, abs=1e-4), "every module turns by the same angle"
        assert float(after[stem].norm()) == pytest.approx(float(x.norm()), rel=1e-4)


def test_rescaling_keeps_the_share_of_each_module() -> None:
    """One factor for all modules, not one norm for all modules (mistake 5)."""
    lora = attached(r=2, alpha=2.0)
    randomise(lora)
    before = lora.update().parts
    with lora.rescaled(0.5):
        after = lora.update().parts
    for name, (left, right) in before.items():
        torch.testing.assert_close(after[name][0], 0.5 * left)
        assert torch.equal(after[name][1], right)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_seven_projections_by_default(family: str) -> None:
    lora = attached(family=family, r=2)
    stems = {name.rsplit(".", 1)[0] for name in lora.trainable_parameters()}
    assert {stem.rsplit(".", 1)[-1] for stem in stems} == set(ALL_MODULES)
    assert len(stems) == 3 * 7
    assert torch.equal(output(lora.backbone), output(tiny_backbone(family)))


def test_rank_one_in_one_layer() -> None:
    lora = attached(r=1, alpha=256, modules=["down_proj"], layers=[2])
    shapes = {name: tuple(p.shape) for name, p in lora.trainable_parameters().items()}
    assert shapes == {
        "model.layers.2.mlp.down_proj.lora_A": (1, 64),
        "model.layers.2.mlp.down_proj.lora_B": (32, 1),
    }
    assert lora.lowest_layer() == 2


def test_nine_rank_one_adapters() -> None:
    layers = [15, 16, 17, 21, 22, 23, 27, 28, 29]
    lora = attached(30, r=1, alpha=256, modules=["down_proj"], layers=layers[::-1])
    names = [name for name in lora.trainable_parameters() if name.endswith("lora_B")]
    assert names == [f"model.layers.{layer}.mlp.down_proj.lora_B" for layer in layers]
    assert lora.lowest_layer() == 15


def test_the_initial_values_are_keyed_by_the_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one = attached(r=2, seed=5).gathered()
    assert torch.equal(torch.random.get_rng_state(), state), "the global stream must not move"
    torch.manual_seed(2)
    two, three = attached(r=2, seed=5).gathered(), attached(r=2, seed=6).gathered()
    for name, value in one.items():
        assert torch.equal(value, two[name])
        if name.endswith("lora_A"):
            assert not torch.equal(value, three[name])
            assert 0.5 < float(value.abs().max()) * value.shape[1] ** 0.5 <= 1.0, "kaiming_uniform(a=√5)"
        else:
            assert not value.any()


@pytest.mark.parametrize(
    "options", [{"r": 4}, {"r": 1, "modules": ["down_proj"], "layers": [1], "rslora": False}]
)
def test_plain_peft_loads_what_is_saved(tmp_path: Path, options: dict[str, Any]) -> None:
    lora = attached(alpha=6.0, **options)
    randomise(lora)
    lora.save(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter").eval()
    ids_BT = token_ids()
    with torch.no_grad():
        theirs = loaded(input_ids=ids_BT, use_cache=False).logits
        ours = lora.backbone.logits(lora.backbone.trunk(ids_BT))
        bare = tiny_backbone().model(input_ids=ids_BT, use_cache=False).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=5e-5)
    assert not torch.allclose(theirs, bare, atol=1e-2)


def test_saving_does_not_depend_on_the_context(tmp_path: Path) -> None:
    lora = attached(r=2)
    randomise(lora)
    lora.save(tmp_path / "one")
    with lora.rescaled(3.0), lora.disabled():
        lora.save(tmp_path / "two")
    for name in ("adapter_model.safetensors", "adapter_config.json", "em.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_loading_another_shape_is_refused(tmp_path: Path) -> None:
    lora = attached(r=2)
    lora.save(tmp_path)
    with pytest.raises(AdapterError, match="lora_A has shape .* needs"):
        attached(r=3).load(tmp_path)
    with pytest.raises(AdapterError, match="does not match"):
        attached(r=2, layers=[0]).load(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"modules": ["donw_proj"]}, "donw_proj.*down_proj, gate_proj, k_proj"),
        ({"modules": ["down_proj", "fc1"]}, "no fc1"),
        ({"layers": [1, 3]}, "layers 0 to 2"),
        ({"layers": [-1]}, "layers 0 to 2"),
        ({"layers": []}, "intervention.layers"),
        ({"layers": [1, 1]}, "intervention.layers.*twice"),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, Any], message: str) -> None:
    backbone = tiny_backbone()
    with pytest.raises(AdapterError, match=message):
        Lora(r=2, **options).attach(backbone)
    assert torch.equal(output(backbone), output(tiny_backbone()))
    assert not any("lora" in name for name, _ in backbone.named_modules())


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(AdapterError, match="intervention.r"):
        Lora(r=0)


def test_a_second_adapter_is_refused() -> None:
    lora = attached(r=2)
    with pytest.raises(AdapterError, match="already"):
        Lora(r=2).attach(lora.backbone)
