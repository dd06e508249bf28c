"""The effective weight or activation update of an intervention, kept in factors so that it stays small."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Update:
    """What an intervention adds, as one vector in update space.

    Each part is either a dense tensor `(left, None)` or a product `(left, right)` of a matrix with `r`
    columns and one with `r` rows, for example a LoRA's scaled B and A. Inner products of products are
    taken through r × r matrices; the product itself is never formed.

    Args:
        parts: name of the parameter or site -> (left, right).
    """

    parts: dict[str, tuple[Tensor, Tensor | None]]

    def inner(self, other: "Update") -> float:
        """Frobenius inner product of the two updates, accumulated in float64."""
        shared = [name for name in self.parts if name in other.parts]  # a set would have no fixed order
        return math.fsum(_inner(self.parts[name], other.parts[name]) for name in shared)

    def norm(self) -> float:
        """Frobenius norm of the whole update."""
        return max(self.inner(self), 0.0) ** 0.5

    def cosine(self, other: "Update") -> float:
        """Cosine in update space; NaN when one of the two is zero."""
        product = self.norm() * other.norm()
        return self.inner(other) / product if product > 0 else float("nan")


def _inner(a: tuple[Tensor, Tensor | None], b: tuple[Tensor, Tensor | None]) -> float:
    (left_a, right_a), (left_b, right_b) = a, b
    if right_a is None and right_b is None:
        return float(torch.sum(left_a.double() * left_b.double()))
    if right_a is None or right_b is None:
        dense, (left, right) = (left_a, b) if right_a is None else (left_b, a)
        assert right is not None
        return float(torch.sum((left.double().T @ dense.double()) * right.double()))
    # <B1 A1, B2 A2> = sum((B1ᵀ B2) * (A1 A2ᵀ))
    return float(torch.sum((left_a.double().T @ left_b.double()) * (right_a.double() @ right_b.double().T)))


def orthogonal_mix(epsilon: float, x_x: float, y_y: float, x_y: float) -> tuple[float, float]:
    """Coefficients (p, q) with x' = p·x + q·y = √(1−ε²)·x + ε·ŷ, where ŷ ⟂ x and ‖ŷ‖ = ‖x‖.

    ŷ is what is left of the noise y after its component along x is taken out, brought to the norm of x
    (the stability measurement of arXiv 2602.07852).

    Args:
        epsilon: in [0, 1].
        x_x, y_y, x_y: inner products of the update x and the noise y.
    """
    along = x_y / x_x
    rest = y_y - along * x_y
    stretch = epsilon * (x_x / rest) ** 0.5
    return (1.0 - epsilon**2) ** 0.5 - stretch * along, stretch
