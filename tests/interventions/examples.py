"""Options with which the contract tests build each kind. A new kind adds one line here."""

from typing import Any

import pytest
import torch
from torch import Tensor

from em.backbone import Backbone
from em.config import build
from em.config.build import kinds
from em.interventions.base import Intervention
from tests.tiny import randomise, tiny_backbone, token_ids

EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "full_finetune": [{}, {"embeddings": False}],
    "lora": [
        {"r": 2, "alpha": 8.0},
        {"r": 1, "alpha": 16.0, "rslora": False, "modules": ["down_proj"], "layers": [1]},
    ],
    "steering_vector": [
        {"layer": 1, "scale": 2.0},
        {"layer": 2, "point": "block"},
        {"layer": 1, "point": "attention", "positions": "answer", "scale": 0.5},
    ],
}
Case = tuple[str, dict[str, Any] | None]


def cases() -> list[Any]:
    """Every kind that has a file in em/interventions, with each of its examples."""
    found = []
    for kind in kinds("interventions"):
        for number, options in enumerate(EXAMPLES.get(kind, [None])):
            found.append(pytest.param((kind, options), id=f"{kind}-{number}"))
    return found


def made(case: Case) -> Intervention:
    """A fresh intervention, not attached."""
    kind, options = case
    if options is None:
        pytest.fail(f"give example options for the new kind {kind!r} in tests/interventions/examples.py")
    intervention = build({"kind": kind, **options}, "interventions")
    assert isinstance(intervention, Intervention)
    return intervention


def attached(
    case: Case, random: bool = True, backbone: Backbone | None = None, scale: float = 0.3
) -> Intervention:
    """Attached to a tiny backbone; with random values, as after training."""
    intervention = made(case)
    intervention.attach(backbone or tiny_backbone(), seed=3)
    if random:
        randomise(intervention, scale=scale)
    return intervention


def output(backbone: Backbone) -> Tensor:
    """Logits of fixed rows, with every second position marked as the answer's."""
    ids_BT = token_ids()
    mask_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    mask_BT[:, ::2] = True
    with backbone.steering_positions(mask_BT):
        return backbone.logits(backbone.trunk(ids_BT))
