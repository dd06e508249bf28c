"""What adding or ablating a direction does to the margin between careless and careful answers."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from em.backbone import Backbone
from em.datamodules.pairs import Pair, pair_rows
from em.errors import MeasurementError
from em.hooks import generator_for
from em.interventions.ablation import Ablation
from em.interventions.direction import Direction
from em.interventions.steering import Steering
from em.measurements.margins import PAIR_ROWS, PairLosses, PairPanel
from em.measurements.panel import run_below
from em.modules.losses import cross_entropy_term, head_values
from em.stats import Floats, Resampling


@dataclass(frozen=True)
class Sweep:
    """Margins under steering with several coefficients.

    Args:
        coefficients: K values of c in h ← h + c·v̂ (or c·‖h‖·v̂).
        losses: of both answers, at each coefficient.
    """

    coefficients: list[float]
    losses: list[PairLosses]


@torch.no_grad()
def steering_sweep(
    backbone: Backbone, pairs: Sequence[Pair], steering: Steering, coefficients: Sequence[float]
) -> Sweep:
    """Score pairs under steering with every coefficient, in one forward pass for each batch of answers.

    Args:
        pairs: answers to score.
        steering: attached with coefficient 1; each batch row gets its own coefficient.
        coefficients: the sweep; 0 is the model without steering.
    """
    sums = {which: np.zeros((len(coefficients), len(pairs))) for which in ("careless", "careful")}
    tokens = {which: np.zeros(len(pairs)) for which in ("careless", "careful")}
    pad = int(backbone.tokenizer.pad_token_id or 0)
    for which in ("careless", "careful"):
        for rows in pair_rows(
            pairs, max(1, 2 * PAIR_ROWS // len(coefficients)), pad, which, range(len(pairs))
        ):
            moved = rows.to(backbone.device)
            ids_BT = moved.input_ids_BT.repeat(len(coefficients), 1)
            at_BT = moved.predicts_BT.repeat(len(coefficients), 1)
            strength_B = torch.tensor(list(coefficients)).repeat_interleave(len(rows))
            lower = run_below(backbone, moved, steering.lowest_layer())  # equal for all rows
            if lower is not None:
                lower = lower[0], lower[1].repeat(len(coefficients), 1, 1)
            with backbone.steering_positions(at_BT), steering.rows(strength_B):
                hidden_ND = backbone.trunk(ids_BT, lower)[at_BT]
            values_N = head_values(
                backbone, hidden_ND, cross_entropy_term(moved.targets_N.repeat(len(coefficients)))
            )
            parts = values_N.double().split(at_BT.sum(dim=1).tolist())
            nll_KB = np.array([float(part.sum()) for part in parts]).reshape(len(coefficients), -1)
            index = moved.index_B.cpu().numpy()
            sums[which][:, index] = nll_KB
            tokens[which][index] = moved.predicts_BT.sum(dim=1).cpu().numpy()
    losses = [
        PairLosses(careless, careful, tokens["careless"], tokens["careful"])
        for careless, careful in zip(sums["careless"], sums["careful"], strict=True)
    ]
    return Sweep(list(coefficients), losses)


@dataclass(frozen=True)
class AblationEffect:
    """Margins with a direction projected out, beside random directions.

    Args:
        ablated: adapted model without the direction.
        ablated_reference: reference model without the direction.
        random, random_reference: the same for each random direction.
    """

    ablated: PairLosses
    ablated_reference: PairLosses
    random: list[PairLosses]
    random_reference: list[PairLosses]

    def removed(
        self, adapted: PairLosses, reference: PairLosses, resampling: Resampling
    ) -> tuple[Floats, Floats]:
        """Share of the margin shift that goes with the direction, and with the random ones, each (R,)."""
        left_P = self.ablated.margin_P - self.ablated_reference.margin_P
        pairs = zip(self.random, self.random_reference, strict=True)
        random_P = np.mean([one.margin_P - other.margin_P for one, other in pairs], axis=0)
        shift_P = adapted.margin_P - reference.margin_P
        return removed_share(left_P, shift_P, resampling), removed_share(random_P, shift_P, resampling)


def removed_share(left_P: Floats, shift_P: Floats, resampling: Resampling) -> Floats:
    """1 − (margin shift with ablation) / (shift without), in each resample, shape (R,).

    Each shift is against the reference treated alike. 1: the reference's preference is back; 0: nothing
    went; NaN where there was no shift to remove.
    """
    ones = np.ones(len(shift_P))
    shift_R = resampling.means(shift_P, ones)
    return np.asarray(1 - resampling.means(left_P, ones) / np.where(shift_R > 0, shift_R, np.nan))


def ablated_losses(
    backbone: Backbone,
    panel: PairPanel,
    direction: Direction,
    layers: Literal["own", "all"] | int | list[int],
    source: int | None = None,
) -> PairLosses:
    """Losses of pairs under the model as it is now, with a direction projected out.

    Args:
        panel: built with `lowest_layer` at or below the lowest ablated layer.
        direction, layers, source: see `em.interventions.ablation.Ablation`.

    Raises:
        AdapterError: the direction does not fit the backbone.
    """
    ablation = Ablation.given(direction, layers=layers, source=source)
    ablation.attach(backbone)
    try:
        return panel.losses()
    finally:
        ablation.detach()


def ablation_effect(
    backbone: Backbone,
    disabled: Callable[[], AbstractContextManager[None]],
    panel: PairPanel,
    direction: Direction,
    layers: Literal["own", "all"] | int | list[int],
    source: int | None = None,
    controls: int = 1,
    seed: int = 0,
) -> AblationEffect:
    """Score pairs with a direction projected out, of the adapted and of the reference model.

    The direction may come from another run (transfer).

    Args:
        disabled: gives the context in which the adapted model is the reference.
        panel: pairs; built with `lowest_layer` at or below the lowest ablated layer.
        direction, layers, source: see `em.interventions.ablation.Ablation`.
        controls: random directions to compare with.

    Raises:
        AdapterError: the direction does not fit the backbone.
        MeasurementError: no control is asked for.
    """
    if controls < 1:
        raise MeasurementError("an ablation is only readable beside a random one; set controls to 1 or more")
    adapted, reference = [], []
    for number in range(1 + controls):
        one = direction
        if number:
            one = direction.random_like(generator_for(seed, "ablation-control", number))
        adapted.append(ablated_losses(backbone, panel, one, layers, source))
        with disabled():
            reference.append(ablated_losses(backbone, panel, one, layers, source))
    return AblationEffect(adapted[0], reference[0], adapted[1:], reference[1:])
