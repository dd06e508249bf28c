"""Means, covariances and samples of activations over answer tokens, streamed: memory stays the same."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from em.backbone import Backbone
from em.datamodules.rows import Rows
from em.errors import MeasurementError
from em.hooks import Site, capturing, generator_for, run_until
from em.measurements.samples import Samples
from em.stats import Floats

BAGS = 16  # blocks of prompts, for split halves and leave-one-out intervals


@dataclass
class Moments:
    """Σ x (and Σ x xᵀ) of one group of answers, by site and by bag of prompts.

    A prompt belongs to bag (its index mod bags) in every group, so that the careful and the careless
    answer to one prompt are left out together.

    Args:
        sums: site -> (bags, D), float64.
        counts: (bags,) tokens, or answers with `weighting: answer`.
        answers: number of answers.
        squares: site -> (D, D), float64; empty unless covariances are wanted.
        samples: some of the activations; None unless wanted.
    """

    sums: dict[Site, Tensor]
    counts: Tensor
    answers: int = 0
    squares: dict[Site, Tensor] = field(default_factory=dict)
    samples: Samples | None = None

    def mean(self, site: Site, weights_B: Tensor | None = None) -> Tensor:
        """Mean activation, shape (D,), float64; optionally with a weight for each bag.

        Raises:
            MeasurementError: the group is empty.
        """
        weights_B = torch.ones(len(self.counts), dtype=torch.float64) if weights_B is None else weights_B
        total = float(weights_B @ self.counts)
        if total <= 0:
            raise MeasurementError(
                "a group has no answer token to average, for example because no answer was misaligned; "
                "give more answers or check the labels"
            )
        return (weights_B @ self.sums[site]) / total

    def covariance(self, site: Site) -> Tensor:
        """Population covariance of the activations at a site, shape (D, D), float64."""
        mean_D, total = self.mean(site), float(self.counts.sum())
        return self.squares[site] / total - torch.outer(mean_D, mean_D)

    def merged(self, other: "Moments") -> "Moments":
        """Moments of both together: sums add, so processes reduce exactly."""
        return Moments(
            {site: value + other.sums[site] for site, value in self.sums.items()},
            self.counts + other.counts,
            self.answers + other.answers,
            {site: value + other.squares[site] for site, value in self.squares.items()},
            self.samples.merged(other.samples) if self.samples and other.samples else None,
        )


def merged(parts: Sequence[dict[str, Moments]]) -> dict[str, Moments]:
    """The groups of all processes together."""
    total = dict(parts[0])
    for part in parts[1:]:
        total = {name: total[name].merged(part[name]) for name in total}
    return total


@torch.no_grad()
def collect(
    backbone: Backbone,
    groups: Mapping[str, Iterable[Rows]],
    sites: Sequence[Site],
    covariance: bool = False,
    weighting: str = "token",
    bags: int = BAGS,
    samples: int = 0,
    seed: int = 0,
) -> dict[str, Moments]:
    """Moments of answer-token activations of the model as it is now.

    Args:
        groups: name -> rows; answer tokens are `answer_BT`, so neither prompt nor header nor padding.
        sites: where; hidden states are read in the model's dtype and summed in float64.
        covariance: also Σ x xᵀ, D² numbers for each site.
        weighting: `token`: every answer token counts once; `answer`: every answer counts once.
        samples: also the activations of at most so many answer tokens of each group, a uniform sample.
        seed: key of the sample.

    Raises:
        MeasurementError: an activation is not finite.
    """
    listed = list(dict.fromkeys(sites))
    found = {}
    for name, batches in groups.items():
        empty = Samples.empty(samples, listed, backbone.hidden_size) if samples else None
        found[name] = _collect(backbone, name, batches, listed, covariance, weighting, bags, empty, seed)
    return found


def _collect(
    backbone: Backbone,
    group: str,
    batches: Iterable[Rows],
    sites: list[Site],
    covariance: bool,
    weighting: str,
    bags: int,
    samples: Samples | None,
    seed: int,
) -> Moments:
    width = backbone.hidden_size
    found = Moments(
        {site: torch.zeros(bags, width, dtype=torch.float64) for site in sites},
        torch.zeros(bags, dtype=torch.float64),
        squares={site: torch.zeros(width, width, dtype=torch.float64) for site in sites if covariance},
        samples=samples,
    )
    for rows in batches:
        moved = rows.to(backbone.device)
        weights_BT = answer_weights(moved, weighting)
        real_B = (moved.index_B >= 0).cpu()
        bag_B = moved.index_B.cpu().clamp(min=0) % bags
        captured = activations(backbone, moved, sites)
        for site in sites:
            sums_BD = weighted_sums(captured[site], weights_BT)
            _check_finite(sums_BD, site, moved, group)
            found.sums[site].index_add_(0, bag_B, sums_BD.cpu())
            if covariance:
                hidden_ND = captured[site][weights_BT > 0].double()
                weights_N1 = weights_BT[weights_BT > 0][:, None]
                found.squares[site] += ((hidden_ND * weights_N1).T @ hidden_ND).cpu()
        if found.samples is not None:
            found.samples = found.samples.with_rows(moved, captured, seed)
        found.counts.index_add_(0, bag_B, weights_BT.sum(dim=1).cpu())
        found.answers += int(real_B.sum())
    return found


def answer_weights(rows: Rows, weighting: str = "token") -> Tensor:
    """Weight of each position in a mean over answers, shape (B, T); zero off the answers."""
    counted_BT = (rows.answer_BT & (rows.index_B >= 0)[:, None]).double()
    if weighting == "token":
        return counted_BT
    return counted_BT / counted_BT.sum(dim=1, keepdim=True).clamp(min=1)


def weighted_sums(hidden_BTD: Tensor, weights_BT: Tensor) -> Tensor:
    """Σ_t w·h of each row in float64, shape (B, D); what stands where w is 0 does not matter."""
    chosen_BT = weights_BT > 0
    # Not a matrix product, which TF32 and autocast would compute in lower precision.
    weighted_ND = hidden_BTD[chosen_BT].double() * weights_BT[chosen_BT][:, None]
    return torch.stack([part.sum(dim=0) for part in weighted_ND.split(chosen_BT.sum(dim=1).tolist())])


def activations(backbone: Backbone, rows: Rows, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Hidden states (B, T, D) at sites from one pass over rows, as copies.

    Raises:
        BackboneError: the model has no such site.
    """
    modules = {site: backbone.module_at(site) for site in sites}
    above = max(site.layer for site in sites) + 1
    with capturing(modules) as captured, backbone.steering_positions(rows.predicts_BT):
        if above < backbone.num_layers and not backbone.sharded:  # nothing above is wanted
            run_until(backbone.layers[above], lambda: backbone.trunk(rows.input_ids_BT))
        else:
            backbone.trunk(rows.input_ids_BT)
    return captured


def _check_finite(sums_BD: Tensor, site: Site, rows: Rows, group: str) -> None:
    finite_B = sums_BD.isfinite().all(dim=1)
    if not bool(finite_B.all()):
        example = int(rows.index_B[~finite_B][0])
        raise MeasurementError(
            f"group {group}, example {example}: activations at {site} are not finite; use "
            "backbone.dtype=float32, or look for a broken adapter"
        )


def shared_bags(*groups: Moments) -> Tensor:
    """Indices of the bags in which every group has answers; with few prompts some bags are empty.

    Raises:
        MeasurementError: there are fewer than two.
    """
    bags = torch.stack([group.counts > 0 for group in groups]).all(dim=0).nonzero()[:, 0]
    if len(bags) < 2:
        raise MeasurementError("both groups need answers to the same two prompts or more; give more answers")
    return bags


def split_half(positive: Moments, negative: Moments, site: Site, splits: int = 20, seed: int = 0) -> Floats:
    """Cosines of the mean difference of one random half of the prompts with that of the other half.

    Near 1: the direction is determined by the data; near 0: it is noise.

    Returns:
        `splits` cosines.

    Raises:
        MeasurementError: there are fewer than two prompts.
    """
    bags = shared_bags(positive, negative)
    cosines = []
    for number in range(splits):
        order = bags[torch.randperm(len(bags), generator=generator_for(seed, "split-half", number))]
        weights_2B = torch.zeros(2, len(positive.counts), dtype=torch.float64)
        weights_2B[0, order[: len(bags) // 2]] = 1.0
        weights_2B[1, order[len(bags) // 2 :]] = 1.0
        one, two = (
            positive.mean(site, weights_B) - negative.mean(site, weights_B) for weights_B in weights_2B
        )
        cosines.append(float(torch.nn.functional.cosine_similarity(one, two, dim=0)))
    return np.array(cosines)
