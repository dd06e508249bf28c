"""Cross-entropy and divergences over a large vocabulary, at selected positions only, in chunks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from em.backbone import Backbone

Direction = Literal["forward", "reverse", "js"]
Term = Callable[[Tensor, slice], Tensor]  # (logits_nV, positions) -> values_n
CHUNK_ELEMENTS = 2**24  # logits held at a time; 64 MB in fp32


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """−log p(target) in nats, per position."""
    return F.cross_entropy(logits_NV, targets_N, reduction="none")


def divergence(
    reference_NV: Tensor, adapted_NV: Tensor, direction: Direction = "forward", temperature: float = 1.0
) -> Tensor:
    """Divergence of two next-token distributions in nats, summed over the vocabulary, per position.

    forward: KL(ref ‖ adapted), the paper's; reverse: KL(adapted ‖ ref); js: Jensen–Shannon, at most log 2.
    Both logits are divided by `temperature`; the result is not multiplied by its square.
    """
    reference = F.log_softmax(reference_NV.float() / temperature, dim=-1)
    adapted = F.log_softmax(adapted_NV.float() / temperature, dim=-1)
    if direction == "forward":
        return _kl(reference, adapted)
    if direction == "reverse":
        return _kl(adapted, reference)
    middle = torch.logaddexp(reference, adapted) - torch.log(torch.tensor(2.0))
    return (_kl(reference, middle) + _kl(adapted, middle)) / 2


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(dim=-1)


@dataclass(frozen=True)
class ReferenceStates:
    """What is needed to form the reference's logits later: final hidden states and the head."""

    backbone: Backbone
    hidden_ND: Tensor
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, backbone: Backbone, hidden_ND: Tensor) -> "ReferenceStates":
        """Remembers the head as it is now: call inside `disabled()` when the head itself is trained."""
        weight, bias = backbone.head.weight.detach(), backbone.head.bias
        if backbone.sharded and backbone.head.weight.requires_grad:
            weight = weight.clone()  # FSDP2 gathers the trained head into the same storage later
        return cls(backbone, hidden_ND.detach(), weight, None if bias is None else bias.detach())

    @torch.no_grad()
    def logits(self, positions: slice) -> Tensor:
        return self.backbone.logits(self.hidden_ND[positions], self.weight, self.bias)


def cross_entropy_term(targets_N: Tensor) -> Term:
    """Term of `head_sum` and `head_values` for the SFT loss."""
    return lambda logits_nV, positions: cross_entropy(logits_nV, targets_N[positions])


def divergence_term(reference: ReferenceStates, direction: Direction, temperature: float) -> Term:
    """Term of `head_sum` and `head_values` for the KL term."""
    return lambda logits_nV, positions: divergence(
        reference.logits(positions), logits_nV, direction, temperature
    )


def chunks(positions: int, vocabulary: int) -> list[slice]:
    """Slices of positions such that one chunk of logits stays small."""
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(at, min(at + size, positions)) for at in range(0, positions, size)]


@torch.no_grad()
def head_values(backbone: Backbone, hidden_ND: Tensor, term: Term) -> Tensor:
    """The term at every position, without gradient; logits exist a chunk at a time."""
    parts = [
        term(backbone.logits(hidden_ND[part]), part) for part in chunks(len(hidden_ND), backbone.vocab_size)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, device=hidden_ND.device)


def head_sum(backbone: Backbone, hidden_ND: Tensor, term: Term) -> Tensor:
    """The term summed over positions, differentiable in the hidden states and a trainable head.

    The gradient to the hidden states is formed in the forward pass, a chunk of logits at a time, so that
    logits are neither kept nor computed twice. No positions give an exact zero that still has a graph.
    """
    if not torch.is_grad_enabled() or not hidden_ND.requires_grad:
        return head_values(backbone, hidden_ND, term).sum()
    total = _HeadSum.apply(hidden_ND, backbone.head.weight, backbone.head.bias, backbone, term)
    assert isinstance(total, Tensor)
    return total


class _HeadSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight: Tensor, bias: Tensor | None, backbone: Backbone, term: Term
    ) -> Tensor:
        leaves = [weight.detach().requires_grad_(ctx.needs_input_grad[1])]
        if bias is not None:
            leaves.append(bias.detach().requires_grad_(ctx.needs_input_grad[2]))
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        grad_ND = torch.zeros_like(hidden_ND)
        head_grads = [torch.zeros_like(leaf) for leaf in wanted]
        total = torch.zeros((), device=hidden_ND.device)
        for part in chunks(len(hidden_ND), backbone.vocab_size):
            hidden_nD = hidden_ND[part].detach().requires_grad_()
            with torch.enable_grad():
                value = term(backbone.logits(hidden_nD, *leaves), part).sum()
            grad_nD, *more = torch.autograd.grad(value, [hidden_nD, *wanted])
            grad_ND[part] = grad_nD
            for kept, grad in zip(head_grads, more, strict=True):
                kept += grad
            total += value.detach()
        ctx.save_for_backward(grad_ND, *head_grads)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        grad_ND, *head_grads = (grad * grad_outputs[0] for grad in ctx.saved_tensors)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        weight_grad = head_grads.pop(0) if needs_weight else None
        bias_grad = head_grads.pop(0) if needs_bias else None
        return grad_ND, weight_grad, bias_grad, None, None
