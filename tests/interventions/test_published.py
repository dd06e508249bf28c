"""Published adapters and vectors: held exactly, or refused with what cannot be held."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from em.config import build
from em.errors import AdapterError
from em.interventions._published import Published
from em.interventions._published_lora import check_targets, read_lora
from em.interventions._published_vector import read_vector
from em.interventions.lora import ALL_MODULES, Lora
from em.interventions.steering_vector import SteeringVector
from tests.interventions.peft_folders import CONFIG, WEIGHTS, change, peft_logits, save_peft
from tests.tiny import randomise, tiny_backbone, token_ids

NINE = r".*\.(?:0|2)\.mlp\.down_proj"


def attached(published: Published) -> Any:
    """The intervention that holds it, on a tiny backbone."""
    backbone = tiny_backbone()
    if published.targets is not None:
        check_targets(published, backbone)
    intervention = build(published.component, "interventions")
    intervention.attach(backbone)
    published.put_into(intervention, "here")
    return intervention


@pytest.mark.parametrize(
    "options, modules, layers",
    [
        ({}, ["q_proj", "down_proj"], [0, 1, 2]),
        ({"use_rslora": True, "lora_dropout": 0.1}, ["q_proj", "down_proj"], [0, 1, 2]),
        ({"target_modules": ALL_MODULES, "r": 4}, ALL_MODULES, [0, 1, 2]),
        ({"target_modules": "all-linear"}, ALL_MODULES, [0, 1, 2]),
        ({"target_modules": ["down_proj"], "layers_to_transform": [1], "r": 1}, ["down_proj"], [1]),
        ({"target_modules": ["down_proj"], "layers_to_transform": 2}, ["down_proj"], [2]),
        (
            {"target_modules": ["up_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
            ["up_proj"],
            [0, 2],
        ),
        ({"target_modules": NINE}, ["down_proj"], [0, 2]),
        ({"target_modules": ["model.layers.1.mlp.up_proj"]}, ["up_proj"], [1]),
        ({"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]}, ["q_proj"], [0, 1, 2]),
    ],
)
def test_an_adapter_of_peft_gives_the_logits_of_peft(
    tmp_path: Path, options: dict[str, Any], modules: list[str], layers: list[int]
) -> None:
    folder = save_peft(tmp_path / "adapter", **options)
    published = read_lora(folder)
    lora = attached(published)
    assert isinstance(lora, Lora) and (lora.modules, lora.layers) == (modules, layers)
    assert lora.rslora == options.get("use_rslora", False) and lora.r == options.get("r", 3)
    assert lora.dropout == options.get("lora_dropout", 0.0) and lora.alpha == 5
    ids_BT = token_ids()
    with torch.no_grad():
        ours = lora.backbone.logits(lora.backbone.trunk(ids_BT))
    bare = tiny_backbone()
    with torch.no_grad():
        without = bare.logits(bare.trunk(ids_BT))
    theirs = peft_logits(folder, ids_BT)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    assert not torch.allclose(ours, without, atol=1e-2)


def test_a_bin_of_plain_tensors_is_read_like_safetensors(tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "adapter")
    expected = read_lora(folder).values
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    published = read_lora(folder)
    assert [path.name for path in published.files] == [CONFIG, "adapter_model.bin"]
    assert published.values.keys() == expected.keys()
    assert all(torch.equal(published.values[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_held_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = save_peft(tmp_path / "adapter")
    halves = {name: value.to(dtype) for name, value in load_file(folder / WEIGHTS).items()}
    save_file(halves, folder / WEIGHTS)
    held = attached(read_lora(folder)).gathered()
    for name, value in halves.items():
        own = held[name.removeprefix("base_model.model.").removesuffix(".weight")]
        assert own.dtype == torch.float32 and torch.equal(own, value.float())


def test_what_lora_saves_comes_back_bit_for_bit(tmp_path: Path) -> None:
    lora = Lora(r=2, alpha=3.0, modules=["down_proj"], layers=[1])
    lora.attach(tiny_backbone())
    randomise(lora)
    lora.save(tmp_path)
    published = read_lora(tmp_path)
    again = attached(published)
    assert again.options() == lora.options()
    assert all(torch.equal(value, again.gathered()[name]) for name, value in lora.gathered().items())
    assert published.backbone == lora.backbone.describe()


def test_what_em_wrote_for_another_model_is_refused(tmp_path: Path) -> None:
    lora = Lora(r=2)
    lora.attach(tiny_backbone(seed=1))
    lora.save(tmp_path)
    with pytest.raises(AdapterError, match="here: trained on tiny-llama .fingerprint"):
        attached(read_lora(tmp_path))


@pytest.mark.parametrize(
    "values, key",
    [
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save: \['lm_head'\]"),
        ({"use_dora": True}, "use_dora: True"),
        ({"lora_bias": True}, "lora_bias: True"),
        ({"bias": "all"}, "bias: 'all'"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern: "),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern: "),
        ({"fan_in_fan_out": True}, "fan_in_fan_out: True"),
        ({"layer_replication": [[0, 2]]}, "layer_replication: "),
        ({"alora_invocation_tokens": [3, 4]}, "alora_invocation_tokens: "),
        ({"trainable_token_indices": [3]}, "trainable_token_indices: "),
        ({"invented_in_2030": 3}, "invented_in_2030: 3"),
        ({"peft_type": "IA3"}, "peft_type: 'IA3'"),
        ({"task_type": "SEQ_CLS"}, "task_type: 'SEQ_CLS'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa', which changes the weights of the base"),
        ({"target_modules": None}, "target_modules: None"),
        ({"modules_to_save": ["a"], "use_dora": True}, "modules_to_save: .*; use_dora: True"),
    ],
)
def test_more_than_a_plain_lora_is_refused_by_its_key(
    tmp_path: Path, values: dict[str, Any], key: str
) -> None:
    folder = change(save_peft(tmp_path / "adapter"), **values)
    with pytest.raises(AdapterError, match=f"adapter_config.json: em holds plain LoRA.*cannot hold {key}"):
        read_lora(folder)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"r": 0}, "r: expected a whole number above 0, got 0"),
        ({"r": True}, "r: expected a whole number"),
        ({"r": 2.5}, "r: expected a whole number"),
        ({"lora_alpha": "high"}, "lora_alpha: expected a number above 0, got 'high'"),
        ({"lora_alpha": math.nan}, "lora_alpha: expected a number above 0, got nan"),
        ({"lora_dropout": 1.0}, "lora_dropout: expected at least 0 and below 1"),
    ],
)
def test_numbers_of_the_configuration(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(AdapterError, match=said):
        read_lora(change(save_peft(tmp_path / "adapter"), **values))


@pytest.mark.parametrize(
    "values, said",
    [
        ({"layers_to_transform": [0, 1]}, "hold model.layers.2.mlp.down_proj, .* unasked"),
        ({"target_modules": ["q_proj"]}, "hold model.layers.0.mlp.down_proj, .* unasked"),
        ({"target_modules": ["q_proj", "down_proj", "up_proj"]}, "lack model.layers.0.mlp.up_proj, "),
        ({"target_modules": "(unclosed"}, r"target_modules cannot be understood \(missing \)"),
        ({"target_modules": [3]}, "hold "),
    ],
)
def test_weights_must_be_those_that_the_configuration_names(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(AdapterError, match=said):
        attached(read_lora(change(save_peft(tmp_path / "adapter"), **values)))


def without(folder: Path, part: str) -> Path:
    values = load_file(folder / WEIGHTS)
    kept = {name: value for name, value in values.items() if part not in name}
    assert len(kept) < len(values)
    save_file(kept, folder / WEIGHTS)
    return folder


def test_missing_weights_are_named(tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "one")
    with pytest.raises(AdapterError, match="layer 1 lacks down_proj"):
        read_lora(without(folder, "layers.1.mlp"))
    with pytest.raises(
        AdapterError, match=r"weights, which lack model.layers.2.mlp.down_proj, .*download complete"
    ):
        attached(read_lora(without(save_peft(tmp_path / "two"), "layers.2.")))
    with pytest.raises(
        AdapterError, match="does not match this lora: model.layers.0.self_attn.q_proj.lora_B"
    ):
        attached(read_lora(without(save_peft(tmp_path / "three"), "layers.0.self_attn.q_proj.lora_B")))
    with pytest.raises(AdapterError, match="holds no tensors"):
        read_lora(without(save_peft(tmp_path / "four"), "lora"))


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "adapter")
    values = load_file(folder / WEIGHTS)
    save_file({**values, "base_model.model.lm_head.weight": torch.zeros(2)}, folder / WEIGHTS)
    with pytest.raises(
        AdapterError, match="holds 'base_model.model.lm_head.weight'; em holds lora_A and lora_B"
    ):
        read_lora(folder)


def test_values_that_are_not_finite_or_too_wide(tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "adapter")
    values = load_file(folder / WEIGHTS)
    name = next(iter(values))
    save_file({**values, name: values[name] * math.inf}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match="holds values that are not finite"):
        read_lora(folder)
    save_file({**values, name: values[name].double()}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match="has the type torch.float64; expected float32, bfloat16, float16"):
        read_lora(folder)


def test_another_rank_than_the_weights_have(tmp_path: Path) -> None:
    folder = change(save_peft(tmp_path / "adapter"), r=4)
    with pytest.raises(AdapterError, match=r"has shape \(3, \d+\), but tiny-llama needs \(4, \d+\)"):
        attached(read_lora(folder))


def test_another_model_is_refused(tmp_path: Path) -> None:
    published = read_lora(save_peft(tmp_path / "adapter"))
    with pytest.raises(
        AdapterError, match="is for layer 2, but tiny-llama has layers 0 to 1; name the model"
    ):
        check_targets(published, tiny_backbone(layers=2))
    with pytest.raises(AdapterError, match=r"lack model.layers.3.mlp.down_proj.*\(--model\)"):
        check_targets(published, tiny_backbone(layers=4))


@pytest.mark.parametrize(
    "name, content, said",
    [
        (CONFIG, b"{", "adapter_config.json: cannot be read"),
        (CONFIG, b"[]", "does not hold a JSON object"),
        (WEIGHTS, b"short", "cannot be read as safetensors"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    folder = save_peft(tmp_path / "adapter")
    (folder / name).write_bytes(content)
    with pytest.raises(AdapterError, match=said):
        read_lora(folder)


def test_no_weights(tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "adapter")
    (folder / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match="has no adapter_model.safetensors and no adapter_model.bin"):
        read_lora(folder)


def save_vector(path: Path, **changes: Any) -> Path:
    held = {"steering_vector": torch.arange(32.0) / 7, "layer_idx": 1, "alpha": 256.0, **changes}
    torch.save({key: value for key, value in held.items() if value is not None}, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parameter", [False, True])
def test_a_vector_is_added_alpha_times_at_the_mlp_output_of_every_position_and_row(
    tmp_path: Path, dtype: torch.dtype, parameter: bool
) -> None:
    value = (torch.arange(32.0) / 700).to(dtype)
    path = save_vector(tmp_path / "v.pt", steering_vector=torch.nn.Parameter(value) if parameter else value)
    published = read_vector(path)
    assert published.notes == [] and published.model is None
    vector = attached(published)
    assert isinstance(vector, SteeringVector)
    assert vector.norm() == pytest.approx(256 * float(value.float().norm()), rel=1e-5)
    ids_BT = token_ids()
    other = tiny_backbone()

    def theirs(module: Any, inputs: Any, output_BTD: torch.Tensor) -> torch.Tensor:
        return output_BTD + 256.0 * value.float()

    hook = other.layers[1].mlp.down_proj.register_forward_hook(theirs)  # type: ignore[union-attr]
    with torch.no_grad():
        ours, expected = (one.logits(one.trunk(ids_BT)) for one in (vector.backbone, other))
        hook.remove()
        without_it = other.logits(other.trunk(ids_BT))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert bool(((ours - without_it).abs().amax(dim=-1) > 1e-3).all()), "no row and no position is left out"


def test_numbers_in_tensors_a_missing_alpha_and_other_keys(tmp_path: Path) -> None:
    path = save_vector(
        tmp_path / "v.pt", layer_idx=torch.tensor(2), alpha=None, d_model=32, approach="x", note="x"
    )
    published = read_vector(path)
    assert (published.component["layer"], published.component["scale"]) == (2, 1.0)
    assert "1 is used" in published.notes[0] and published.notes[1].endswith(": 'note'")


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"steering_vector": torch.zeros(1, 32)},
            r"steering_vector: expected a tensor of shape \(D,\), got \(1, 32\)",
        ),
        ({"steering_vector": [1.0, 2.0]}, "expected a tensor of shape .*, got list"),
        ({"steering_vector": torch.zeros(32) / 0}, "holds values that are not finite"),
        ({"steering_vector": torch.zeros(32, dtype=torch.int64)}, "has the type torch.int64"),
        ({"steering_vector": torch.zeros(32, dtype=torch.float64)}, "has the type torch.float64"),
        ({"steering_vector": torch.zeros(32).to_sparse()}, "expected a tensor of shape"),
        (
            {"steering_vector": None},
            "expected a dict with steering_vector, layer_idx, alpha; it holds 'layer_idx'",
        ),
        ({"layer_idx": None}, "expected a dict with"),
        ({"layer_idx": -1}, "layer_idx: expected a whole number at least 0, got -1"),
        ({"layer_idx": 1.0}, "layer_idx: expected a whole number"),
        ({"layer_idx": True}, "layer_idx: expected a whole number"),
        ({"layer_idx": [1, 2]}, "layer_idx: expected a whole number"),
        ({"d_model": 33}, "d_model is 33, but the vector has 32 values"),
        ({"alpha": math.nan}, "alpha: expected a finite number, got nan"),
        ({"alpha": "256"}, "alpha: expected a finite number, got '256'"),
    ],
)
def test_a_vector_file_of_another_form(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(AdapterError, match=said):
        read_vector(save_vector(tmp_path / "v.pt", **changes))


def test_a_vector_for_another_model(tmp_path: Path) -> None:
    path = save_vector(tmp_path / "v.pt", steering_vector=torch.ones(16))
    with pytest.raises(AdapterError, match=r"vector has shape \(16,\), but tiny-llama needs \(32,\)"):
        attached(read_vector(path))


class Planted:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, old_format: bool) -> None:
    path, mark = tmp_path / "v.pt", tmp_path / "mark"
    torch.save({"steering_vector": Planted(mark)}, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(
        AdapterError, match=r"is refused: .*it asks for \w+.mkdir.*could run code on this machine"
    ):
        read_vector(path)
    assert not mark.exists()
    folder = save_peft(tmp_path / "adapter")
    (folder / WEIGHTS).unlink()
    torch.save({"x": Planted(mark)}, folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="could run code on this machine"):
        read_lora(folder)
    assert not mark.exists()


def test_a_pickle_of_numpy_is_refused(tmp_path: Path) -> None:
    path = save_vector(tmp_path / "v.pt", steering_vector=np.zeros(32, dtype=np.float32))
    with pytest.raises(AdapterError, match=r"is refused: .*it asks for numpy"):
        read_vector(path)


@pytest.mark.parametrize("content", [b"", b"short", b"PK\x03\x04", b"\x80\x02}", b"\x80\x02K\x01K\x02e."])
def test_a_damaged_vector_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "v.pt"
    path.write_bytes(content)
    with pytest.raises(AdapterError, match=r"v.pt: (cannot be read|is refused)"):
        read_vector(path)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    torch.save(torch.zeros(32), tmp_path / "v.pt")
    with pytest.raises(AdapterError, match="it holds Tensor"):
        read_vector(tmp_path / "v.pt")
    folder = save_peft(tmp_path / "adapter")
    (folder / WEIGHTS).unlink()
    torch.save({"r": 3}, folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="expected a dict of tensors"):
        read_lora(folder)
    assert json.loads((folder / CONFIG).read_text())["r"] == 3
