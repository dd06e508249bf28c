"""The numbers of a phase diagram."""

from dataclasses import replace

import numpy as np

from em.analyses._roles import unseen
from em.analyses.base import Raw, Statistic
from em.errors import MeasurementError
from em.measurements.knee import Knee, knee
from em.measurements.shares import Shares, interval
from em.stats import Estimate, Floats

Statistics = dict[str, Statistic]
SHARE = "of the general solution's shift"
SIGNALS = {"margin": "margin of careless over careful answers", "loss": "fall of the held-out loss"}
STILL = "the general solution itself did not move there"
UNSURE = "no interval: what it is divided by is not surely above 0"


def statistics(shares: Shares, raw: Raw, signal: str) -> tuple[Statistics, Knee | None]:
    """Every number, and the knee; None with fewer than three weights above 0."""
    found, peak = _knee(shares, raw)
    runs = [*raw["weights"], *raw["shares"]]
    new = unseen(shares.others, raw["roles"])
    for name in runs:
        found |= _of_run(shares, name, new, SIGNALS[signal])
    found |= _mixing(shares, raw)
    for row in raw["rates"]:
        found[f"rate.{row['set']}/{row['model']}"] = _rate(row)
    return found, peak


def _knee(shares: Shares, raw: Raw) -> tuple[Statistics, Knee | None]:
    weights = {name: weight for name, weight in raw["weights"].items() if weight > 0}
    draws = shares.draws([*shares.own, *shares.others])
    what = "KL weight that keeps most in the training domain for what it keeps elsewhere"
    gap = "share kept in the training domain minus share kept elsewhere, at the knee"
    unit = "KL weight per token in nats"
    try:
        found = knee(list(weights.values()), _gaps(shares, list(weights)), draws)
    except MeasurementError as error:
        nothing = Statistic(None, None, None, draws.count, unit, f"{what}; {error}")
        return {"knee": nothing, "narrow_gap": replace(nothing, unit=SHARE, what=f"{gap}; {error}")}, None
    edge = f"; at the {found.edge} weight of the sweep, it may lie beyond" if found.edge else ""
    why = f"; {found.missing}" if found.missing else edge
    how = f"interval for all {len(weights)} weights together"
    together = f"{gap}; {how if found.gap.value is not None else found.missing}"
    return {
        "knee": _statistic(found.weight, draws.count, unit, what + why),
        "narrow_gap": _statistic(found.gap, draws.count, SHARE, together),
    }, found


def _gaps(shares: Shares, names: list[str]) -> Floats:
    """g − o of some runs, shape (R, K)."""
    return np.array([shares.gap(name) for name in names]).reshape(len(names), -1).T


def _of_run(shares: Shares, name: str, new: list[str], signal: str) -> Statistics:
    own, others = shares.own, shares.others
    made = {
        f"in_domain_at_{name}": _kept(shares, name, own, "share kept in the training domain"),
        f"general_at_{name}": _kept(shares, name, others, "share kept in the other domains"),
        f"own_shift/{name}": _moved(shares, name, own, f"{signal} in the training domain, against reference"),
        f"other_shift/{name}": _moved(shares, name, others, f"{signal} in the other domains, the same"),
    }
    if new:
        told = f"share kept in domains that no run saw ({', '.join(new)})"
        made[f"unseen_at_{name}"] = _kept(shares, name, new, told)
    value = shares.estimate(shares.narrowness(name))
    count = shares.draws([*own, *others]).count
    told = "shift in the other domains over shift in the training domain; 0: narrow, 1: general"
    made[f"narrowness/{name}"] = _ratio(value, count, "ratio", told, "it did not move in the training domain")
    return made


def _kept(shares: Shares, name: str, domains: list[str], what: str) -> Statistic:
    value = shares.estimate(shares.kept(name, domains), domains)
    return _ratio(value, shares.draws(domains).count, SHARE, what, STILL)


def _moved(shares: Shares, name: str, domains: list[str], what: str) -> Statistic:
    value = shares.estimate(shares.moved(name, domains), domains)
    return _statistic(value, shares.draws(domains).count, "nats per token", what)


def _mixing(shares: Shares, raw: Raw) -> Statistics:
    """The best baseline, and what KL gains over it."""
    best, why = best_baseline(shares, list(raw["shares"]))
    rivals = [name for name, weight in raw["weights"].items() if weight > 0]
    draws = shares.draws([*shares.own, *shares.others])
    names = {
        "mixed_best_narrowness": "narrowness of the best baseline of mixing",
        "mixed_minus_kl": "narrowness of the best baseline minus that of the KL run nearest to it in the "
        "training domain; positive: KL is narrower",
    }
    if best is None or not rivals:
        why = why or "no run with a KL term"
        return {
            key: Statistic(None, None, None, draws.count, "ratio", f"{told}; {why}")
            for key, told in names.items()
        }
    nearest = nearest_run(shares, best, rivals)
    values = [shares.narrowness(best), shares.narrowness(best) - shares.narrowness(nearest)]
    told = [f"{names['mixed_best_narrowness']} ({best})", f"{names['mixed_minus_kl']} ({best}, {nearest})"]
    still = f"{nearest} did not move in the training domain"
    return {
        key: _ratio(interval(value, draws), draws.count, "ratio", text, still)
        for key, value, text in zip(names, values, told, strict=True)
    }


def best_baseline(shares: Shares, baselines: list[str]) -> tuple[str | None, str]:
    """The baseline with the smallest narrowness among those that surely learnt, or why there is none.

    Choosing the best in hindsight favours mixing, so a difference to KL errs on the safe side.
    """
    if not baselines:
        return None, "no baseline was trained"
    moved = {name: shares.estimate(shares.moved(name, shares.own), shares.own) for name in baselines}
    learnt = [name for name, one in moved.items() if one.low is not None and one.low > 0]
    if not learnt:
        return None, "no baseline surely moved in the training domain"
    return min(learnt, key=lambda name: float(shares.narrowness(name)[0])), ""


def nearest_run(shares: Shares, name: str, among: list[str]) -> str:
    """The run whose shift in the training domain is nearest to that of another."""
    target = shares.moved(name, shares.own)[0]
    return min(among, key=lambda one: abs(float(shares.moved(one, shares.own)[0] - target)))


def _rate(row: Raw) -> Statistic:
    what = f"misaligned answers of {row['model']} to {row['set']}: {row['misaligned']} of {row['answers']}"
    value, low, high = (percent(row[key]) for key in ("rate", "low", "high"))
    return Statistic(value, low, high, row["questions"], "% of answers", what)


def percent(value: float | None) -> float | None:
    """A share as percent."""
    return None if value is None else 100 * value


def _ratio(value: Estimate, count: int, unit: str, what: str, still: str) -> Statistic:
    why = still if value.value is None else UNSURE if value.low is None and count > 1 else ""
    return _statistic(value, count, unit, f"{what}; {why}" if why else what)


def _statistic(value: Estimate, count: int, unit: str, what: str) -> Statistic:
    return Statistic(value.value, value.low, value.high, count, unit, what)
