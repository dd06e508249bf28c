"""The usual way: full fp32 logits and autograd. Imports nothing of em."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.errors import BenchmarkError
from benchmarks.machine import clock
from benchmarks.memory import available_mb, now_mb, peak_mb, restart_peak
from benchmarks.settings import Settings

COPIES = 6  # tensors as large as the logits that autograd holds at the worst moment


def inputs(settings: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Head (V, D), hidden states of the model and of the reference (N, D), targets (N,)."""
    sizes = settings.sizes
    vocabulary, positions, width = sizes["vocabulary"], sizes["positions"], sizes["width"]
    generator = torch.Generator().manual_seed(0)
    weight_VD = torch.randn(vocabulary, width, generator=generator) * 0.05
    hidden_ND = torch.randn(positions, width, generator=generator)
    reference_ND = hidden_ND + 0.1 * torch.randn(positions, width, generator=generator)
    targets_N = torch.randint(0, vocabulary, (positions,), generator=generator)
    return weight_VD, hidden_ND, reference_ND, targets_N


def run(settings: Settings, work: Path) -> dict[str, Any]:
    """Peak memory above what the head and the hidden states themselves take.

    One loss runs forward and backward before the other, which needs less memory than their sum.

    Raises:
        BenchmarkError: the machine has not enough memory for it.
    """
    weight_VD, hidden_ND, reference_ND, targets_N = inputs(settings)
    needed = COPIES * 4 * len(weight_VD) * len(hidden_ND) / 2**20
    free = available_mb()
    if free is not None and needed > free:
        raise BenchmarkError(
            f"full logits need about {needed / 1024:.0f} GB, but {free / 1024:.0f} GB are free; "
            "use --scale small"
        )
    _losses(weight_VD, hidden_ND[:8], reference_ND[:8], targets_N[:8])  # warm-up
    held = now_mb()
    restarted = restart_peak()
    began = clock()
    losses, grad_ND = _losses(weight_VD, hidden_ND, reference_ND, targets_N)
    seconds = clock() - began
    return {
        "seconds": seconds,
        "peak_mb": peak_mb() - held,
        "restarted": restarted,
        "losses": {"losses": losses, "gradient": [float(grad_ND.norm())]},
    }


def _losses(
    weight_VD: Tensor, hidden_ND: Tensor, reference_ND: Tensor, targets_N: Tensor
) -> tuple[list[float], Tensor]:
    hidden_ND = hidden_ND.detach().requires_grad_()
    sft = F.cross_entropy(F.linear(hidden_ND, weight_VD), targets_N)
    sft.backward()
    with torch.no_grad():
        reference_NV = F.log_softmax(F.linear(reference_ND, weight_VD), dim=-1)
    adapted_NV = F.log_softmax(F.linear(hidden_ND, weight_VD), dim=-1)
    kl = F.kl_div(adapted_NV, reference_NV, reduction="batchmean", log_target=True)
    kl.backward()
    assert hidden_ND.grad is not None
    return [float(sft.detach()), float(kl.detach())], hidden_ND.grad
