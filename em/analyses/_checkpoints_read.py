"""The stored checkpoints of runs, and the statistics that are read from them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from em.analyses._inner import draws_of, fewest, mean_draws, stated
from em.analyses.base import Raw, Statistic
from em.measurements.checkpoints import Turn, beside, half_step, over_seeds, sharpest_turn
from em.stats import NOTHING, Estimate, Floats, Resampling

SHIFT = "margin shift, adapted minus reference, at {scale} times the adapter, {where}"
NATS = "nats per token"


@dataclass(frozen=True)
class Member:
    """One run as it was stored."""

    raw: Raw
    name: str

    @property
    def stored(self) -> Raw:
        return dict(self.raw["members"][self.name])

    @cached_property
    def turn(self) -> Turn:
        """Where its path turns most."""
        return sharpest_turn(self.stored["rotation_steps"], self.stored["rotation"], self.raw["k"])

    @cached_property
    def draws(self) -> dict[str, Resampling]:
        return {domain: draws_of(self.raw, domain) for domain in self.raw["domains"]}

    def curve(self, scale: int, domains: list[str]) -> Floats:
        """Mean margin shift over some domains at each snapshot, (R, S); NaN where there is none.

        Args:
            scale: position among the scales.
        """
        parts = []
        for domain in domains:
            draws = self.draws[domain]
            none = [np.nan] * len(draws.member_N)
            rows = [none if step[scale] is None else step[scale] for step in self.stored["shifts"][domain]]
            parts.append(draws.means(np.array(rows, dtype=float), np.ones(len(none))))
        return mean_draws(parts)


def groups(raw: Raw) -> dict[str, list[str]]:
    """What a shift is a mean over: all paired domains, the training domain, the others."""
    others = [domain for domain in raw["domains"] if domain != raw["training"]]
    return {"": raw["domains"], "/training": [raw["training"]], "/other": others}


WHERE = {
    "": "mean of all paired domains",
    "/training": "training domain",
    "/other": "mean of the other domains",
}


def largest(raw: Raw) -> int:
    """Position of the largest factor among the scales."""
    return max(at for at, scale in enumerate(raw["scales"]) if not isinstance(scale, str))


def statistics(raw: Raw, names: list[str]) -> dict[str, Statistic]:
    """Of the runs of one arm."""
    members = [Member(raw, name) for name in names]
    made = {"peak_step": _peak(members), "rotation_rise": _rise(members), "norm_growth": _growth(members)}
    around = _around(members)
    for group in groups(raw):
        made[f"behaviour_after-before{group}"] = _shift(raw, members, group, around, _jump)
        made[f"behaviour_end-start{group}"] = _shift(
            raw, members, group, "at the last snapshot minus at the first", lambda one, curve: _gain(curve)
        )
    made["behaviour_half_step"] = _shift(
        raw, members, "", "first step at which it is half of its last value", _half, "optimizer steps"
    )
    return made


def _around(members: list[Member]) -> str:
    """The two snapshots beside the peak, in words."""
    told = "at the first measured snapshot after the rotation's peak minus at the last one before it"
    sides = [(one, _sides(one)) for one in members]
    steps = [
        f"{one.stored['steps'][found[1]]} and {one.stored['steps'][found[0]]}"
        for one, found in sides
        if found is not None
    ]
    return f"{told} (steps {'; '.join(steps)})" if steps else told


def _sides(one: Member) -> tuple[int, int] | None:
    return None if one.turn.step is None else beside(one.stored["steps"], one.turn.step)


def _peak(members: list[Member]) -> Statistic:
    what = f"optimizer step at which the rotation of the path peaks (k = {members[0].raw['k']})"
    steps = [one.turn.step for one in members]
    known = [float(step) for step in steps if step is not None]
    if len(known) < len(steps):
        why = "; ".join(f"{one.name}: {one.turn.why}" for one in members if one.turn.step is None)
        return stated(NOTHING, len(members), "optimizer steps", f"{what}: no transition. {why}", steps)
    told = f"{what}; one run has no interval" if len(members) == 1 else what
    return stated(over_seeds(known), len(members), "optimizer steps", told, known)


def _rise(members: list[Member]) -> Statistic:
    what = "largest rotation of the path minus the median of its rotations"
    rises = [one.turn.rise.value for one in members]
    known = [value for value in rises if value is not None]
    if len(known) < len(rises):
        why = "; ".join(f"{one.name}: {one.turn.why}" for one in members if one.turn.rise.value is None)
        return stated(NOTHING, len(members), "cosine", f"{what}: {why}", rises)
    noise = _mean_of([one.turn.rise for one in members])
    if len(members) == 1:
        told = f"{what}; the interval is the noise of one run's curve away from its peak"
        return stated(noise, members[0].turn.snapshots, "cosine", told)
    # A largest value is above the median in every run, whatever the path: seeds alone would call that a rise.
    told = f"{what}; the interval covers seeds, and the noise of each run's curve away from its peak"
    return stated(_wider(over_seeds(known), noise), len(members), "cosine", told, rises)


def _mean_of(parts: list[Estimate]) -> Estimate:
    """Value and bounds, each the mean; no bounds where one has none."""
    columns = ([getattr(one, key) for one in parts] for key in ("value", "low", "high"))
    return Estimate(*(None if None in column else float(np.mean(column)) for column in columns))


def _wider(a: Estimate, b: Estimate) -> Estimate:
    """The value of the first with an interval that holds both."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Estimate(a.value, None, None)
    return Estimate(a.value, min(a.low, b.low), max(a.high, b.high))


def _growth(members: list[Member]) -> Statistic:
    what = "norm of the last snapshot over that of the first one that is not zero"
    grown = []
    for one in members:
        norms = [norm for norm in one.stored["norms"] if norm > 0]
        grown.append(norms[-1] / norms[0] if norms and one.stored["norms"][-1] > 0 else None)
    known = [value for value in grown if value is not None]
    if len(known) < len(grown):
        return stated(NOTHING, len(members), "ratio", f"{what}: a run ends with norm 0", grown)
    told = f"{what}; one run has no interval" if len(members) == 1 else what
    return stated(over_seeds(known), len(members), "ratio", told, grown)


def _shift(
    raw: Raw,
    members: list[Member],
    group: str,
    what: str,
    of: Callable[[Member, Floats], Floats | None],
    unit: str = NATS,
) -> Statistic:
    """A statistic of the shift's curve at the largest scale, its mean over the runs that have one."""
    at = largest(raw)
    told = f"{SHIFT.format(scale=format(raw['scales'][at], 'g'), where=WHERE[group])}: {what}"
    domains = groups(raw)[group]
    if not domains:
        return Statistic(None, None, None, 0, unit, f"{told}: no other domain has pairs")
    found = [of(one, one.curve(at, domains)) for one in members]
    known = [values_R for values_R in found if values_R is not None]
    seeds = [None if one is None or not np.isfinite(one[0]) else float(one[0]) for one in found]
    if not known:
        return stated(NOTHING, 0, unit, f"{told}: no transition, so there is no before and after", seeds)
    if len(known) < len(found):
        told += f"; mean of the {len(known)} of {len(found)} runs that have one"
    draws = [members[0].draws[domain] for domain in domains]
    estimate = fewest(draws).estimate(mean_draws(known))
    if estimate.value is None:
        told += ": does not exist, because the shift does not end above 0"
    return stated(estimate, sum(one.count for one in draws), unit, told, seeds)


def _jump(one: Member, curve_RS: Floats) -> Floats | None:
    sides = _sides(one)
    return None if sides is None else np.asarray(curve_RS[:, sides[1]] - curve_RS[:, sides[0]])


def _gain(curve_RS: Floats) -> Floats:
    return np.asarray(curve_RS[:, -1] - curve_RS[:, 0])


def _half(one: Member, curve_RS: Floats) -> Floats:
    return half_step(one.stored["steps"], curve_RS)
