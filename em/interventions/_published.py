"""Adapters and vectors that others published, read from their files and not yet attached to anything."""

import pickle
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from em.backbone import Backbone
from em.config.schema import Component
from em.errors import AdapterError
from em.interventions.base import Intervention, check_origin

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # that fp32 parameters hold exactly
BROKEN = (
    *(RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError),
    *(AssertionError, struct.error),
)


@dataclass(frozen=True)
class Published:
    """What a published artefact is, in terms of this project.

    Args:
        component: the section `intervention` of a configuration that holds it.
        values: the parameters, by the names that the intervention gives them.
        files: what was read.
        model: the model that it is for, where the files say so.
        revision: of that model.
        targets: the PEFT configuration that says which modules are changed; None for a vector.
        backbone: what em wrote of the model, where the files are em's own.
        notes: what a user should know.
    """

    component: Component
    values: dict[str, Tensor]
    files: list[Path]
    model: str | None = None
    revision: str | None = None
    targets: dict[str, Any] | None = None
    backbone: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    def put_into(self, intervention: Intervention, where: str) -> None:
        """Copy the values into an attached intervention that `component` built.

        Raises:
            AdapterError: they are of another model.
        """
        if self.backbone is not None:
            check_origin(self.backbone, intervention.backbone, f"{where}: trained on")
        intervention.put(self.values, where)


def tensors_only(path: Path) -> Any:
    """What `torch.save` wrote, if it is nothing but tensors, numbers, text and containers of them.

    Raises:
        AdapterError: it cannot be read, or reading it could run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" (it asks for {wanted[1]})" if wanted else ""
        raise AdapterError(
            f"{path}: is refused: it is damaged, or a pickle with more than plain tensors and numbers{what}, "
            "and reading such a file could run code on this machine. Ask its authors for safetensors, or "
            "save it again where you trust it, with plain tensors and numbers only"
        ) from error
    except BROKEN as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AdapterError(f"{path}: cannot be read ({first}); is it complete?") from error


def check_values(values: dict[str, Tensor], path: Path) -> None:
    """Refuse what parameters here would not hold exactly.

    Raises:
        AdapterError: a tensor is not of a floating type up to 32 bits, or not finite.
    """
    for name, value in values.items():
        if value.dtype not in DTYPES:
            listed = ", ".join(str(one).removeprefix("torch.") for one in DTYPES)
            raise AdapterError(f"{path}: {name} has the type {value.dtype}; expected {listed}")
        if not bool(value.isfinite().all()):
            raise AdapterError(f"{path}: {name} holds values that are not finite")


def check_layer(layer: int, backbone: Backbone, path: Path) -> None:
    """Refuse a layer that the model does not have."""
    if not 0 <= layer < backbone.num_layers:
        raise AdapterError(
            f"{path}: is for layer {layer}, but {backbone.name} has layers 0 to {backbone.num_layers - 1}; "
            "name the model that it was made for with --model"
        )
