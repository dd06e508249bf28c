"""What relates solutions to each other: cosines of their directions and updates, ablation across runs."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from em.comparison.measured import Measured, Panels, block_sites
from em.comparison.reference import Reference
from em.comparison.study import Study
from em.hooks import Site, generator_for
from em.interventions.direction import Direction
from em.interventions.update import Update
from em.measurements.arms import VECTOR
from em.measurements.directions import Given, MeanDifference, as_direction, cosine_estimate
from em.measurements.steering_effects import ablated_losses, removed_share
from em.progress import Task
from em.stats import Estimate, Floats, Resampling

RANDOM = "random"  # the control among ablated directions
Table = dict[str, Any]
Found = MeanDifference | Given


def shifts(study: Study, found: dict[str, Measured], reference: Reference) -> dict[str, MeanDifference]:
    """Solution -> how it moves the activations of the training domain's held-out careless answers.

    The same answers under both models, so no difference of texts enters. A solution that moves nothing has
    no direction and is left out.
    """
    moved = {
        name: MeanDifference(f"shift of {name}", one.moments["careless"], reference.moments["careless"])
        for name, one in found.items()
        if one.moments
    }
    return {
        name: one
        for name, one in moved.items()
        if any(float(one.vector(site).norm()) > 0 for site in block_sites(study))
    }


def directions(study: Study, found: dict[str, Measured], reference: Reference) -> Table:
    """Cosines by layer and at the study's layer, split-half reliability, separation of held-out answers."""
    moved = shifts(study, found, reference)
    sites = block_sites(study)
    assert reference.difference is not None
    names = list(moved)
    reliability = {
        one.name: [_mean_reliability(one, site, study.config.seed) for site in sites]
        for one in (reference.difference, *moved.values())
    }
    return {
        "layers": [site.layer for site in sites],
        "separation": reference.separation,
        "reliability": reliability,
        "between": _between(study, moved, sites),
        "with_difference": {
            name: _columns([cosine_estimate(moved[name], reference.difference, site) for site in sites])
            for name in names
        },
        "matrix": _matrix(study, found, reference, moved),
        "updates": _updates(study, found),
        "written": _written(study, found, reference),
        "missing": {
            name: one.missing.get(
                "directions", "it moves no activation by as much as can be told apart from 0"
            )
            for name, one in found.items()
            if name not in moved
        },
    }


def _mean_reliability(one: MeanDifference, site: Site, seed: int) -> float | None:
    if float(one.vector(site).norm()) == 0:
        return None  # below the intervention nothing moves
    return float(one.reliability(site, seed).mean())


def _columns(estimates: Sequence[Estimate]) -> dict[str, list[float | None]]:
    return {
        "cosine": [one.value for one in estimates],
        "low": [one.low for one in estimates],
        "high": [one.high for one in estimates],
    }


def _between(study: Study, moved: dict[str, MeanDifference], sites: list[Site]) -> list[Table]:
    """Cosines of the shifts of two solutions: of different arms with one seed, and of replicates."""
    rows = []
    for a, b in combinations(moved, 2):
        one, other = study.solutions[a], study.solutions[b]
        same_arm = one.arm == other.arm
        if not same_arm and one.seed != other.seed:
            continue
        pair = sorted([one.arm, other.arm], key=[s.arm for s in study.solutions.values()].index)
        estimates = [cosine_estimate(moved[a], moved[b], site) for site in sites]
        rows.append({"a": a, "b": b, "arms": pair, "replicates": same_arm, **_columns(estimates)})
    return rows


def _matrix(
    study: Study, found: dict[str, Measured], reference: Reference, moved: dict[str, MeanDifference]
) -> Table:
    """Cosines of every two directions at the study's layer, among them a random one as control."""
    site = Site(study.layer)
    assert reference.difference is not None and reference.direction is not None
    listed: list[Found] = [reference.difference]
    listed += [one for one in moved.values() if float(one.vector(site).norm()) > 0]
    for name, one in found.items():
        own = study.solutions[name]
        if own.space == VECTOR and one.update is not None:
            vector = next(iter(one.update.parts.values()))[0]
            listed.append(Given(f"vector of {name}", {site: vector.double()}))
    control = reference.direction.only([site]).random_like(generator_for(study.config.seed, "cosine-control"))
    if reference.shuffled is not None:
        listed.append(reference.shuffled)
    listed.append(Given("random", {site: control.at(site)}))
    cells = [[cosine_estimate(a, b, site) for b in listed] for a in listed]
    return {
        "layer": study.layer,
        "names": [one.name for one in listed],
        "values": [[cell.value for cell in row] for row in cells],
        "low": [[cell.low for cell in row] for row in cells],
        "high": [[cell.high for cell in row] for row in cells],
    }


def _updates(study: Study, found: dict[str, Measured]) -> list[Table]:
    """Cosines of effective updates, and of what is written (the B matrices), for solutions of one shape."""
    rows = []
    for a, b in combinations(found, 2):
        one, other = found[a].update, found[b].update
        if one is None or other is None or one.parts.keys() != other.parts.keys():
            continue
        left, right = _left(one), _left(other)
        same = all(left.parts[key][0].shape == right.parts[key][0].shape for key in left.parts)
        rows.append(
            {
                "a": a,
                "b": b,
                "update": _finite(one.cosine(other)),
                "written": _finite(left.cosine(right)) if same else None,
            }
        )
    return rows


def _left(update: Update) -> Update:
    return Update({name: (left, None) for name, (left, _) in update.parts.items()})


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _written(study: Study, found: dict[str, Measured], reference: Reference) -> list[Table]:
    """Cosine of what the adapted module nearest to the study's layer writes with the mean difference.

    The sign of a singular vector has no meaning, so that of a LoRA is the cosine's size.
    """
    assert reference.difference is not None
    rows = []
    for name, one in found.items():
        layers = {part: _layer_of(part) for part in one.written}
        usable = {part: layer for part, layer in layers.items() if layer is not None}
        if not usable:
            continue
        part = min(usable, key=lambda part: (abs(usable[part] - study.layer), not part.endswith("down_proj")))
        site = Site(usable[part])
        vector = Given(part, {site: one.written[part].cpu()})
        cosine = cosine_estimate(vector, reference.difference, site)
        signed = study.solutions[name].space == VECTOR
        value = cosine.value if signed or cosine.value is None else abs(cosine.value)
        rows.append(
            {"solution": name, "part": part.rpartition("layers.")[2], "layer": site.layer, "cosine": value}
        )
    return rows


def _layer_of(part: str) -> int | None:
    """The layer in a parameter's or site's name."""
    return next((int(piece) for piece in part.split(".") if piece.isdigit()), None)


def found_directions(study: Study, found: dict[str, Measured], reference: Reference) -> dict[str, Direction]:
    """All directions that were found, to be saved: file name -> direction."""
    saved: dict[str, Direction] = {}
    if reference.direction is not None:
        saved["mean-difference"] = reference.direction
    for name, one in shifts(study, found, reference).items():
        origin = {
            "what": "adapted minus reference activations on held-out careless answers",
            "run": str(study.records[name].directory.path),
            "domain": study.training,
            "backbone": study.backbone.describe(),
        }
        saved[f"shift-{name}"] = one.direction(origin, study.config.seed)
    return saved


def written_directions(study: Study, found: dict[str, Measured]) -> dict[str, Direction]:
    """What each solution itself writes: the learned vector, or B columns and main singular vectors."""
    saved = {}
    for name, one in found.items():
        origin = {
            "kind": "learned",
            "what": "learned vector, or first left singular vectors of the LoRA update",
            "run": str(study.records[name].directory.path),
            "backbone": study.backbone.describe(),
        }
        parts = {part: vector.cpu() for part, vector in one.written.items()}
        direction = as_direction(parts, study.backbone.hidden_size, f"written by {name}", origin)
        if direction is not None:
            saved[f"written-{name}"] = direction
    return saved


def ablation(study: Study, found: dict[str, Measured], reference: Reference, panels: Panels) -> Table:
    """Share of each solution's margin shift that goes with each direction projected out (transfer).

    A direction is taken at the study's layer and projected out at every layer from the lowest one that any
    solution changes.
    """
    lowest = min(study.lowest.values())
    layers = list(range(lowest, study.backbone.num_layers))
    panel = panels.pairs(study.training, lowest, study.config.steered_pairs)
    draws = Resampling(panel.prompts, study.config.resamples, study.config.seed)
    site = Site(study.layer)
    listed = {
        name: one.only([site])
        for name, one in found_directions(study, found, reference).items()
        if site in one.vectors
    }
    control = generator_for(study.config.seed, "ablation-control", 1)
    listed[RANDOM] = next(iter(listed.values())).random_like(control)

    def ablated(progress: Task) -> dict[str, Floats]:
        """Margins of the model as it is now without each direction."""
        margins = {}
        for label, direction in listed.items():
            losses = ablated_losses(study.backbone, panel, direction, layers, study.layer)
            margins[label] = losses.margin_P
            progress.advance()
        return margins

    cells: dict[str, dict[str, Table]] = {}
    with Task("ablation across solutions", (1 + len(study.solutions)) * len(listed)) as task:
        plain_P, without_P = panel.losses().margin_P, ablated(task)
        for name in study.solutions:
            with study.records[name].adapted(study.backbone):
                shift_P, found_P = panel.losses().margin_P - plain_P, ablated(task)
            cells[name] = {
                label: draws.estimate(
                    removed_share(found_P[label] - without_P[label], shift_P, draws)
                ).as_dict()
                for label in listed
            }
    return {
        "layer": study.layer,
        "layers": [layers[0], layers[-1]],
        "domain": study.training,
        "pairs": len(panel),
        "directions": list(listed),
        "solutions": cells,
    }
