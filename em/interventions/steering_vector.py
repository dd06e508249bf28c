"""A learned or given vector added to the residual stream at one layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from em import hooks
from em.backbone import Backbone
from em.errors import AdapterError
from em.hooks import Point, Site
from em.interventions.base import WEIGHTS, Intervention, answer_positions, read_tensors
from em.interventions.update import Update, orthogonal_mix

NAME = "vector"


class _Point(nn.Module):
    """Holds the parameter inside the hooked module, where FSDP2 shards and gathers it with the layer."""

    def __init__(self, vector: Tensor):
        super().__init__()
        self.vector = nn.Parameter(vector)


class SteeringVector(Intervention):
    """h ← h + scale · v at one site (arXiv 2602.07852: added at the MLP output, scale α = 256).

    Args:
        layer: index of the decoder layer.
        point: `mlp` (before the residual sum, the paper's), `attention` or `block` (after the sum). Gemma 2
            and 3 normalise the outputs of MLP and attention, so there only `block` adds exactly α·v.
        positions: `all`, or `answer`: the positions from which an answer token is predicted.
        scale: constant factor α; the norm of the intervention is ‖v‖·α.
        init: `zero`, or a safetensors file or adapter folder holding `vector` of shape (D,).
    """

    kind = "steering_vector"

    def __init__(
        self,
        *,
        layer: int,
        point: Point = "mlp",
        positions: Literal["all", "answer"] = "all",
        scale: float = 1.0,
        init: str = "zero",
    ):
        super().__init__()
        self.layer, self.positions, self.scale, self.init = layer, positions, float(scale), init
        self.site = Site(layer, point)
        self._factor = 1.0
        self._on = True
        self._handle: RemovableHandle | None = None

    def options(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "point": self.site.point,
            "positions": self.positions,
            "scale": self.scale,
            "init": self.init,
        }

    def attach(self, backbone: Backbone, seed: int = 0) -> None:
        module = backbone.module_at(self.site)
        if hasattr(module, "steering_vector"):
            raise AdapterError(f"a steering vector is attached at {self.site} already; detach it first")
        vector = torch.zeros(backbone.hidden_size) if self.init == "zero" else self._initial(backbone)
        module.add_module("steering_vector", _Point(vector.to(backbone.device)))
        self._handle = hooks.add_edit(module, self._edit)
        self._backbone = backbone

    def _initial(self, backbone: Backbone) -> Tensor:
        path = Path(self.init)
        values = read_tensors(path / WEIGHTS if path.is_dir() else path)
        if NAME not in values:
            raise AdapterError(f"{path}: holds no tensor named {NAME!r}, only {', '.join(sorted(values))}")
        if values[NAME].shape != (backbone.hidden_size,):
            raise AdapterError(
                f"intervention.init: {path} holds a vector of shape {tuple(values[NAME].shape)}, but "
                f"{backbone.name} needs width {backbone.hidden_size}"
            )
        if not bool(values[NAME].isfinite().all()):
            raise AdapterError(f"intervention.init: {path} holds values that are not finite")
        return values[NAME].float().clone()

    def detach(self) -> None:
        module = self.backbone.module_at(self.site)
        if self._handle is not None:
            self._handle.remove()
        del module.steering_vector
        self._backbone = None

    @property
    def vector(self) -> nn.Parameter:
        """The live parameter, shape (D,), fp32, without the scale."""
        point = self.backbone.module_at(self.site).steering_vector
        assert isinstance(point, _Point)
        return point.vector

    def _edit(self, hidden_BTD: Tensor) -> Tensor:
        if not self._on:
            return hidden_BTD
        added = (self.vector * (self.scale * self._factor)).to(hidden_BTD.dtype)
        if self.positions == "all":
            return hidden_BTD + added
        return hidden_BTD + added * answer_positions(self.backbone)[..., None]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        before, self._on = self._on, False
        try:
            yield
        finally:
            self._on = before

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {NAME: self.vector}

    def update(self) -> Update:
        vector = hooks.plain(self.vector.detach()).clone()
        return Update({str(self.site): (vector * (self.scale * self._factor), None)})

    @contextmanager
    def rescaled(self, factor: float) -> Iterator[None]:
        before, self._factor = self._factor, self._factor * factor
        try:
            yield
        finally:
            self._factor = before

    @contextmanager
    def perturbed(self, epsilon: float, generator: torch.Generator) -> Iterator[None]:
        x = hooks.plain(self.vector.detach()).double().cpu()
        y = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        if epsilon == 0 or not bool(x.any()):
            yield
            return
        p, q = orthogonal_mix(epsilon, float(x @ x), float(y @ y), float(x @ y))
        with self.swapped({NAME: (p * x + q * y).float()}):
            yield

    def lowest_layer(self) -> int:
        return self.layer
