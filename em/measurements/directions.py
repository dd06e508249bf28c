"""Directions in the residual stream: how they are found, how reliable they are, how alike."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from em.errors import MeasurementError
from em.hooks import Point, Site, generator_for
from em.interventions.direction import Direction
from em.interventions.update import Update
from em.measurements.activations import Moments, shared_bags, split_half
from em.stats import NOTHING, Estimate, Floats, jackknife


@dataclass(frozen=True)
class MeanDifference:
    """mean(positive) − mean(negative) over answer tokens, site by site.

    The paper's: misaligned minus aligned answers (arXiv 2506.11618). With the same answers under two
    models it is the shift that an intervention causes.
    """

    name: str
    positive: Moments
    negative: Moments

    @property
    def sites(self) -> list[Site]:
        return [site for site in self.positive.sums if site in self.negative.sums]

    def vector(self, site: Site, weights_B: Tensor | None = None) -> Tensor:
        """The direction, shape (D,), float64; optionally with a weight for each bag of prompts."""
        return self.positive.mean(site, weights_B) - self.negative.mean(site, weights_B)

    def reliability(self, site: Site, seed: int = 0) -> Floats:
        """Split-half cosines."""
        return split_half(self.positive, self.negative, site, seed=seed)

    def direction(self, origin: dict[str, Any], seed: int = 0) -> Direction:
        """As a direction that can be saved and used, with its reliability in its provenance."""
        sites = [site for site in self.sites if float(self.vector(site).norm()) > 0]
        if not sites:
            raise MeasurementError(f"{self.name}: the two groups have the same mean at every site")
        reliability = {str(site): round(float(self.reliability(site, seed).mean()), 4) for site in sites}
        groups = {"positive": self.positive.answers, "negative": self.negative.answers}
        record = {"kind": "mean-difference", **origin, "answers": groups, "split_half": reliability}
        return Direction({site: self.vector(site).float() for site in sites}, record, self.name)


@dataclass(frozen=True)
class Given:
    """A direction without sampling error of its own: learned, random, or read from a file."""

    name: str
    vectors: dict[Site, Tensor]

    @property
    def sites(self) -> list[Site]:
        return list(self.vectors)

    def vector(self, site: Site, weights_B: Tensor | None = None) -> Tensor:
        """The same whatever the weights of bags are."""
        return self.vectors[site].double()


def cosine_estimate(a: MeanDifference | Given, b: MeanDifference | Given, site: Site) -> Estimate:
    """Cosine of two directions with a leave-one-bag-out (jackknife) interval, both without the same bag."""
    value = _cosine(a.vector(site), b.vector(site))
    pairs = [(one.positive, one.negative) for one in (a, b) if isinstance(one, MeanDifference)]
    if not np.isfinite(value):
        return NOTHING
    if not pairs:
        return Estimate(value, value, value)
    counts_GB = torch.stack([group.counts for pair in pairs for group in pair])
    filled_B = (counts_GB > 0).all(dim=0)
    without = []
    for bag in filled_B.nonzero()[:, 0] if int(filled_B.sum()) > 1 else []:
        weights_B = torch.ones(len(filled_B), dtype=torch.float64)
        weights_B[bag] = 0.0
        without.append(_cosine(a.vector(site, weights_B), b.vector(site, weights_B)))
    found = jackknife(value, np.array(without))
    clip = [None if bound is None else float(np.clip(bound, -1, 1)) for bound in (found.low, found.high)]
    return Estimate(found.value, *clip)


def _cosine(a: Tensor, b: Tensor) -> float:
    length = float(a.norm() * b.norm())
    return float(a @ b) / length if length > 0 else float("nan")


def written_directions(update: Update, hidden_size: int) -> dict[str, Tensor]:
    """The main direction that each part of an update writes into the residual stream.

    For a LoRA module whose output is the residual stream (`down_proj`, `o_proj`): the first left singular
    vector of ΔW = s·BA, which for rank 1 is its B column. For a steering vector: the vector.

    Returns:
        name of the part -> unit vector, shape (D,); parts of another output width, and parts that are
        zero, are left out.
    """
    found = {}
    for name, (left, right) in update.parts.items():
        if left.shape[0] != hidden_size or not name.endswith(
            ("down_proj", "o_proj", "mlp", "block", "attention")
        ):
            continue
        if right is None:
            vector = left if left.ndim == 1 else torch.linalg.svd(left.double(), full_matrices=False)[0][:, 0]
        else:
            q, r = torch.linalg.qr(left.double())
            vector = q @ torch.linalg.svd(r @ right.double(), full_matrices=False)[0][:, 0]
        if Update({name: (left, right)}).norm() > 0:  # a zero matrix has singular vectors too
            found[name] = (vector / vector.norm()).double()
    return found


def site_of(part: str) -> Site | None:
    """The site into which a part of an update writes: `…layers.15.mlp.down_proj`, or a site's own name."""
    found = re.search(r"(?:^|layers\.)(\d+)\.(.*)$", part)
    if found is None:
        return None
    layer, rest = int(found[1]), found[2].removesuffix(".lora_B")
    if rest in ("block", "mlp", "attention"):
        return Site(layer, cast(Point, rest))
    ends: dict[str, Point] = {"down_proj": "mlp", "o_proj": "attention"}
    return next((Site(layer, point) for end, point in ends.items() if rest.endswith(end)), None)


def as_direction(
    parts: dict[str, Tensor], hidden_size: int, name: str, origin: dict[str, Any]
) -> Direction | None:
    """What parts of an update write, as a direction; None where nothing writes into the residual stream.

    A matrix (D, r) gives its first left singular vector, a vector itself.
    """
    vectors = {}
    for part, tensor in parts.items():
        site = site_of(part)
        if site is None or tensor.shape[0] != hidden_size or not bool(tensor.any()):
            continue
        single = (
            tensor if tensor.ndim == 1 else torch.linalg.svd(tensor.double(), full_matrices=False)[0][:, 0]
        )
        vectors[site] = single.float()
    return Direction(vectors, origin, name) if vectors else None


def shuffled_labels(positive: Moments, negative: Moments, seed: int, draw: int) -> tuple[Moments, Moments]:
    """A control: each bag of prompts keeps or swaps its labels by a coin, so no direction is left.

    Exactly half of the bags that hold prompts are swapped.

    Raises:
        MeasurementError: there are fewer than two prompts.
    """
    bags = shared_bags(positive, negative)
    swap_B = torch.zeros(len(positive.counts), dtype=torch.float64)
    order = bags[torch.randperm(len(bags), generator=generator_for(seed, "shuffled-labels", draw))]
    swap_B[order[: len(bags) // 2]] = 1.0

    def mixed(a: Moments, b: Moments) -> Moments:
        sums = {
            site: a.sums[site] * (1 - swap_B)[:, None] + b.sums[site] * swap_B[:, None] for site in a.sums
        }
        return Moments(sums, a.counts * (1 - swap_B) + b.counts * swap_B, a.answers)

    return mixed(positive, negative), mixed(negative, positive)


def names_unique(directions: Sequence[MeanDifference | Given]) -> list[str]:
    """Names of directions.

    Raises:
        MeasurementError: two have the same name.
    """
    names = [one.name for one in directions]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MeasurementError(f"two directions are named {twice[0]}; rename one")
    return names
