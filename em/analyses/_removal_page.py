"""Figures and tables of a removal."""

import math
from collections.abc import Iterator

import numpy as np

from em.analyses._removal_statistics import towards
from em.analyses._roles import role
from em.analyses.base import Raw
from em.figures.model import Cell, Curves, Figure, Mark, Series, Table
from em.stats import Floats

ARMS = {"removed": "KL removed", "kept": "KL kept", "general": "never KL"}
NO_INTERVAL = "No interval: each run is one deterministic path."
STEP = "optimizer step"


def figures(raw: Raw) -> list[Figure]:
    """Distance, cosine and held-out shifts over steps; those without points are left out."""
    return [*_distances(raw), *_cosines(raw), *_shifts(raw)]


def _series(raw: Raw, values: dict[tuple[int, str], tuple[list[int], list[float | None]]]) -> list[Series]:
    """A line for each arm and seed; those of one arm share a colour."""
    several = len(raw["seeds"]) > 1
    made = []
    for (number, arm), (steps, y) in values.items():
        name = f"{ARMS[arm]} ({raw['seeds'][number]['names'][arm]})" if several else ARMS[arm]
        made.append(Series(name, [float(step) for step in steps], y, group=ARMS[arm]))
    return made


def _marks(raw: Raw) -> list[Mark]:
    steps = sorted({seed["removed_at"] for seed in raw["seeds"]})
    return [Mark("x", float(step), "KL removed") for step in steps]


def _distances(raw: Raw) -> Iterator[Figure]:
    space = raw["seeds"][0]["space"]
    values = {
        (number, arm): (seed["steps"], towards(seed, arm).distances().tolist())
        for number, seed in enumerate(raw["seeds"])
        for arm in ARMS
    }
    yield Curves(
        "removal-distance",
        "Distance to the general solution",
        f"‖x_t − y‖ over training, where x is {space} and y what the run without any KL term has at its end. "
        "Does the distance fall once the KL term is removed?",
        NO_INTERVAL,
        STEP,
        "distance",
        _series(raw, values),
        _marks(raw),
    )


def _cosines(raw: Raw) -> Iterator[Figure]:
    for target in raw["seeds"][0]["targets"]:
        values = {
            (number, arm): (seed["steps"], gaps(towards(seed, arm, target).cosines()))
            for number, seed in enumerate(raw["seeds"])
            for arm in ARMS
        }
        yield Curves(
            f"removal-cosine-{target}",
            f"Cosine with the {target} solution",
            f"cos(x_t, y) over training, where x is {raw['seeds'][0]['space']} and y the end of the {target} "
            "run. Before anything is learnt there is no cosine.",
            NO_INTERVAL,
            STEP,
            "cosine",
            _series(raw, values),
            _marks(raw),
        )


def gaps(values_S: Floats) -> list[float | None]:
    """NaN as a gap."""
    return [float(value) if math.isfinite(value) else None for value in values_S]


def _shifts(raw: Raw) -> Iterator[Figure]:
    """Mean held-out shift over steps in the training domain and in the others."""
    known = {domain for seed in raw["seeds"] for arm in ARMS for domain in seed["shifts"][arm]}
    own = [domain for domain in raw["roles"]["training"] if domain in known]
    others = sorted(known - set(own))
    for ident, title, domains in (
        ("other", "the other domains", others),
        ("own", "the training domain", own),
    ):
        values = {
            (number, arm): curve
            for number, seed in enumerate(raw["seeds"])
            for arm in ARMS
            if (curve := _mean_shift(seed["shifts"][arm], domains))[0]
        }
        if values:
            yield Curves(
                f"removal-shift-{ident}",
                f"Held-out shift in {title}",
                f"Held-out loss minus the reference's, mean over {', '.join(domains)}. Below 0 the model "
                "moved towards these answers.",
                NO_INTERVAL,
                STEP,
                "loss minus the reference's, nats per token",
                _series(raw, values),
                [Mark("y", 0.0, "reference"), *_marks(raw)],
            )


def _mean_shift(logged: Raw, domains: list[str]) -> tuple[list[int], list[float | None]]:
    """At the steps that all domains have."""
    curves = [
        dict(zip(logged[domain]["steps"], logged[domain]["shift"], strict=True))
        for domain in domains
        if domain in logged
    ]
    if not curves or len(curves) < len(domains):
        return [], []
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return steps, [float(np.mean([curve[step] for curve in curves])) for step in steps]


def tables(raw: Raw) -> list[Table]:
    """Every path at the removal and at its end, and losses at the end by domain."""
    return [_ends(raw), *([_losses(raw)] if raw["held_out"] else [])]


def _ends(raw: Raw) -> Table:
    rows: list[list[Cell]] = []
    for seed in raw["seeds"]:
        for arm, told in ARMS.items():
            path = towards(seed, arm)
            distances, cosines = path.distances(), gaps(path.cosines())
            for at in (seed["since"], -1):
                rows.append([told, seed["names"][arm], seed["steps"][at], float(distances[at]), cosines[at]])
    columns = ["run", "name", "step", "distance to general", "cosine with general"]
    definition = f"Of {raw['seeds'][0]['space']}, in {len(raw['seeds'][0]['modules'])} modules."
    return Table("removal-ends", "At the removal and at the end", columns, rows, definition)


def _losses(raw: Raw) -> Table:
    rows: list[list[Cell]] = []
    for domain, one in raw["held_out"].items():
        tokens = sum(one["tokens"])
        for seed, falls in zip(raw["seeds"], one["seeds"], strict=True):
            name = seed["names"]["removed"]
            prompts = len(set(one["prompts"]))
            rows.append([name, domain, role(domain, raw["roles"]), prompts, sum(falls) / tokens])
    columns = ["run", "domain", "domain is", "prompts", "loss of KL kept − KL removed"]
    return Table(
        "removal-losses",
        "Held-out losses at the end, nats per token",
        columns,
        rows,
        "Above 0: without the KL term the model moved further towards these answers.",
    )
