"""`steering_vector.pt` as the authors of arXiv 2602.07852 publish it."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from em.errors import AdapterError
from em.interventions._published import Published, check_values, tensors_only
from em.interventions.steering_vector import NAME

VECTOR_FILE = "steering_vector.pt"
READ = ("steering_vector", "layer_idx", "alpha")
LABELS = ("d_model", "approach")  # which the authors write and do not read


def read_vector(path: Path) -> Published:
    """A dict of `steering_vector` (D,), `layer_idx` and `alpha`: alpha · vector is added at the output of
    `mlp.down_proj` of that layer, which is that of the MLP, on every position.

    The authors' own hook adds it to the first row of a batch only (a mistake in their code); here it is
    added to all rows.

    Raises:
        AdapterError: the file is damaged or no such dict, or reading it could run code.
    """
    found = tensors_only(path)
    if not isinstance(found, dict) or not {"steering_vector", "layer_idx"} <= found.keys():
        held = ", ".join(map(repr, list(found)[:5])) if isinstance(found, dict) else type(found).__name__
        raise AdapterError(f"{path}: expected a dict with {', '.join(READ)}; it holds {held}")
    vector = _vector(found["steering_vector"], path)
    if _plain(found.get("d_model", len(vector))) != len(vector):
        raise AdapterError(
            f"{path}: d_model is {found['d_model']!r}, but the vector has {len(vector)} values"
        )
    notes = []
    if "alpha" not in found:
        notes.append("the file has no alpha; 1 is used, as the authors' code does")
    others = [str(key) for key in found if key not in (*READ, *LABELS)]
    if others:
        notes.append(f"not used, as in the authors' code: {', '.join(map(repr, others))}")
    component = {
        "kind": "steering_vector",
        "layer": _layer(found["layer_idx"], path),
        "point": "mlp",
        "positions": "all",
        "scale": _number(found.get("alpha", 1.0), "alpha", path),
    }
    return Published(component, {NAME: vector}, [path], notes=notes)


def _vector(value: Any, path: Path) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim != 1 or value.layout != torch.strided:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise AdapterError(f"{path}: steering_vector: expected a tensor of shape (D,), got {shape}")
    check_values({"steering_vector": value}, path)
    return value.detach().float()


def _plain(value: Any) -> Any:
    """A number that may be held in a tensor of one element."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _layer(value: Any, path: Path) -> int:
    layer = _plain(value)
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
        raise AdapterError(f"{path}: layer_idx: expected a whole number at least 0, got {layer!r}")
    return layer


def _number(value: Any, key: str, path: Path) -> float:
    number = _plain(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise AdapterError(f"{path}: {key}: expected a finite number, got {number!r}")
    return float(number)
