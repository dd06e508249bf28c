from typing import Any

import pytest
import torch
from torch import Tensor

from em.backbone import Backbone
from em.config import build
from em.config.schema import Config
from em.planning.kept import Numbers, kept_bytes
from em.planning.shapes import from_config
from em.planning.trained import trained_of
from tests.tiny import FAMILIES, tiny_backbone, token_ids

LENGTHS = torch.tensor([60, 50, 40, 30])
KINDS: dict[str, dict[str, Any]] = {
    "vector": {"kind": "steering_vector", "layer": 1},
    "vector_attention": {"kind": "steering_vector", "layer": 0, "point": "attention"},
    "lora": {"kind": "lora", "r": 4},
    "rank1": {"kind": "lora", "r": 1, "layers": [1], "modules": ["down_proj"]},
    "some": {"kind": "lora", "r": 2, "layers": [0, 2], "modules": ["v_proj", "o_proj", "up_proj"]},
    "full": {"kind": "full_finetune"},
    "layers_only": {"kind": "full_finetune", "embeddings": False},
}


def saved_bytes(backbone: Backbone, ids_BT: Tensor, lowest: int, length_B: Tensor | None) -> int:
    """Bytes of what autograd keeps of one pass, each storage once, the parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    lower = backbone.run_lower(ids_BT, lowest, length_B)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden_BTD = backbone.trunk(ids_BT, lower, length_B)
    assert hidden_BTD.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def expected_and_saved(
    family: str, component: dict[str, Any], packed: bool = False, half: bool = False, **options: Any
) -> tuple[int, int]:
    backbone = tiny_backbone(family, **options)
    if half:
        backbone.model.to(torch.bfloat16)
    intervention = build(component, "interventions")
    intervention.attach(backbone, 0)
    for module in [*backbone.layers, *intervention.training_modules()]:
        module.training = True
    shape = from_config(backbone.model.config.to_dict(), family)
    trained = trained_of(Config(intervention=component), shape)
    assert trained.parameters == sum(p.numel() for p in intervention.trainable_parameters().values())
    assert trained.lowest == intervention.lowest_layer()
    lengths = LENGTHS if packed else torch.full((4,), 60)
    tokens, pairs = int(lengths.sum()), int((lengths**2).sum())
    how = Numbers(2 if half else 4, 4, packed, family == "gemma2", checkpointing=False, cpu=True)
    saved = saved_bytes(backbone, token_ids(4, 60), trained.lowest, LENGTHS if packed else None)
    return kept_bytes(shape, trained, how, tokens, pairs), saved


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_what_autograd_saves(family: str, kind: str) -> None:
    expected, saved = expected_and_saved(family, KINDS[kind])
    assert expected == pytest.approx(saved, rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_keep_real_tokens_only(kind: str) -> None:
    expected, saved = expected_and_saved("llama", KINDS[kind], packed=True)
    assert expected == pytest.approx(saved, rel=0.03)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("kind", ["vector", "lora", "rank1", "full"])
def test_in_16_bits_norms_keep_32(family: str, kind: str) -> None:
    expected, saved = expected_and_saved(family, KINDS[kind], half=True)
    assert expected == pytest.approx(saved, rel=0.03)


def test_dropout_keeps_what_it_dropped() -> None:
    expected, saved = expected_and_saved("llama", {"kind": "lora", "r": 4, "dropout": 0.1})
    assert expected == pytest.approx(saved, rel=0.03)
