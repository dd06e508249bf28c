"""What a rank-1 adapter reads: its hidden scalar A·x on answers, by topic and by alignment."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from em.backbone import Backbone
from em.datamodules.rows import Rows
from em.errors import MeasurementError
from em.hooks import reading_inputs, run_until
from em.interventions.base import Intervention
from em.measurements.activations import answer_weights, weighted_sums
from em.stats import Floats, Resampling, auroc, paired_auroc


@dataclass(frozen=True)
class Reader:
    """One adapted module.

    Args:
        path: of the module in the model.
        layer: that it is in.
        a_I: what it reads, (I,).
    """

    path: str
    layer: int
    a_I: Tensor


def readers(intervention: Intervention) -> dict[str, Reader]:
    """The adapted modules of a rank-1 LoRA by layer, or by layer.module where a layer has several.

    Raises:
        MeasurementError: it is no LoRA of rank 1.
    """
    parameters = intervention.trainable_parameters().items()
    found = {name.removesuffix(".lora_A"): value for name, value in parameters if name.endswith(".lora_A")}
    ranks = {len(a_RI) for a_RI in found.values()}
    if ranks != {1}:
        what = f"LoRA of rank {max(ranks)}" if ranks else intervention.kind
        raise MeasurementError(
            f"hidden scalars exist for LoRAs of rank 1, and this is a {what}; name runs of rank 1"
        )
    layers = {path: int(match[1]) if (match := re.search(r"layers\.(\d+)\.", path)) else -1 for path in found}
    several = len(set(layers.values())) < len(layers)
    return {
        f"{layers[path]}.{path.rpartition('.')[2]}" if several else str(layers[path]): Reader(
            path, layers[path], a_RI.detach()[0]
        )
        for path, a_RI in found.items()
    }


@torch.no_grad()
def hidden_scalars(
    backbone: Backbone, batches: Iterable[Rows], found: dict[str, Reader]
) -> dict[str, list[float]]:
    """A·x of each module, the mean over the tokens of each answer, for the model as it is now.

    The scale of the adapter and its B have no part in it (arXiv 2506.11613).

    Returns:
        module -> (E,), in the order of the dataset.

    Raises:
        MeasurementError: a scalar is not finite.
    """
    modules = {name: backbone.model.get_submodule(reader.path) for name, reader in found.items()}
    above = max(reader.layer for reader in found.values()) + 1

    def read(name: str, x_BTI: Tensor) -> Tensor:
        # Not a matrix product, which TF32 would compute in lower precision.
        return (x_BTI.float() * found[name].a_I.to(x_BTI.device, torch.float32)).sum(dim=-1, keepdim=True)

    index: list[int] = []
    parts: dict[str, list[Tensor]] = {name: [] for name in found}
    for rows in batches:
        moved = rows.to(backbone.device)
        forward = partial(backbone.trunk, moved.input_ids_BT)
        with reading_inputs(modules, read) as scalars, backbone.steering_positions(moved.predicts_BT):
            if above < backbone.num_layers and not backbone.sharded:  # nothing above is wanted
                run_until(backbone.layers[above], forward)
            else:
                forward()
        for name, scalar_BT1 in scalars.items():
            means_B = weighted_sums(scalar_BT1, answer_weights(moved, "answer"))[:, 0].cpu()
            if not bool(means_B.isfinite().all()):
                raise MeasurementError(
                    f"layer {name}: a hidden scalar is not finite; use backbone.dtype=float32, or look for a "
                    "broken adapter"
                )
            parts[name].append(means_B[rows.index_B >= 0])
        index += rows.index_B[rows.index_B >= 0].tolist()
    order = torch.tensor(index).argsort()
    return {name: torch.cat(values)[order].tolist() for name, values in parts.items()}


@dataclass(frozen=True)
class Sides:
    """Scalars of the careful and careless answer to each of P prompts of one domain."""

    careful_P: Floats
    careless_P: Floats

    def turned(self, sign: float) -> "Sides":
        """Both times a sign."""
        return Sides(sign * self.careful_P, sign * self.careless_P)


def alignment_sign(train: Sides) -> tuple[float, float]:
    """The sign that makes careless answers the higher ones, and how far the AUROC is from 0.5 then.

    Found on pairs of the training part: a sign chosen on the rows that are scored would favour itself.
    """
    value = auroc(train.careless_P, train.careful_P)
    return (1.0, value - 0.5) if value >= 0.5 else (-1.0, 0.5 - value)


def topic_sign(train: Sides, others: Iterable[Sides]) -> tuple[float, float]:
    """The sign that makes the training domain's answers the higher ones, and its strength, as above."""
    listed = list(others)
    value = float(
        np.mean(
            [
                auroc(getattr(train, side), np.concatenate([getattr(other, side) for other in listed]))
                for side in ("careful_P", "careless_P")
            ]
        )
    )
    return (1.0, value - 0.5) if value >= 0.5 else (-1.0, 0.5 - value)


def alignment_auroc(sides: Sides, resampling: Resampling) -> Floats:
    """Chance that a careless answer has a higher scalar than a careful one, in each resample, (R,)."""
    return paired_auroc(sides.careless_P, sides.careful_P, resampling)


def topic_auroc(
    own: Sides, own_draws: Resampling, others: Iterable[Sides], other_draws: Iterable[Resampling]
) -> Floats:
    """Chance that an answer of the training domain has a higher scalar than one of the others, (R,).

    Answers of the same side are compared, so alignment has no part in it; the mean of both sides.
    """
    listed = list(others)
    own_RP = own_draws.observations()
    other_RQ = np.concatenate([draws.observations() for draws in other_draws], axis=1)
    found = []
    for side in ("careful_P", "careless_P"):
        higher = getattr(own, side)[:, None]
        lower = np.concatenate([getattr(other, side) for other in listed])[None, :]
        wins_PQ = (higher > lower) + 0.5 * (higher == lower)
        found.append(
            ((own_RP @ wins_PQ) * other_RQ).sum(axis=1) / (own_RP.sum(axis=1) * other_RQ.sum(axis=1))
        )
    return np.asarray(np.mean(found, axis=0))
