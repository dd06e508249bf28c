"""Solutions that are compared: which belong together, and differences between them with paired intervals."""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from em.stats import Estimate, Floats, Resampling

VECTOR, WEIGHTS = "residual stream", "weights"  # spaces of norms


@dataclass(frozen=True)
class Solution:
    """One trained intervention among those that are compared.

    Args:
        name: unique among them.
        arm: what it is without its seed; solutions of one arm are replicates.
        kind: of the intervention.
        space: where its norm lives; norms of different spaces cannot be compared (a vector's is in units
            of the residual stream, a LoRA's in units of weights).
        norm: Frobenius norm of the effective update.
        seed: of the run.
    """

    name: str
    arm: str
    kind: str
    space: str
    norm: float
    seed: int = 0


def columns(estimates: list[Estimate], value: str = "value") -> dict[str, list[float | None]]:
    """A curve as columns: the values under `value`, and `low`, `high`."""
    return {
        value: [one.value for one in estimates],
        "low": [one.low for one in estimates],
        "high": [one.high for one in estimates],
    }


def differences(
    values: dict[str, Floats],
    solutions: dict[str, Solution],
    resampling: Resampling,
    same_space: bool = False,
) -> list[dict[str, Any]]:
    """a − b for every two arms, each the mean over its seeds, with an interval from shared resamples.

    Args:
        values: solution -> the statistic in every resample, shape (R,).
        same_space: only arms whose norms can be compared.
    """
    members: dict[str, list[str]] = {}
    for name in values:
        members.setdefault(solutions[name].arm, []).append(name)
    rows = []
    for a, b in combinations(members, 2):
        spaces = {solutions[members[arm][0]].space for arm in (a, b)}
        if same_space and len(spaces) > 1:
            continue
        means = [np.mean([values[name] for name in members[arm]], axis=0) for arm in (a, b)]
        per_seed = [
            float(values[x][0] - values[y][0]) for x, y in _by_seed(members[a], members[b], solutions)
        ]
        found = resampling.estimate(means[0] - means[1])
        rows.append(found.as_dict(a=a, b=b, seeds=len(per_seed), by_seed=[_finite(d) for d in per_seed]))
    return rows


def _by_seed(a: list[str], b: list[str], solutions: dict[str, Solution]) -> list[tuple[str, str]]:
    """Solutions of two arms with the same seed."""
    other = {solutions[name].seed: name for name in b}
    return [(name, other[solutions[name].seed]) for name in a if solutions[name].seed in other]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
