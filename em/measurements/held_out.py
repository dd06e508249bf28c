"""Held-out loss of the adapted and the reference model, and the divergence between them, per example."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from em.backbone import Backbone
from em.datamodules.rows import Rows
from em.interventions.base import Intervention
from em.measurements.panel import run_below
from em.modules.losses import ReferenceStates, cross_entropy_term, divergence_term, head_values


@dataclass(frozen=True)
class ExampleScore:
    """Sums over the answer tokens of one held-out example, in nats."""

    index: int
    tokens: int
    nll: float
    nll_reference: float
    kl: float


class TokenMean(Metric):
    """Σ values / Σ tokens, exact over processes: every process adds its own share."""

    higher_is_better = False
    total: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, total: float, tokens: int) -> None:
        self.total = self.total + total
        self.tokens = self.tokens + tokens

    def compute(self) -> Tensor:
        return self.total / self.tokens


@torch.no_grad()
def score(
    backbone: Backbone,
    intervention: Intervention,
    batches: Iterable[Rows],
    reference: AbstractContextManager[Backbone] | None = None,
) -> list[ExampleScore]:
    """Score held-out rows under the adapted and the reference model; KL is KL(ref ‖ adapted).

    Args:
        backbone, intervention: the adapted model.
        batches: rows whose `index_B` names the example.
        reference: a context that gives another reference model (reusable), or None for the backbone
            with the intervention off.
    """
    scores: list[ExampleScore] = []
    for rows in batches:
        moved = rows.to(backbone.device)
        at_BT = moved.predicts_BT
        term = cross_entropy_term(moved.targets_N)
        # The intervention changes nothing below this layer, so both models share what is computed there.
        split = intervention.lowest_layer() if reference is None else 0
        lower = run_below(backbone, moved, split)
        with backbone.steering_positions(at_BT):
            with reference or intervention.disabled() as other:
                model = other or backbone
                hidden_ND = model.trunk(moved.input_ids_BT, lower, moved.length_B)[at_BT]
                states = ReferenceStates.of(model, hidden_ND)
                nll_reference_N = head_values(model, hidden_ND, term)
            hidden_ND = backbone.trunk(moved.input_ids_BT, lower, moved.length_B)[at_BT]
        nll_N = head_values(backbone, hidden_ND, term)
        kl_N = head_values(backbone, hidden_ND, divergence_term(states, "forward", 1.0))
        tokens_B = at_BT.sum(dim=1).tolist()
        columns = (part.double().split(tokens_B) for part in (nll_N, nll_reference_N, kl_N))
        for index, tokens, *values in zip(moved.index_B.tolist(), tokens_B, *columns, strict=True):
            if index >= 0:  # blank rows only keep the processes in step
                sums = [float(value.sum()) for value in values]
                scores.append(ExampleScore(index, tokens, *sums))
    return scores


def token_means(scores: list[ExampleScore], device: torch.device | str = "cpu") -> dict[str, float]:
    """Token-weighted means over all processes: loss, loss_reference, kl (nats per token), and perplexity.

    Args:
        scores: this process's share.
        device: where processes can add up, for example the GPU under NCCL.
    """
    values = {"loss": "nll", "loss_reference": "nll_reference", "kl": "kl"}
    means = {}
    for name, field in values.items():
        metric = TokenMean().to(device)
        metric.update(sum(getattr(one, field) for one in scores), sum(one.tokens for one in scores))
        means[name] = float(metric.compute())
    return {**means, "perplexity": float(np.exp(means["loss"]))}
