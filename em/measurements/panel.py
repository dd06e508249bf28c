"""Rows that are scored many times under changed interventions: the inner loop of most measurements."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from em.backbone import Backbone
from em.datamodules.rows import Rows
from em.errors import MeasurementError
from em.interventions.base import Intervention
from em.modules.losses import cross_entropy_term, head_values
from em.stats import Floats


@dataclass(frozen=True)
class _Batch:
    rows: Rows
    at_BT: Tensor
    targets_N: Tensor
    tokens_B: list[int]
    lower: tuple[int, Tensor] | None


class Panel:
    """Answers whose loss is wanted under many variants of a model.

    What lies below the lowest layer that any variant changes is computed once and kept. While something
    is attached below it, the whole model runs instead.

    Args:
        backbone: the model; interventions may be attached and detached between passes.
        batches: rows whose `index_B` names the example; blank rows (−1) only keep processes in step.
        lowest_layer: hidden states that enter this layer are the reference's own in every variant.

    Attributes:
        index_E: position of each of E examples in its dataset, ascending: the order of all results.
        tokens_E: answer tokens of each example.
    """

    def __init__(self, backbone: Backbone, batches: Iterable[Rows], lowest_layer: int = 0):
        self.backbone = backbone
        self.batches: list[_Batch] = []
        for rows in batches:
            moved = rows.to(backbone.device)
            at_BT = moved.predicts_BT
            tokens_B = at_BT.sum(dim=1).tolist()
            lower = run_below(backbone, moved, lowest_layer)
            self.batches.append(_Batch(moved, at_BT, moved.targets_N, tokens_B, lower))
        index = [one for batch in self.batches for one in batch.rows.index_B.tolist()]
        self._order = np.array([at for at in np.argsort(index, kind="stable") if index[at] >= 0], dtype=int)
        self.index_E = np.array(index, dtype=int)[self._order]
        self.tokens_E = self._ordered([batch.tokens_B for batch in self.batches])

    def _ordered(self, values: Sequence[Sequence[float]]) -> Floats:
        """Values of all batches in the order of the dataset, without blank rows."""
        return np.array([value for part in values for value in part], dtype=float)[self._order]

    @torch.no_grad()
    def nll(self) -> Floats:
        """Σ −log p(answer token) of each example under the model as it is now, in nats; shape (E,)."""
        sums = []
        kept = [batch.lower for batch in self.batches if batch.lower is not None]
        usable = bool(kept) and not attached_below(self.backbone, kept[0][0])
        for batch in self.batches:
            lower = batch.lower if usable else None
            with self.backbone.steering_positions(batch.at_BT):
                hidden_BTD = self.backbone.trunk(batch.rows.input_ids_BT, lower, batch.rows.length_B)
            term = cross_entropy_term(batch.targets_N)
            values_N = head_values(self.backbone, hidden_BTD[batch.at_BT], term)
            sums.append([float(part.sum()) for part in values_N.double().split(batch.tokens_B)])
        nll_E = self._ordered(sums)
        if not np.isfinite(nll_E).all():
            bad = int(self.index_E[~np.isfinite(nll_E)][0])
            raise MeasurementError(
                f"the loss of example {bad} is not finite; use backbone.dtype=float32 or a smaller norm"
            )
        return nll_E

    def nll_reference(self, intervention: Intervention) -> Floats:
        """`nll` with the intervention switched off."""
        with intervention.disabled():
            return self.nll()


def run_below(backbone: Backbone, rows: Rows, layer: int) -> tuple[int, Tensor] | None:
    """`Backbone.run_lower`; None too where something is attached below the layer.

    What is kept would know nothing of a later change there, and hooks of skipped layers would fire on it.
    """
    if attached_below(backbone, layer):
        return None
    return backbone.run_lower(rows.input_ids_BT, layer, rows.length_B)


def attached_below(backbone: Backbone, layer: int) -> bool:
    """Whether anything below a layer is trained or hooked, on or off; the frozen model has neither."""
    below = [module for part in backbone.layers[:layer] for module in part.modules()]
    trained = any(p.requires_grad for module in below for p in module.parameters(recurse=False))
    return trained or any(module._forward_hooks for module in below)


def mean_loss(nll_E: Floats, tokens_E: Floats) -> float:
    """Σ nats / Σ tokens.

    Raises:
        MeasurementError: there is no answer token.
    """
    if not tokens_E.sum():
        raise MeasurementError("no answer token to score; give held-out rows with answers")
    return float(nll_E.sum() / tokens_E.sum())
