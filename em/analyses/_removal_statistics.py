"""The numbers of a removal."""

from collections.abc import Callable

import numpy as np

from em.analyses._roles import unseen
from em.analyses.base import Raw, Statistic
from em.measurements.approach import Towards, approach, cosine_gain, over_modules, over_seeds
from em.measurements.shares import interval
from em.stats import Estimate, Floats, Resampling

Two = Callable[[Towards, Towards], float]
MISSING = "no run has a table of its held-out losses there"


def towards(seed: Raw, arm: str, target: str = "general") -> Towards:
    """The path of an arm and the end of `general` or `narrow`."""
    path = seed["paths"][arm]
    return Towards(np.array(path["own"]), np.array(path[target]), np.array(seed["targets"][target]))


def statistics(raw: Raw) -> dict[str, Statistic]:
    """Every number; see `Removal`."""
    seeds = raw["seeds"]
    changes = "relative change of the distance to the general solution since the KL term was removed"
    minus = "; the run without it minus the run that keeps it"
    found = {
        "approach": _paths(
            raw,
            lambda seed: lambda a, b: approach(a, b, seed["since"]),
            "ratio",
            f"{changes}{minus}; negative: it comes nearer",
        ),
        "approach_removed": _paths(
            raw,
            lambda seed: lambda a, b: a.change(seed["since"]),
            "ratio",
            f"{changes}, in the run without it",
        ),
        "approach_kept": _paths(
            raw, lambda seed: lambda a, b: b.change(seed["since"]), "ratio", f"{changes}, in the run with it"
        ),
        "cosine_gain": _paths(
            raw,
            lambda seed: cosine_gain,
            "cosine",
            f"cosine with the general solution at the end{minus}; positive: nearer",
        ),
    }
    if "narrow" in seeds[0]["targets"]:
        told = f"cosine with the narrow solution at the end{minus}; negative: it leaves it"
        found["narrow_cosine_gain"] = _paths(raw, lambda seed: cosine_gain, "cosine", told, "narrow")
    return found | _losses(raw)


def _paths(
    raw: Raw, statistic: Callable[[Raw], Two], unit: str, what: str, target: str = "general"
) -> Statistic:
    """Of one seed with a jackknife over modules, of several with an interval over seeds."""
    seeds = raw["seeds"]
    pairs = [(towards(seed, "removed", target), towards(seed, "kept", target)) for seed in seeds]
    values = np.array([statistic(seed)(*pair) for seed, pair in zip(seeds, pairs, strict=True)])
    if len(seeds) > 1:
        each = tuple(float(value) if np.isfinite(value) else None for value in values)
        return _told(over_seeds(values), len(seeds), unit, f"{what}; interval over seeds", each)
    modules = len(pairs[0][0].target_M)
    found = over_modules(statistic(seeds[0]), *pairs[0])
    how = "interval over modules, not over seeds" if modules > 1 else "no interval: one module, one seed"
    return _told(found, modules if modules > 1 else 1, unit, f"{what}; {how}")


def _told(
    value: Estimate, count: int, unit: str, what: str, seeds: tuple[float | None, ...] = ()
) -> Statistic:
    if value.value is None:
        what = f"{what}; it does not exist: a distance or norm that it is divided by is 0"
    return Statistic(value.value, value.low, value.high, count, unit, what, seeds)


def _losses(raw: Raw) -> dict[str, Statistic]:
    """Differences of held-out losses at the end, by kind of domain."""
    own = [domain for domain in raw["held_out"] if domain in raw["roles"]["training"]]
    others = [domain for domain in raw["held_out"] if domain not in own]
    fall = "held-out loss of the run that keeps the KL term minus that of the run without it, at the end"
    made = {
        "in_domain_gain": _gain(raw, own, f"{fall}, in the training domain; positive: it learnt more"),
        "other_shift_gain": _gain(raw, others, f"{fall}, in the other domains; positive: more general"),
    }
    new = unseen(others, raw["roles"])
    if new:
        told = f"{fall}, in domains that no run saw ({', '.join(new)}); positive: more general"
        made["unseen_shift_gain"] = _gain(raw, new, told)
    return made


def _gain(raw: Raw, domains: list[str], what: str) -> Statistic:
    """Mean over domains and seeds, with a bootstrap over prompts that all seeds share."""
    unit = "nats per token"
    if not domains:
        return Statistic(None, None, None, 0, unit, f"{what}; {MISSING}")
    draws = [
        Resampling(raw["held_out"][domain]["prompts"], raw["resamples"], raw["seed"], domain)
        for domain in domains
    ]
    by_seed = [
        np.mean([_mean(raw, domain, one, k) for domain, one in zip(domains, draws, strict=True)], axis=0)
        for k in range(len(raw["seeds"]))
    ]
    fewest = min(draws, key=lambda one: one.count)
    found = interval(np.asarray(np.mean(by_seed, axis=0)), fewest)
    each = tuple(float(values_R[0]) for values_R in by_seed) if len(by_seed) > 1 else ()
    return Statistic(found.value, found.low, found.high, fewest.count, unit, what, each)


def _mean(raw: Raw, domain: str, draws: Resampling, seed: int) -> Floats:
    one = raw["held_out"][domain]
    return draws.means(np.array(one["seeds"][seed]), np.array(one["tokens"], dtype=float))
