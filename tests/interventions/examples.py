"""Options with which the contract tests build each kind. A new kind adds one line here."""

import atexit
import functools
import importlib
import tempfile
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from em.backbone import Backbone
from em.config import build
from em.config.build import kinds, resolve
from em.hooks import Point, Site, generator_for
from em.interventions.base import Intervention
from em.interventions.direction import Direction
from tests.tiny import randomise, tiny_backbone, token_ids


def direction(layers: int = 3, width: int = 32, seed: int = 0) -> Direction:
    """Random vectors of about length 6 at every site of a tiny backbone."""
    generator = generator_for(seed, "direction")
    sites = [Site(layer, point) for layer in range(layers) for point in get_args(Point)]
    return Direction({site: torch.randn(width, generator=generator) for site in sites}, name="example")


@functools.cache
def direction_file() -> str:
    """`direction()` on disk, for as long as the tests run."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "direction.safetensors"
    direction().save(path)
    return str(path)


FILE = {"direction": direction_file()}
EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "ablation": [
        {**FILE, "layers": "all"},
        {**FILE, "layers": [1, 2], "source": 0, "point": "mlp", "strength": 0.7},
    ],
    "full_finetune": [{}, {"embeddings": False}],
    "lora": [
        {"r": 2, "alpha": 8.0},
        {"r": 1, "alpha": 16.0, "rslora": False, "modules": ["down_proj"], "layers": [1]},
    ],
    "steering": [
        {**FILE, "layers": 1, "coefficient": 4.0},
        {**FILE, "coefficient": -0.5, "unit": False, "point": "attention", "positions": "answer"},
        {**FILE, "layers": [1, 2], "source": 2, "relative": True, "coefficient": 0.3},
    ],
    "steering_vector": [
        {"layer": 1, "scale": 2.0},
        {"layer": 2, "point": "block"},
        {"layer": 1, "point": "attention", "positions": "answer", "scale": 0.5},
    ],
}
Case = tuple[str, dict[str, Any] | None]


def cases(fixed: bool | None = None) -> list[Any]:
    """Every kind that has a file in em/interventions, with each of its examples.

    Args:
        fixed: only those that are given (true), or only those that are trained (false).
    """
    found = []
    for kind in kinds("interventions"):
        module, _, name = resolve({"kind": kind}, "interventions").rpartition(".")
        if fixed not in (None, getattr(importlib.import_module(module), name).fixed):
            continue
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
