"""Monitoring: project the activations of answers on a direction, and how well that tells labels apart."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from em.backbone import Backbone
from em.datamodules.rows import Rows
from em.errors import MeasurementError
from em.hooks import Site
from em.measurements.activations import activations, answer_weights, weighted_sums
from em.stats import Estimate, Floats, Resampling, paired_auroc


@dataclass(frozen=True)
class Projections:
    """One score for each answer and site: the mean over its answer tokens of h · v̂.

    Args:
        index_E: position of each answer in its dataset, ascending.
        scores: site -> (E,), or (E, K) for K directions, in units of the residual stream.
    """

    index_E: Floats
    scores: dict[Site, Floats]


@torch.no_grad()
def projections(backbone: Backbone, batches: Iterable[Rows], directions: dict[Site, Tensor]) -> Projections:
    """Project the answers on unit directions, under the model as it is now.

    Args:
        directions: site -> (D,) or (K, D) vectors of any length; with K vectors the scores are (E, K).

    Raises:
        MeasurementError: there is no answer.
    """
    sites = list(directions)
    units = {site: _unit(vector).to(backbone.device) for site, vector in directions.items()}
    index: list[int] = []
    scores: dict[Site, list[Floats]] = {site: [] for site in sites}
    for rows in batches:
        moved = rows.to(backbone.device)
        weights_BT = answer_weights(moved, "answer")
        real_B = moved.index_B >= 0
        captured = activations(backbone, moved, sites)
        for site in sites:
            means_BD = weighted_sums(captured[site], weights_BT)[real_B]
            scores[site].append((means_BD @ units[site].double().movedim(-1, 0)).cpu().numpy())
        index += moved.index_B[real_B].tolist()
    if not index:
        raise MeasurementError("no answer to project")
    order = np.argsort(index)
    return Projections(
        np.array(index)[order], {site: np.concatenate(parts)[order] for site, parts in scores.items()}
    )


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm(dim=-1, keepdim=True)


def separation(positive: Floats, negative: Floats, resampling: Resampling) -> Estimate:
    """AUROC of paired answers (positive: careless) with an interval over prompts."""
    return resampling.estimate(paired_auroc(positive, negative, resampling))


def best(estimates: Sequence[Estimate]) -> int:
    """Index of the highest value; the first where several are equal."""
    return int(np.argmax([-np.inf if one.value is None else one.value for one in estimates]))
