"""What is measured of the reference model alone: margins, distances of domains, directions and steering."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from em.comparison.measured import Panels, block_sites, pair_batches, pair_moments
from em.comparison.study import Study
from em.datamodules.pairs import Pair, pair_rows
from em.datamodules.rows import Rows, batched
from em.datamodules.sources import Example
from em.hooks import Site, generator_for
from em.interventions.direction import Direction
from em.interventions.steering import Steering
from em.measurements.activations import Moments, collect
from em.measurements.arms import columns
from em.measurements.directions import MeanDifference, shuffled_labels
from em.measurements.margins import PAIR_ROWS, PairLosses, domain_distances
from em.measurements.monitoring import projections, separation
from em.measurements.steering_effects import steering_sweep
from em.progress import Task
from em.stats import Floats, Resampling

SHUFFLES = 5  # directions from shuffled labels
Table = dict[str, Any]


@dataclass
class Reference:
    """What is known of the frozen model.

    Args:
        losses: domain -> margins of its held-out pairs.
        distances: domain -> distance of its prompts from the training domain's.
        moments: activations of the training domain's held-out answers, by side.
        difference: careless minus careful, from training pairs.
        direction: the same, to be saved and used.
        shuffled: the same from shuffled labels, a control.
        separation: how well it tells held-out answers apart, by layer.
        steering: what adding it does.
    """

    losses: dict[str, PairLosses] = field(default_factory=dict)
    distances: dict[str, float] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)
    difference: MeanDifference | None = None
    direction: Direction | None = None
    shuffled: MeanDifference | None = None
    separation: Table | None = None
    steering: Table | None = None


def measure_reference(study: Study, panels: Panels) -> Reference:
    """Everything that needs no trained solution; nothing without pairs."""
    found = Reference()
    if not study.pairs:
        return found
    lowest = next(iter(study.lowest.values()))
    with Task("reference: pairs and directions", 4) as task:
        for domain in study.pairs:
            found.losses[domain] = panels.pairs(domain, lowest).losses()
        found.distances = distances(study)
        task.advance()
        found.moments = pair_moments(study)
        groups = {
            which: _train_rows(study.train_pairs, which, study.pad) for which in ("careless", "careful")
        }
        train = collect(study.backbone, groups, block_sites(study))
        found.difference = MeanDifference("careless − careful", train["careless"], train["careful"])
        found.shuffled = MeanDifference(
            "shuffled labels", *shuffled_labels(train["careless"], train["careful"], study.config.seed, 0)
        )
        found.direction = found.difference.direction(
            {
                "what": "careless minus careful answers of paired training rows, reference model",
                "domain": study.training,
                "backbone": study.backbone.describe(),
            },
            study.config.seed,
        )
        task.advance()
        if study.wants("directions"):
            found.separation = separate(study, found.difference, train)
        task.advance()
        if study.wants("steering"):
            found.steering = steer(study, found.direction, found.losses[study.training])
        task.advance()
    return found


def _train_rows(pairs: list[Pair], which: str, pad: int) -> list[Rows]:
    return pair_rows(pairs, PAIR_ROWS, pad, which, range(len(pairs)))  # type: ignore[arg-type]


@torch.no_grad()
def distances(study: Study) -> dict[str, float]:
    """How far each domain's prompts are from the training domain's, in the middle of the reference.

    A prompt's embedding is the mean of the hidden states that enter the middle layer over its own tokens:
    what all prompts begin with (the template and system prompt) is left out.
    """
    prompts = {
        domain: [pair.careful.ids[: pair.careful.answer.index(True)] for pair in pairs]
        for domain, pairs in study.pairs.items()
    }
    shared = common_prefix([ids for listed in prompts.values() for ids in listed])
    means, variances, counts = {}, {}, {}
    for domain, listed in prompts.items():
        points_PD = _embeddings(study, listed, shared)
        means[domain], counts[domain] = points_PD.mean(axis=0), len(points_PD)
        variances[domain] = float(points_PD.var(axis=0, ddof=1).sum()) if len(points_PD) > 1 else 0.0
    if variances[study.training] <= 0:
        return {}
    return domain_distances(means, variances, counts, study.training)


def common_prefix(listed: list[list[int]]) -> int:
    """How many tokens all prompts begin with, at most all but one of the shortest."""
    first, rest = listed[0], listed[1:]
    length = min(len(ids) for ids in listed) - 1
    for at in range(length):
        if any(ids[at] != first[at] for ids in rest):
            return at
    return max(0, length) if rest else 0


def _embeddings(study: Study, prompts: list[list[int]], shared: int) -> Floats:
    """Mean hidden state of each prompt's own tokens where they enter the middle layer, shape (P, D)."""
    backbone = study.backbone
    examples = [Example(ids, [False] * len(ids), "", "") for ids in prompts]
    found = np.zeros((len(prompts), backbone.hidden_size))
    for rows in batched(examples, PAIR_ROWS, study.pad, range(len(examples))):
        moved = rows.to(backbone.device)
        lower = backbone.run_lower(moved.input_ids_BT, backbone.num_layers // 2, moved.length_B)
        assert lower is not None  # a study is never sharded, and its model has more than one layer
        own_BT = moved.real_BT.double()
        own_BT[:, :shared] = 0
        sums_BD = torch.einsum("btd,bt->bd", lower[1].double(), own_BT)
        found[rows.index_B.numpy()] = (sums_BD / own_BT.sum(dim=1, keepdim=True)).cpu().numpy()
    return found


def separate(study: Study, difference: MeanDifference, train: dict[str, Moments]) -> Table:
    """AUROC of the projection of held-out answers on the training pairs' direction, layer by layer.

    Beside it the same with directions from shuffled labels. Only one layer's K directions are needed at a
    time, so all of them are projected in one pass.
    """
    sites, seed = block_sites(study), study.config.seed
    shuffled = [
        MeanDifference(
            f"shuffled {number}", *shuffled_labels(train["careless"], train["careful"], seed, number)
        )
        for number in range(SHUFFLES)
    ]
    vectors = {
        site: torch.stack([one.vector(site) for one in (difference, *shuffled)]).float() for site in sites
    }
    careless, careful = (
        projections(study.backbone, pair_batches(study, which, study.training), vectors)
        for which in ("careless", "careful")
    )
    prompts = [pair.prompt for pair in study.pairs[study.training]]
    draws = Resampling(prompts, study.config.resamples, seed)
    found = [separation(careless.scores[site][:, 0], careful.scores[site][:, 0], draws) for site in sites]
    point = Resampling(prompts, 0, seed)
    controls = np.array(
        [
            [
                separation(careless.scores[site][:, k], careful.scores[site][:, k], point).value
                for k in range(1, 1 + SHUFFLES)
            ]
            for site in sites
        ],
        dtype=float,
    )
    return {
        "layers": [site.layer for site in sites],
        "train_pairs": len(study.train_pairs),
        "held_out_pairs": len(prompts),
        **columns(found, "auroc"),
        "shuffled": controls.mean(axis=1).tolist(),
        "shuffled_low": controls.min(axis=1).tolist(),
        "shuffled_high": controls.max(axis=1).tolist(),
        "shuffles": SHUFFLES,
        "split_half": [float(difference.reliability(site, seed).mean()) for site in sites],
    }


def steer(study: Study, direction: Direction, reference: PairLosses) -> Table:
    """Margin shift of held-out pairs when the direction, or a random one, is added at the study's layer."""
    pairs = study.pairs[study.training][: study.config.steered_pairs]
    draws = Resampling([pair.prompt for pair in pairs], study.config.resamples, study.config.seed)
    site = Site(study.layer)
    own = direction.only([site])
    controls = [
        own.random_like(generator_for(study.config.seed, "steering-control", number))
        for number in range(study.config.controls)
    ]
    margin_P = reference.margin_P[: len(pairs)]
    coefficients = sorted({0.0, *study.config.coefficients})
    shifts = [_sweep(study, pairs, one, coefficients, margin_P) for one in (own, *controls)]

    def curve(shift_KP: Floats) -> dict[str, list[float | None]]:
        means_RK = draws.means(shift_KP, np.ones(len(pairs)))
        return columns([draws.estimate(means_RK[:, k]) for k in range(len(coefficients))], "shift")

    return {
        "layer": study.layer,
        "domain": study.training,
        "pairs": len(pairs),
        "coefficients": coefficients,
        "direction": curve(shifts[0]),
        "random": curve(np.mean(shifts[1:], axis=0)),
        "controls": len(controls),
    }


def _sweep(
    study: Study, pairs: list[Pair], direction: Direction, coefficients: list[float], margin_P: Floats
) -> Floats:
    """Margin shift at each coefficient, shape (K, P)."""
    moved = [coefficient for coefficient in coefficients if coefficient != 0]
    steering = Steering.given(direction, relative=True)
    steering.attach(study.backbone)
    try:
        sweep = steering_sweep(study.backbone, pairs, steering, moved)
    finally:
        steering.detach()
    by_coefficient = {
        coefficient: losses.margin_P - margin_P
        for coefficient, losses in zip(moved, sweep.losses, strict=True)
    }
    return np.array([by_coefficient.get(one, np.zeros(len(pairs))) for one in coefficients])
