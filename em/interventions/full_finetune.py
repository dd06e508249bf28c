"""All weights, with the difference to the original treated as the update."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from em import hooks
from em.backbone import Backbone
from em.interventions.base import Intervention
from em.interventions.update import Update, orthogonal_mix


class FullFinetune(Intervention):
    """W ← W + ΔW for every weight of the backbone.

    A copy of the original weights is kept, so that the reference, the norm ‖ΔW‖ and rescaling are exact;
    it takes the memory of a second model.

    Args:
        embeddings: train the token embeddings (and a head tied to them) too.
    """

    kind = "full_finetune"

    def __init__(self, *, embeddings: bool = True):
        super().__init__()
        self.embeddings = embeddings
        self._original: dict[str, Tensor] = {}

    def options(self) -> dict[str, Any]:
        return {"embeddings": self.embeddings}

    def attach(self, backbone: Backbone, seed: int = 0) -> None:
        self._backbone = backbone
        backbone.model.requires_grad_(True)
        if not self.embeddings:
            backbone.model.get_input_embeddings().requires_grad_(False)
            backbone.head.requires_grad_(False)
        self._names = [name for name, p in backbone.model.named_parameters() if p.requires_grad]
        self._original = {name: p.detach().clone() for name, p in self.trainable_parameters().items()}

    def detach(self) -> None:
        for name, parameter in self.trainable_parameters().items():
            parameter.data = self._originals()[name]
            parameter.grad = None
        self.backbone.model.requires_grad_(False)
        self._backbone, self._original = None, {}

    def _originals(self) -> dict[str, Tensor]:
        """The original weights, on the device to which the model has been moved since."""
        for name, parameter in self.trainable_parameters().items():
            if self._original[name].device != parameter.device:
                self._original[name] = self._original[name].to(parameter.device)
        return self._original

    @contextmanager
    def disabled(self) -> Iterator[None]:
        with self.swapped(self._originals()):
            yield

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        every = dict(self.backbone.model.named_parameters())
        return {name: every[name] for name in self._names}

    def update(self) -> Update:
        originals = self._originals()
        return Update(
            {
                name: (hooks.plain(parameter.detach()) - originals[name], None)
                for name, parameter in self.trainable_parameters().items()
            }
        )

    def norm(self) -> float:
        originals = self._originals()
        squares = (
            float(torch.sum((hooks.plain(parameter.detach()) - originals[name]).double() ** 2))
            for name, parameter in self.trainable_parameters().items()
        )
        return math.fsum(squares) ** 0.5

    @contextmanager
    def rescaled(self, factor: float) -> Iterator[None]:
        if factor == 1.0:
            yield
            return
        parts = self.update().parts
        with self.swapped({name: self._original[name] + factor * dx for name, (dx, _) in parts.items()}):
            yield

    @contextmanager
    def perturbed(self, epsilon: float, generator: torch.Generator) -> Iterator[None]:
        """Noise tensor by tensor; a tensor of one number has no orthogonal direction and stays as it is."""
        values: dict[str, Tensor] = {}
        for name, (dx, _) in self.update().parts.items():
            noise = torch.randn(dx.shape, generator=generator).to(dx)
            if epsilon == 0 or dx.numel() < 2 or not bool(dx.any()):
                continue
            x, y = Update({"": (dx, None)}), Update({"": (noise, None)})
            p, q = orthogonal_mix(epsilon, x.inner(x), y.inner(y), x.inner(y))
            values[name] = self._original[name] + p * dx + q * noise
        with self.swapped(values):
            yield

    def lowest_layer(self) -> int:
        return 0
