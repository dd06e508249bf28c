"""A leaner forward pass of PEFT's LoRA layer: same parameters, same values to rounding, less work.

PEFT forms x·Aᵀ·Bᵀ·s as a tensor of its own and adds it, and casts x to the adapter's dtype. Here the product
is accumulated into the layer's output, the adapter is cast instead, and only x and x·Aᵀ are kept for the
backward pass. Tensor names: N positions, I inputs, O outputs, R rank.
"""

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LeanForward:
    """Takes the place of `forward` of one LoRA layer.

    Args:
        layer: PEFT's layer with one adapter.
        adapter: its name.
    """

    def __init__(self, layer: LoraLayer, adapter: str):
        self.layer, self.adapter = layer, adapter
        self.base: nn.Linear = layer.get_base_layer()
        self._own: Callable[..., Tensor] = layer.forward
        self.folding = False  # within `Lora.merged()`
        self._folded: tuple[tuple[Any, ...], Tensor] | None = None
        self.changes = 0  # counts what is put in place of the parameters' tensors
        layer.forward = self

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self.layer
        if layer.disable_adapters:
            return self.base(x)
        a, b = layer.lora_A[self.adapter].weight, layer.lora_B[self.adapter].weight
        if self._needs_own(x):
            return self._own(x, *args, **kwargs)
        scale = float(layer.scaling[self.adapter])
        if self.folding and not torch.is_grad_enabled() and self.base.weight.dtype == torch.float32:
            return nn.functional.linear(x, self._fold(a, b, scale), self.base.bias)
        out = _Product.apply(x, self.base.weight, self.base.bias, a, b, scale)
        assert isinstance(out, Tensor)
        return out

    def _needs_own(self, x: Tensor) -> bool:
        """Dropout, autocast and quantised weights are left to PEFT."""
        dropout = self.layer.lora_dropout[self.adapter]
        plain = type(self.base) is nn.Linear and self.base.weight.dtype == x.dtype
        random = dropout.training and getattr(dropout, "p", 0) > 0
        return not plain or random or torch.is_autocast_enabled(x.device.type)

    def _fold(self, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """W + s·BA, kept until anything of it changes."""
        key = (self.changes, scale, a._version, b._version)
        if self._folded is None or self._folded[0] != key:
            self._folded = None  # its memory first
            with torch.no_grad():
                weight = torch.addmm(self.base.weight, b.float(), a.float(), alpha=scale)
            self._folded = key, weight
        return self._folded[1]

    def unfold(self) -> None:
        """Give the memory of the folded weight back."""
        self.folding, self._folded = False, None


class _Product(torch.autograd.Function):
    """x·Wᵀ + bias + s·(x·Aᵀ)·Bᵀ with gradients to x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        low_NR = x_NI @ a_RI.to(x.dtype).T
        out_NO = nn.functional.linear(x_NI, weight_OI, bias)
        out_NO.addmm_(low_NR, b_OR.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(x, weight_OI, a_RI, b_OR, low_NR)
        ctx.scale = scale
        return out_NO.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        x, weight_OI, a_RI, b_OR, low_NR = ctx.saved_tensors
        grad_NO = grad_outputs[0].reshape(-1, weight_OI.shape[0])
        through_NR = (grad_NO @ b_OR.to(grad_NO.dtype)).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_NI = grad_NO @ weight_OI
            grad_x = grad_NI.addmm_(through_NR, a_RI.to(grad_NO.dtype)).view(x.shape)
        grad_a = grad_b = None
        if ctx.needs_input_grad[3]:
            grad_a = (through_NR.T @ x.reshape(-1, x.shape[-1])).to(a_RI.dtype)
        if ctx.needs_input_grad[4]:
            grad_b = (grad_NO.T @ low_NR).mul_(ctx.scale).to(b_OR.dtype)
        return grad_x, None, None, grad_a, grad_b, None
